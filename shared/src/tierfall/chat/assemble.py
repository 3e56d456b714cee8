"""Chunks in, one completion out: what a client that does not stream gets.

Every backend is streamed, so that the clocks of a long answer see its tokens; this is the way back. The
result has the fields of OpenAI's non-streaming answer, and whatever else the backend put on its chunks.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any, Final

import msgspec

from tierfall.errors import StreamBroken

_SAID_ONCE: Final = frozenset({"role", "id", "type", "name", "index"})
"""Strings of a delta that name something; every other string of a delta is a piece of a longer one."""
_NULL_IF_EMPTY: Final = ("refusal", "reasoning_content", "reasoning")
_chunk: Final = msgspec.json.Decoder(dict[str, Any])
_encoder: Final = msgspec.json.Encoder()


class Assembly:
    """Collects the stamped chunks of one answer.

    Args:
        name: ``object`` of the whole answer, ``chat.completion`` or ``text_completion``.
    """

    def __init__(self, name: str = "chat.completion") -> None:
        self._name = name
        self._new_choice = _TextChoice if name == "text_completion" else _Choice
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    def feed(self, chunk: bytes) -> None:
        """Adds one chunk, as :meth:`tierfall.chat.ChunkStream.feed` returned it.

        Raises:
            StreamBroken: Its fields are not of the types that a chunk's have.
        """
        try:
            members = _chunk.decode(chunk)
            for choice in members.pop("choices", None) or ():
                index = choice.pop("index", 0)
                if index not in self._choices:
                    self._choices[index] = self._new_choice()
                self._choices[index].feed(choice)
        except (msgspec.DecodeError, RecursionError, AttributeError, TypeError):
            raise StreamBroken("the backend sent a chunk whose fields are not those of a chunk") from None
        for name, value in members.items():
            if value is not None or name not in self._top:
                self._top[name] = value

    def completion(self, usage: msgspec.Raw | None) -> bytes:
        """The whole answer as JSON text; ``usage`` is left out when the backend never told."""
        top = self._top
        top["object"] = self._name
        top["choices"] = [
            {"index": index, **self._choices[index].completed()} for index in sorted(self._choices)
        ]
        if usage is not None:
            top["usage"] = usage
        return _encoder.encode(top)


class _Choice:
    """One choice as it grows."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._tools: dict[int, Any] = {}
        self._logprobs: Any = None
        self._rest: dict[str, Any] = {}

    def feed(self, choice: dict[str, Any]) -> None:
        delta = choice.pop("delta", None) or {}
        for call in delta.pop("tool_calls", None) or ():
            self._feed_call(call)
        self._message = _grown(self._message, delta)
        logprobs = choice.pop("logprobs", None)
        if logprobs is not None:
            self._logprobs = _extended(self._logprobs, logprobs)
        for name, value in choice.items():
            self._rest[name] = _extended(self._rest.get(name), value)

    def completed(self) -> dict[str, Any]:
        audio = self._message.get("audio")
        if isinstance(audio, dict) and isinstance(audio.get("data"), _Text):
            audio["data"] = _joined_audio(audio["data"])
        message = {"role": "assistant", "content": None, "refusal": None, **_joined(self._message)}
        for name in _NULL_IF_EMPTY:
            if name in message:
                message[name] = message[name] or None
        if self._tools:
            message["tool_calls"] = [_whole_call(self._tools[index]) for index in sorted(self._tools)]
        if self._tools or message["refusal"] or message.get("function_call"):
            message["content"] = message["content"] or None
        return {"message": message, "logprobs": self._logprobs, "finish_reason": None, **self._rest}

    def _feed_call(self, call: dict[str, Any]) -> None:
        index = call.pop("index", None)
        if index is None:  # a call that is said in one piece, or the last one's continuation
            index = len(self._tools) if call.get("id") or not self._tools else max(self._tools)
        self._tools[index] = _grown(self._tools.get(index, {}), call)


class _TextChoice(_Choice):
    """One choice of a text completion: a text instead of a message."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[str] = []

    def feed(self, choice: dict[str, Any]) -> None:
        self._pieces.append(choice.pop("text", ""))
        super().feed(choice)

    def completed(self) -> dict[str, Any]:
        text = "".join(self._pieces)
        return {"text": text, "logprobs": self._logprobs, "finish_reason": None, **self._rest}


class _Text(list[str]):
    """A string's pieces, joined once at the end: joining as they come takes quadratic time."""


def _grown(old: Any, new: Any, name: str = "") -> Any:
    """A delta's value added to what is there: strings and lists are appended to, objects by member."""
    if isinstance(new, dict):
        known = old if isinstance(old, dict) else {}
        for key, value in new.items():
            known[key] = _grown(known.get(key), value, key)
        return known
    if isinstance(new, list):
        return _as_parts(old) + new
    if name in _SAID_ONCE:
        return old or new
    if isinstance(new, str):
        return _with_text(old, new)
    return old if new is None else new


def _with_text(old: Any, piece: str) -> Any:
    if isinstance(old, _Text) or not isinstance(old, list):
        text = old if isinstance(old, _Text) else _Text()
        text.append(piece)
        return text
    if old and isinstance(old[-1], dict) and old[-1].get("type") == "text":
        return [*old[:-1], {**old[-1], "text": old[-1].get("text", "") + piece}]
    return old + _as_parts(_Text([piece]))


def _as_parts(value: Any) -> list[Any]:
    """What a list is appended to; text that came as a string before becomes a text part."""
    if isinstance(value, _Text):
        text = "".join(value)
        return [{"type": "text", "text": text}] if text else []
    return value if isinstance(value, list) else []


def _joined_audio(pieces: _Text) -> str:
    """Base64 pieces as one: each was encoded by itself, so padding may stand in the middle."""
    try:
        return b64encode(b"".join(b64decode(piece, validate=True) for piece in pieces)).decode()
    except ValueError:  # no base64, or no ASCII
        return "".join(pieces)


def _joined(value: Any) -> Any:
    """With every string whole."""
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _joined(member) for name, member in value.items()}
    return value


def _whole_call(call: Any) -> dict[str, Any]:
    """A tool call with the members that OpenAI's always have."""
    whole: dict[str, Any] = _joined(call)
    function = whole.get("function")
    if isinstance(function, dict):
        whole["function"] = {**function, "arguments": function.get("arguments") or ""}
        whole["type"] = whole.get("type") or "function"
    return whole


def _extended(old: Any, new: Any) -> Any:
    """A choice's own member: lists and objects grow, anything else is replaced by what is said last."""
    if isinstance(old, list) and isinstance(new, list):
        return old + new
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: _extended(old.get(name), value) for name, value in new.items()}}
    return old if new is None else new
