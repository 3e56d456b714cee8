"""Taking out of a regenerated answer what the client has already read."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tierfall.errors import ContinuationDiverged, StreamBroken

_chunk: Final = msgspec.json.Decoder(dict[str, Any])
_encoder: Final = msgspec.json.Encoder()
_REASONING: Final = ("reasoning_content", "reasoning")
_SHORTER: Final = "the new answer is shorter than what the client has"


class Continuation:
    """Skips an answer's beginning, as long as it is exactly what the client has.

    Args:
        content: The text that the client has.
        reasoning: The reasoning that it has.

    Attributes:
        caught_up: Whether all of it has been skipped: chunks pass as they are from then on.
    """

    def __init__(self, content: str, reasoning: str = "") -> None:
        self._content = content
        self._reasoning = reasoning
        self.caught_up = not content and not reasoning

    def feed(self, chunk: bytes) -> bytes:
        """The chunk less what the client has; empty when nothing is left of it.

        Raises:
            ContinuationDiverged: The answer is another one: what the client has cannot be continued by it.
            StreamBroken: The chunk cannot be read.
        """
        if self.caught_up:
            return chunk
        try:
            members = _chunk.decode(chunk)
        except (msgspec.DecodeError, RecursionError):
            raise StreamBroken("the backend sent a chunk that cannot be read") from None
        left = False
        for choice in members.get("choices") or ():
            left |= self._skip(choice)
        self.caught_up = not self._content and not self._reasoning
        return _encoder.encode(members) if left else b""

    def _skip(self, choice: dict[str, Any]) -> bool:
        """Takes the known text out of one choice; says whether anything is left of it."""
        if "text" in choice:
            return self._skip_text(choice)
        delta: dict[str, Any] = choice.get("delta") or {}
        for name in _REASONING:
            if isinstance(delta.get(name), str):
                self._reasoning, delta[name] = _cut(self._reasoning, delta[name])
        if isinstance(delta.get("content"), str):
            if delta["content"] and self._reasoning:
                raise ContinuationDiverged("the new answer's reasoning is shorter than what the client has")
            self._content, delta["content"] = _cut(self._content, delta["content"])
        if (choice.get("finish_reason") or delta.get("tool_calls")) and (self._content or self._reasoning):
            raise ContinuationDiverged(_SHORTER)
        return bool(choice.get("finish_reason") or any(delta.values()))

    def _skip_text(self, choice: dict[str, Any]) -> bool:
        """As :meth:`_skip`, for a text completion's choice."""
        self._content, choice["text"] = _cut(self._content, choice["text"])
        if choice.get("finish_reason") and self._content:
            raise ContinuationDiverged(_SHORTER)
        return bool(choice.get("finish_reason") or choice["text"])


def _cut(known: str, text: str) -> tuple[str, str]:
    """What is still to be skipped, and what of ``text`` is new."""
    if known.startswith(text):
        return known[len(text) :], ""
    if text.startswith(known):
        return "", text[len(known) :]
    raise ContinuationDiverged("the new answer differs from what the client has")
