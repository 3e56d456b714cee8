"""One answer's chunks on their way to the client: judged, mended and stamped.

Backends differ in small ways that SDKs stumble over; the rules are OpenAI's streaming format as its official
SDKs read it. What needs no change is passed on byte for byte (as ``msgspec.Raw``).
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

from tierfall.chat.frame import Frame
from tierfall.chat.generated import Generated
from tierfall.chat.weight import text_bytes, utf8_bytes
from tierfall.errors import BackendFault, StreamBroken

LEARNING: Final = 4
"""How many chunks with text are looked at for what stands around it in all of them."""
_NULL: Final = b"null"
_QUOTE: Final = ord('"')
_LINE_FEED: Final = ord("\n")
_CARRIAGE_RETURN: Final = ord("\r")


class _Function(msgspec.Struct):
    name: Any = None
    arguments: Any = None


class ToolCall(msgspec.Struct):
    """One tool call's delta, as far as it is judged."""

    index: int | None = None
    id: Any = None
    type: Any = None
    function: _Function | None = None


class Delta(msgspec.Struct):
    """The parts of a delta that tell output from ceremony. Types are the backend's; only truth matters."""

    role: Any = None
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[ToolCall] | None = None
    function_call: Any = None
    audio: Any = None

    def has_output(self) -> bool:
        """Whether this is real output: a role alone or an empty string is not."""
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.refusal
            or self.function_call
            or self.audio
        )


class Choice(msgspec.Struct):
    """One choice of a chunk, as far as it is judged."""

    index: int | None = None
    """``None`` when the engine leaves it out: it means the first."""
    delta: Delta | None = None
    text: Any = None
    finish_reason: str | msgspec.UnsetType | None = msgspec.UNSET


class _Judged(msgspec.Struct):
    choices: list[Choice] | None = None
    error: msgspec.Raw = msgspec.Raw(_NULL)


_judged: Final = msgspec.json.Decoder(_Judged)
_text: Final = msgspec.json.Decoder(str)
_listed: Final = msgspec.json.Decoder(list[Choice])
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_choices: Final = msgspec.json.Decoder(list[dict[str, Any]])
_encoder: Final = msgspec.json.Encoder()


