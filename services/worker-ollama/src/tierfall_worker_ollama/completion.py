"""A text completion as Ollama's native ``POST /api/generate``, and its answer as OpenAI's chunks.

The prompt goes out ``raw``, as OpenAI's completions and vLLM's mean it; Ollama's own OpenAI endpoint puts it
into the model's chat template. With a ``suffix`` the model's template is needed: it says where the two go.
Sources: ``GenerateRequest`` and ``GenerateResponse`` in Ollama's ``api/types.go``, ``GenerateHandler`` in its
``server/routes.go``, as of 2026-08.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.chat import legacy_logprobs
from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall_worker_ollama.answer import Answer, decode, usage_of
from tierfall_worker_ollama.fields import take
from tierfall_worker_ollama.request import (
    TOP_LOGPROBS_LIMIT,
    NativeRequest,
    flag,
    keep_alive,
    native_options,
    refuse,
)
from tierfall_worker_ollama.shape import native_format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tierfall.config.schema import OllamaTier
    from tierfall.worker.backend import Ask

# A raw prompt has no template that could be told to think.
THINKING: Final[dict[str, tuple[Any, ...]]] = {
    "think": (False,),
    "chat_template_kwargs": ({},),
    "reasoning_effort": ("none",),
}
_encoder: Final = msgspec.json.Encoder()


def native_completion(ask: Ask, tier: OllamaTier) -> NativeRequest:
    """Translates one request; pure, no I/O.

    Raises:
        InvalidRequest: A field has a wrong type or value; ``param`` names it.
        UnsupportedByTier: Ollama cannot do what a field asks for; ``param`` names it.
    """
    refuse(ask, THINKING)
    suffix: str | None = take(ask.body, "suffix", str)
    top = _logprobs(ask)
    native: dict[str, Any] = {
        "model": ask.backend_model,
        "prompt": _prompt(ask),
        "stream": True,
        "raw": not suffix,
        "truncate": flag(ask, "truncate"),
        "shift": flag(ask, "shift"),
        "options": native_options(ask, tier),
    }
    optional = {
        "suffix": suffix or None,
        "format": native_format(ask.body),
        "keep_alive": keep_alive(ask, tier),
        "logprobs": None if top is None else True,
        "top_logprobs": top,
    }
    native |= {name: value for name, value in optional.items() if value is not None}
    return NativeRequest(_encoder.encode(native), "", top is not None)


def _prompt(ask: Ask) -> str:
    asked: str | list[Any] | None = take(ask.body, "prompt", str | list[Any])
    only = asked[0] if isinstance(asked, list) and len(asked) == 1 else asked
    if not isinstance(only, str):
        raise UnsupportedByTier("prompt: Ollama takes one text at a time, and no tokens", param="prompt")
    if not only:
        raise UnsupportedByTier("prompt: Ollama does not complete an empty one", param="prompt")
    return only


def _logprobs(ask: Ask) -> int | None:
    """How many alternatives are wanted beside each token; None for no log probabilities at all."""
    top: int | None = take(ask.body, "logprobs", int)
    if top is not None and not 0 <= top <= TOP_LOGPROBS_LIMIT:
        raise InvalidRequest(f"logprobs: 0 to {TOP_LOGPROBS_LIMIT}, not {top}", param="logprobs")
    return top


class TextAnswer(Answer):
    """One completion on its way from Ollama; feed it each line."""

    def __init__(self, *, logprobs: bool = False) -> None:
        super().__init__(logprobs=logprobs)
        self._offset = 0

    def feed(self, payload: bytes) -> Iterator[bytes]:
        """As :meth:`Answer.feed`."""
        line = decode(payload)
        text = line.response or ""
        self._judge_logprobs(line, text)
        if text or line.logprobs:
            found: list[Any] = msgspec.to_builtins(line.logprobs or [])
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
            if found:
                choice["logprobs"] = legacy_logprobs(found, self._offset)
                self._offset += sum(len(position["token"]) for position in found)
            yield _encoder.encode({"choices": (choice,)})
        if line.done:
            self.done = True
            end = {"index": 0, "text": "", "logprobs": None, "finish_reason": self._finish_reason(line)}
            yield _encoder.encode({"choices": (end,), "usage": usage_of(line)})
