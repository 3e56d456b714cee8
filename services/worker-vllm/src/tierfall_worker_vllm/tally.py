"""Usage for engines that send none, counted from what passed by."""

from __future__ import annotations

from typing import Any, Final

import msgspec


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")


_decoder: Final = msgspec.json.Decoder(_Chunk)
_encoder: Final = msgspec.json.Encoder()


class Tally:
    """Counts the output deltas of one answer.

    Engines send one delta a token, seldom two tokens in one, so the count is an estimate from below, and the
    usage made of it says so: ``"estimated": true``. An engine's own usage always goes first.
    """

    __slots__ = ("_deltas", "_finished", "_usage")

    def __init__(self) -> None:
        self._deltas = 0
        self._finished = False
        self._usage = False

    @property
    def lacks_usage(self) -> bool:
        """Whether the answer came to its end and the engine never said what it cost."""
        return self._finished and not self._usage

    def note(self, payload: bytes) -> None:
        """Looks at one chunk; one of an unknown shape counts for nothing."""
        try:
            chunk = _decoder.decode(payload)
        except msgspec.DecodeError:
            return
        if bytes(chunk.usage) != b"null":
            self._usage = True
        for choice in chunk.choices or ():
            delta = choice.delta
            if choice.text:
                self._deltas += 1
            if delta and (delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls):
                self._deltas += 1
            if choice.finish_reason is not None:
                self._finished = True

    def usage_chunk(self, model: str, prompt_tokens: int) -> bytes:
        """The usage chunk that the engine did not send, as JSON text."""
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self._deltas,
            "total_tokens": prompt_tokens + self._deltas,
            "estimated": True,
        }
        return _encoder.encode({"model": model, "choices": [], "usage": usage})
