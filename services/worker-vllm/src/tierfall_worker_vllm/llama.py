"""Where llama.cpp's server departs from OpenAI's API: what it would drop in silence, and what it counts.

Observed of llama.cpp b11549: ``/v1/completions`` has log probabilities in the form that chats have, each of
several answers has a usage of its own, and some fields are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.chat import legacy_logprobs
from tierfall.errors import UnsupportedByTier
from tierfall.protocol.operation import Operation

if TYPE_CHECKING:
    from tierfall.worker import Ask

_NULL: Final = b"null"
_IGNORED: Final[dict[Operation, dict[str, tuple[bytes, ...]]]] = {
    Operation.CHAT: {},
    Operation.COMPLETIONS: {"echo": (b"false",), "suffix": (b'""',), "best_of": (b"1",)},
    Operation.EMBEDDINGS: {"dimensions": ()},
}
"""Fields without effect there, and the values that ask for nothing."""
_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_chunk: Final = msgspec.json.Decoder(dict[str, Any])
_encoder: Final = msgspec.json.Encoder()


def refuse_ignored(ask: Ask) -> None:
    """Leaves out what asks for nothing among the fields that llama.cpp ignores.

    Raises:
        UnsupportedByTier: One of them asks for something; ``param`` names it.
    """
    for field, neutral in _IGNORED[ask.operation].items():
        value = bytes(ask.body.pop(field, _NULL))
        if value != _NULL and value not in neutral:
            raise UnsupportedByTier(f"llama.cpp has no {field} for /v1{ask.operation.path}", param=field)


class LlamaMender:
    """Mends the chunks of one answer.

    Args:
        choices_each: ``n``: that many answers share a prompt, which is counted once.
    """

    def __init__(self, choices_each: int) -> None:
        self._each = choices_each
        self._usages: dict[int, dict[str, int]] = {}
        self._offsets: dict[int, int] = {}

    @classmethod
    def of(cls, ask: Ask) -> LlamaMender | None:
        """The mender that this request's answer needs; None for the common one that needs none."""
        body = ask.body
        asked = msgspec.json.decode(body.get("n", _NULL))
        several = ask.operation is Operation.COMPLETIONS and bytes(body.get("prompt", _NULL)).startswith(b"[")
        logprobs = ask.operation is Operation.COMPLETIONS and bytes(body.get("logprobs", _NULL)) != _NULL
        each = asked if isinstance(asked, int) and asked > 0 else 1
        return cls(each) if each > 1 or several or logprobs else None

    def mend(self, payload: bytes) -> bytes:
        """The chunk as OpenAI would have sent it; one that cannot be read is left to its judge."""
        if b'"usage"' not in payload and b'"logprobs":{' not in payload:
            return payload
        try:
            chunk = _chunk.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return payload
        choices = chunk.get("choices") or []
        for choice in choices:
            if "text" in choice:
                self._mend_logprobs(choice)
        if isinstance(chunk.get("usage"), dict):
            index = choices[0].get("index", 0) if choices else len(self._usages)
            chunk["usage"] = self._total(index, chunk["usage"])
        return _encoder.encode(chunk)

    def _total(self, index: int, usage: dict[str, Any]) -> dict[str, Any]:
        """The usage of all answers so far, as the last one counts for the request."""
        self._usages[index] = {name: usage[name] for name in _COUNTS if isinstance(usage.get(name), int)}
        if len(self._usages) == 1:
            return usage
        prompts = {
            number // self._each: each.get("prompt_tokens", 0) for number, each in self._usages.items()
        }
        prompt = sum(prompts.values())
        completion = sum(each.get("completion_tokens", 0) for each in self._usages.values())
        return dict(zip(_COUNTS, (prompt, completion, prompt + completion), strict=True))

    def _mend_logprobs(self, choice: dict[str, Any]) -> None:
        found = choice.get("logprobs")
        content = found.get("content") if isinstance(found, dict) else None
        if not isinstance(content, list):
            return
        index = choice.get("index", 0)
        choice["logprobs"] = legacy_logprobs(content, self._offsets.get(index, 0))
        self._offsets[index] = self._offsets.get(index, 0) + sum(len(each["token"]) for each in content)
