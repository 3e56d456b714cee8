"""Chunks in, one completion out: what a client that does not stream gets.

Every backend is streamed, so that the clocks of a long answer see its tokens; this is the way back. The
result has the fields of OpenAI's non-streaming answer, and whatever else the backend put on its chunks.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any, ClassVar, Final

import msgspec

from tierfall.chat.chunk import Delta
from tierfall.chat.generated import Generated
from tierfall.chat.weight import text_bytes, utf8_bytes
from tierfall.errors import BackendFault, StreamBroken

_SAID_ONCE: Final = frozenset({"role", "id", "type", "name", "index"})
"""Strings of a delta that name something; every other string of a delta is a piece of a longer one."""
_NULL_IF_EMPTY: Final = ("refusal", "reasoning_content", "reasoning")
_OUTPUT: Final = tuple(name for name in Delta.__struct_fields__ if name != "role")
"""The members of a delta that are real output, if there is something in one."""


class _Usage(msgspec.Struct):
    usage: msgspec.Raw


_chunk: Final = msgspec.json.Decoder(dict[str, Any])
_usage: Final = msgspec.json.Decoder(_Usage)
_encoder: Final = msgspec.json.Encoder()


class Assembly(Generated):
    """Collects the chunks of one chat answer; feed each as it comes.

    What :class:`tierfall.chat.ChunkStream` mends is what SDKs stumble over when they collect chunks
    themselves. Here nothing has to be mended, as this collects with more patience than they.

    Arguments as :class:`Generated`'s.
    """

    __slots__ = ("_choices", "_top")

    object_name: ClassVar[str] = "chat.completion"

    def __init__(self, answer_id: str, created: int, model: str, choices: int = 1) -> None:
        super().__init__(answer_id, created, model, choices)
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    def feed(self, payload: bytes) -> bytes:
        """Adds one chunk, and gives it back; empty when it has no choice.

        Raises:
            StreamBroken: The bytes are no chunk, or its fields are not of the types that a chunk's have.
            BackendFault: They are an error object in a chunk's place.
        """
        try:
            return payload if self._take(payload) else b""
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError, TypeError):
            raise StreamBroken("the backend sent something that is no chunk of an answer") from None

    def _take(self, payload: bytes) -> bool:
        members = _chunk.decode(payload)
        if members.pop("usage", None) is not None:
            self.usage = _usage.decode(payload).usage
        choices = members.pop("choices", None)
        if choices is not None and type(choices) is not list:
            raise TypeError
        if not choices:
            if members.get("error") is not None:
                raise BackendFault("the backend reported an error in the middle of its stream")
            return False
        for choice in choices:
            self._add(choice)
        for name, value in members.items():
            if value is not None or name not in self._top:
                self._top[name] = value
        return True

    def _add(self, choice: dict[str, Any]) -> None:
        index, reason = choice.pop("index", None), choice.pop("finish_reason", None)
        if index is None:
            index = 0
        if type(index) is not int or not (reason is None or type(reason) is str):
            raise TypeError
        if reason or index not in self._choices:
            self._settle(index, reason)
            if index not in self._choices:
                self._choices[index] = self._new_choice()
        self.size += _size(choice)
        if self._choices[index].feed(choice):
            self.started = True
            self.outputs += 1

    def _new_choice(self) -> _Choice:
        return _Choice()

    def completion(self) -> bytes:
        """The whole answer as JSON text; ``usage`` is left out when the backend never told."""
        top = self._top | self._stamp
        top["choices"] = [
            {"index": index, **choice.completed(), "finish_reason": self._finished.get(index)}
            for index, choice in sorted(self._choices.items())
        ]
        if self.usage is not None:
            top["usage"] = self.usage
        return _encoder.encode(top)


def _size(choice: dict[str, Any]) -> int:
    delta = choice.get("delta")
    if delta is None:
        return utf8_bytes(choice.get("text"))
    return utf8_bytes(delta.get("content")) if len(delta) == 1 else text_bytes(delta)


class TextAssembly(Assembly):
    """Collects the chunks of one text completion, of one or several prompts."""

    __slots__ = ()

    object_name: ClassVar[str] = "text_completion"

    def _new_choice(self) -> _Choice:
        return _TextChoice()


class _Choice:
    """One choice as it grows."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._tools: dict[int, Any] = {}
        self._rest: dict[str, Any] = {"logprobs": None}

    def feed(self, choice: dict[str, Any]) -> bool:
        """Adds one chunk's part of it; whether that is real output."""
        delta = choice.pop("delta", None)
        if delta is None:
            delta = {}
        elif type(delta) is not dict:
            raise TypeError
        output = any(map(delta.get, _OUTPUT))
        calls = delta.pop("tool_calls", None)
        if calls is not None:
            if type(calls) is not list:
                raise TypeError
            for call in calls:
                self._feed_call(call)
        _grow(self._message, delta)
        self._feed_rest(choice)
        return output

    def _feed_rest(self, choice: dict[str, Any]) -> None:
        for name, value in choice.items():
            if value is None:
                self._rest.setdefault(name, None)
            else:
                self._rest[name] = _extended(self._rest.get(name), value)

    def completed(self) -> dict[str, Any]:
        audio = self._message.get("audio")
        if isinstance(audio, dict) and isinstance(audio.get("data"), _Text):
            audio["data"] = _joined_audio(audio["data"])
        message = {"role": "assistant", "content": None, "refusal": None, **_joined(self._message)}
        message["role"] = message["role"] or "assistant"
        for name in _NULL_IF_EMPTY:
            if name in message:
                message[name] = message[name] or None
        if self._tools:
            message["tool_calls"] = [_whole_call(self._tools[index]) for index in sorted(self._tools)]
        if self._tools or message["refusal"] or message.get("function_call"):
            message["content"] = message["content"] or None
        return {"message": message, **self._rest}

    def _feed_call(self, call: dict[str, Any]) -> None:
        index = call.pop("index", None)
        function = call.get("function")
        if not (index is None or type(index) is int) or not (function is None or type(function) is dict):
            raise TypeError
        if index is None:  # a call that is said in one piece, or the last one's continuation
            index = len(self._tools) if call.get("id") or not self._tools else max(self._tools)
        self._tools[index] = _grown(self._tools.get(index, {}), call)


class _TextChoice(_Choice):
    """One choice of a text completion: a text instead of a message."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[str] = []

    def feed(self, choice: dict[str, Any]) -> bool:
        text, delta = choice.pop("text", None), choice.pop("delta", None)
        if not (delta is None or type(delta) is dict):
            raise TypeError  # no completion has one; a stream refuses it, too
        if not isinstance(text, str):
            text = ""
        self._pieces.append(text)
        self._feed_rest(choice)
        return bool(text)

    def completed(self) -> dict[str, Any]:
        return {"text": "".join(self._pieces), **self._rest}


class _Text(list[str]):
    """A string's pieces, joined once at the end: joining as they come takes quadratic time."""


def _grow(known: dict[str, Any], new: dict[str, Any]) -> None:
    """A delta's members added to those that are there."""
    for name, value in new.items():
        grown = known.get(name)
        if type(grown) is _Text and type(value) is str:  # nearly always
            grown.append(value)
        else:
            known[name] = _grown(grown, value, name)


def _grown(old: Any, new: Any, name: str = "") -> Any:
    """A delta's value added to what is there: strings and lists are appended to, objects by member."""
    if isinstance(new, dict):
        known = old if isinstance(old, dict) else {}
        _grow(known, new)
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
