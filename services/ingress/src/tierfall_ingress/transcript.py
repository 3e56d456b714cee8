"""What a client has read of a streamed answer: what a broken stream is resumed from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.chat.weight import text_bytes, tokens, utf8_bytes
from tierfall.protocol.envelope import Resume
from tierfall_ingress.line import KEEP_ALIVE

if TYPE_CHECKING:
    from tierfall_ingress.ask import Ask

UNREAD_BYTES: Final = 4 * 1024
"""Events that are kept as they were sent. Reading each at once would cost every stream for the few that
break; reading none before the end would take forty times the memory of their text."""
TEXT_LIMIT: Final = 128 * 1024
"""Characters of text that travel with a resumed request; they share a message with its body."""
_EVENT: Final = b"data: "
_END: Final = b"\n\n"
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""JSON may pass through unread that no parser can hold: a number above all floats, deep nesting."""
_GUIDED: Final = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_FALSE: Final = frozenset({b"null", b"false", b"0", b'""', b"{}", b"[]"})
"""Values that ask for nothing."""
_NULL: Final = b"null"
_body: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None
    refusal: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether it is text, the one part of an answer that can be continued in the middle."""
        return not (self.tool_calls or self.function_call or self.audio or self.refusal)


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: Any = None
    logprobs: Any = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None


class _Form(msgspec.Struct):
    type: Any = None


_NO_DELTA: Final = _Delta()
_form: Final = msgspec.json.Decoder(_Form)
_chunks: Final = msgspec.json.Decoder(list[_Chunk])


class Transcript:
    """The events sent to one client: the last ones kept as bytes, the text of those before."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._characters = 0
        self._events = 0
        self._outputs = 0
        self._size = 0
        self._finished: set[int] = set()
        self._readable = True
        self._continuable = True

    def add(self, events: bytes) -> None:
        """Whole events, as they were sent."""
        self._unread += events
        if len(self._unread) > UNREAD_BYTES:
            self._read()

    @property
    def events(self) -> int:
        """How many events were sent."""
        self._read()
        return self._events

    @property
    def tokens(self) -> int:
        """At least how many tokens were sent."""
        return tokens(self.events, self._size)

    def finished(self, choices: int) -> bool:
        """Whether the client has the ``finish_reason`` of all its choices: nothing is missing but usage."""
        self._read()
        return self._readable and len(self._finished) >= choices

    def resume(self) -> Resume | None:
        """The point to go on from; None when this answer cannot be continued by another."""
        self._read()
        if not self._continuable:
            return None
        return Resume(
            content="".join(self._content), reasoning="".join(self._reasoning), outputs=self._outputs
        )

    def _read(self) -> None:
        """Reads all events as one JSON array: no line break stands in one, so where one ends can be seen."""
        events, self._unread = bytes(self._unread).replace(KEEP_ALIVE, b""), bytearray()
        array = b"[%b]" % events.removeprefix(_EVENT).removesuffix(_END).replace(_END + _EVENT, b",")
        try:
            chunks = _chunks.decode(array)
        except _UNREADABLE:
            self._events += events.count(_END)
            self._readable = False
            self._give_up()
            return
        self._events += len(chunks)
        for chunk in chunks:
            for choice in chunk.choices or ():
                delta = choice.delta or _NO_DELTA
                self._size += utf8_bytes(delta.content or choice.text)
                if delta.reasoning_content or delta.reasoning or not delta.is_plain:
                    self._size += _further_bytes(delta)
                if choice.finish_reason:
                    self._finished.add(choice.index)
                if self._continuable:
                    self._take(choice, delta)
        self._content, self._reasoning = ["".join(self._content)], ["".join(self._reasoning)]

    def _take(self, choice: _Choice, delta: _Delta) -> None:
        text = delta.content or choice.text or ""
        thought = delta.reasoning_content or delta.reasoning or ""
        plain = delta.is_plain and isinstance(text, str) and isinstance(thought, str)
        if choice.index or choice.logprobs or not plain:
            self._give_up()
            return
        self._content.append(text)
        self._reasoning.append(thought)
        self._outputs += bool(text or thought)
        self._characters += len(text) + len(thought)
        if self._characters > TEXT_LIMIT:
            self._give_up()

    def _give_up(self) -> None:
        """This answer cannot be continued: its text is of no use any more."""
        self._continuable = False
        self._content.clear()
        self._reasoning.clear()


def _further_bytes(delta: _Delta) -> int:
    """What a model wrote beside the content."""
    return text_bytes({**msgspec.structs.asdict(delta), "content": None})


def may_resume(ask: Ask) -> bool:
    """Whether a request's answer is plain text, which alone can be gone on with.

    Never several choices, log probabilities, or an answer bound to a schema or grammar: its automaton would
    begin anew in the middle.
    """
    try:
        asked = _body.decode(ask.body)
    except _UNREADABLE:
        return False
    logprobs, best_of = (bytes(asked.get(name, _NULL)) for name in ("logprobs", "best_of"))
    return not (
        ask.choices != 1
        or logprobs not in {_NULL, b"false"}  # a completion's 0 asks for some
        or best_of not in _FALSE | {b"1"}
        or _is_bound(asked.get("response_format"))
        or any(name in asked for name in _GUIDED)
        or any(bytes(asked.get(name, _NULL)) not in _FALSE for name in ("structured_outputs", "grammar"))
    )


def _is_bound(form: msgspec.Raw | None) -> bool:
    """Whether this ``response_format`` is one that is more than text."""
    try:
        return form is not None and _form.decode(form).type != "text"
    except _UNREADABLE:
        return False  # no object: whatever the backend made of it, it was no schema