class ChunkStream(Generated):
    """The chunks of one chat answer; feed each as it comes. Arguments as :class:`Generated`'s."""

    __slots__ = ("_calls", "_choices_frame", "_text_frame", "_to_learn")

    object_name: ClassVar[str] = "chat.completion.chunk"

    def __init__(
        self, answer_id: str, created: int, model: str, choices: int = 1, *, begun: bool = False
    ) -> None:
        super().__init__(answer_id, created, model, choices, begun=begun)
        self._calls: set[tuple[int, int]] = set()
        self._text_frame: Frame | None = None
        self._choices_frame: Frame | None = None
        self._to_learn = LEARNING

    def feed(self, payload: bytes) -> bytes:
        """The chunk as the client gets it, as JSON on one line; empty when nothing of it is for the client.

        Raises:
            StreamBroken: The bytes are no chunk.
            BackendFault: They are an error object in a chunk's place.
        """
        if self._text_frame is not None and (raw := self._text_frame.part(payload)):
            text = _string(raw)
            if text is not None:
                if text:
                    self.started = True
                    self.outputs += 1
                    self.size += utf8_bytes(text)
                return self._text_frame.framed(raw)
        try:
            if self._choices_frame is not None and (raw := self._choices_frame.part(payload)):
                return self._framed(payload, raw, self._choices_frame) or self._taken_apart(payload)
            return self._taken_apart(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise StreamBroken("the backend sent something that is no chunk of an answer") from None

    def _framed(self, payload: bytes, raw: bytes, frame: Frame) -> bytes:
        """A chunk that differs from an earlier one in its choices alone, as most do; empty if not so."""
        if _LINE_FEED in raw or _CARRIAGE_RETURN in raw:
            return b""
        try:
            choices = _listed.decode(raw)
        except msgspec.DecodeError:
            return b""
        if not raw.isascii():
            raw.decode()
        for choice in choices:
            if self._breaks_a_rule(choice):
                return b""
        for choice in choices:
            self._note(choice)
        if not choices:
            return b""
        chunk = frame.framed(raw)
        if self._to_learn and len(choices) == 1:
            self._learn(payload, chunk, choices[0])
        return chunk

    def _learn(self, payload: bytes, chunk: bytes, choice: Choice) -> None:
        """From a good chunk with text and nothing else: what stands around the text.

        If this one without its text breaks no rule now, one with another text does not either.
        """
        text = self._text_of(choice)
        if not text or choice.finish_reason is not None:
            return
        self._to_learn -= 1
        frame = Frame.around(_encoder.encode(text), payload, chunk)
        if frame is None:
            return
        try:
            without = _judged.decode(frame.head + b'""' + frame.tail).choices
        except msgspec.DecodeError:
            return  # the engine writes its text in another way, and what was found is not the text
        if without and self._text_of(without[0]) == "" and not self._has_output(without[0]):
            if not self._breaks_a_rule(without[0]):  # as the first chunk's role would, the next time
                self._text_frame = frame
            self._to_learn = 0

    def _text_of(self, choice: Choice) -> Any:
        return None if choice.delta is None else choice.delta.content

    def _size_of(self, choice: Choice) -> int:
        delta = choice.delta
        if delta is None:
            return 0
        size = utf8_bytes(delta.content)
        if (
            delta.reasoning_content
            or delta.reasoning
            or delta.refusal
            or delta.tool_calls
            or delta.function_call
        ):
            size += text_bytes({**msgspec.to_builtins(delta), "content": None})
        return size

    def _has_output(self, choice: Choice) -> bool:
        return choice.delta is not None and choice.delta.has_output()

    def _taken_apart(self, payload: bytes) -> bytes:
        if not payload.isascii():
            payload.decode()  # the parser does not look into strings that it skips
        if _LINE_FEED in payload or _CARRIAGE_RETURN in payload:
            payload = msgspec.json.format(payload, indent=-1)  # a line break would end the event
        judged = _judged.decode(payload)
        members = _members.decode(payload)
        choices = judged.choices
        usage = members.pop("usage", None)
        if usage is not None and bytes(usage) != _NULL:
            self.usage = usage
        if not choices:
            if bytes(judged.error) != _NULL:
                raise BackendFault("the backend reported an error in the middle of its stream")
            return b""
        inner = bytes(members["choices"])
        if any(self._breaks_a_rule(choice) for choice in choices):
            members["choices"] = self._mend(members["choices"])
        for choice in choices:
            self._note(choice)
        chunk = _encoder.encode(members | self._stamp)
        if usage is None and bytes(judged.error) == _NULL:
            self._choices_frame = Frame.around(inner, payload, chunk)
        return chunk

    def usage_chunk(self) -> bytes:
        """The extra chunk of ``stream_options.include_usage``, as JSON text."""
        return _encoder.encode({**self._stamp, "choices": (), "usage": self.usage})

    def _breaks_a_rule(self, choice: Choice) -> bool:
        index, delta, reason = choice.index, choice.delta, choice.finish_reason
        if index is None or delta is None or (index in self._seen) is (delta.role is not None):
            return True
        if reason is not None and (not reason or index in self._finished):  # not sent counts as false, too
            return True
        calls = delta.tool_calls
        return calls is not None and any(self._repeats(index, call) for call in calls)

    def _repeats(self, choice: int, call: ToolCall) -> bool:
        """Whether a tool call's delta says again what SDKs would join to what they have."""
        named = call.function is not None and call.function.name
        return (choice, call.index) in self._calls and bool(call.id or call.type or named)

    def _note(self, choice: Choice) -> None:
        index, delta = choice.index or 0, choice.delta
        if self._has_output(choice):
            self.started = True
            self.outputs += 1
            self.size += self._size_of(choice)
            for call in (delta and delta.tool_calls) or ():
                if call.index is not None:
                    self._calls.add((index, call.index))
        if choice.finish_reason or index not in self._seen:
            self._settle(index, choice.finish_reason or None)

    def _mend(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Index and delta always, role first and once, ``finish_reason`` once, a tool call's name once."""
        choices = _choices.decode(raw)
        for choice in choices:
            index = choice["index"] = choice.get("index") or 0
            delta = choice.get("delta") or {}
            role = delta.pop("role", None) or "assistant"
            choice["delta"] = delta if index in self._seen else {"role": role, **delta}
            if index in self._finished or not choice.get("finish_reason"):
                choice["finish_reason"] = None
            for call in delta.get("tool_calls") or ():
                if (index, call.get("index")) in self._calls:
                    _only_what_grows(call)
        return msgspec.Raw(_encoder.encode(choices))


def _string(raw: bytes) -> str | None:
    """The string that is all of these bytes, if they are one."""
    try:
        return _text.decode(raw) if raw[0] == raw[-1] == _QUOTE else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _only_what_grows(call: dict[str, Any]) -> None:
    call.pop("id", None)
    call.pop("type", None)
    if isinstance(call.get("function"), dict):
        call["function"].pop("name", None)
