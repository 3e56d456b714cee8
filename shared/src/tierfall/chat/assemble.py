"""Chunks in, one ``chat.completion`` out: what a client that does not stream gets.

Every backend is streamed, so that the clocks of a long answer see its tokens; this is the way back. The
result has the fields of OpenAI's non-streaming answer, and whatever else the backend put on its chunks.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_TEXT_FIELDS: Final = ("content", "refusal", "reasoning_content", "reasoning")
_chunk: Final = msgspec.json.Decoder(dict[str, Any])
_encoder: Final = msgspec.json.Encoder()


class Assembly:
    """Collects the stamped chunks of one answer."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    def feed(self, chunk: bytes) -> None:
        """Adds one chunk, as :meth:`tierfall.chat.ChunkStream.feed` returned it."""
        members = _chunk.decode(chunk)
        for choice in members.pop("choices", None) or ():
            index = choice.pop("index", 0)
            self._choices.setdefault(index, _Choice()).feed(choice)
        for name, value in members.items():
            if value is not None or name not in self._top:
                self._top[name] = value

    def completion(self, usage: msgspec.Raw | None) -> bytes:
        """The whole answer as JSON text; ``usage`` is left out when the backend never told."""
        top = self._top
        top["object"] = "chat.completion"
        top["choices"] = [
            {"index": index, **self._choices[index].completed()} for index in sorted(self._choices)
        ]
        if usage is not None:
            top["usage"] = usage
        return _encoder.encode(top)


class _Choice:
    """One choice as it grows."""

    def __init__(self) -> None:
        self._text: dict[str, list[str]] = {}
        self._message: dict[str, Any] = {}
        self._tools: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, Any] | None = None
        self._rest: dict[str, Any] = {}

    def feed(self, choice: dict[str, Any]) -> None:
        self._feed_delta(choice.pop("delta", None) or {})
        self._feed_logprobs(choice.pop("logprobs", None))
        for name, value in choice.items():
            if value is not None or name not in self._rest:
                self._rest[name] = value

    def completed(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, **self._message}
        for name, parts in self._text.items():
            message[name] = "".join(parts)
        if self._tools:
            message["content"] = message["content"] or None
            message["tool_calls"] = [self._tools[index] for index in sorted(self._tools)]
        rest = {"finish_reason": None, **self._rest}
        return {"message": message, "logprobs": self._logprobs, **rest}

    def _feed_delta(self, delta: dict[str, Any]) -> None:
        for name in _TEXT_FIELDS:
            value = delta.get(name)
            if isinstance(value, str):
                del delta[name]
                self._text.setdefault(name, []).append(value)
        for position, call in enumerate(delta.pop("tool_calls", None) or ()):
            index = call.pop("index", None)
            _merge_call(self._tools.setdefault(position if index is None else index, {}), call)
        for name, value in delta.items():
            self._message[name] = _merged(self._message.get(name), value)

    def _feed_logprobs(self, logprobs: dict[str, Any] | None) -> None:
        if logprobs is None:
            return
        if self._logprobs is None:
            self._logprobs = {}
        for name, value in logprobs.items():
            self._logprobs[name] = _merged(self._logprobs.get(name), value)


def _merge_call(into: dict[str, Any], call: dict[str, Any]) -> None:
    """One tool call's delta: arguments grow, the other fields are said once."""
    function = call.pop("function", None) or {}
    for name, value in call.items():
        if value is not None:
            into.setdefault(name, value)
    if not function:
        return
    known = into.setdefault("function", {})
    for name, value in function.items():
        if name == "arguments":
            known[name] = known.get(name, "") + (value or "")
        elif value is not None:
            known.setdefault(name, value)


def _merged(old: Any, new: Any) -> Any:
    """Lists and objects grow; anything else is replaced by what is said last."""
    if isinstance(old, list) and isinstance(new, list):
        return old + new
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}
    return old if new is None else new
