"""What a body may hold: bounds that are cheap to check, so that reading a body costs about what it weighs.

A body of thirty megabytes can hold ten million empty messages. To make an object of each costs a gigabyte
and holds up every other request for seconds, for the ingress and again for the worker. So the values of a
body are counted before it is parsed, in slices between which the event loop goes on.
"""

from __future__ import annotations

import asyncio
import codecs
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from tierfall.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    Steps = Generator[None, None, "T"]

SLICE_BYTES: Final = 1024 * 1024
"""What is looked at in one go: some milliseconds."""
MAX_VALUES: Final = 1_000_000
"""Commas and opening brackets of a body that is larger than one slice, also those in its texts. A text with
so many has more tokens than the context of nearly every model."""
MAX_ITEMS: Final = 20_000
"""Messages of a request, parts of their content, tool calls in them, prompts, inputs."""
MAX_BESIDE_VALUES: Final = 200_000
"""Commas beside the messages, the prompts or the inputs: in tools, schemas and unknown fields."""
MAX_BESIDE_BYTES: Final = 1024 * 1024
"""Of members of messages that are not known here, over all messages."""
MESSAGE_BYTES: Final = 256
"""Allowed for the names and signs of each message, beyond that."""
_LEAST_ITEM_BYTES: Final = 2
_ABSENT: Final = msgspec.Raw(b"")


class _Outer(msgspec.Struct):
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT


class _Message(msgspec.Struct):
    content: msgspec.Raw = _ABSENT
    tool_calls: msgspec.Raw = _ABSENT
    function_call: msgspec.Raw = _ABSENT
    reasoning_content: msgspec.Raw = _ABSENT
    reasoning: msgspec.Raw = _ABSENT
    reasoning_details: msgspec.Raw = _ABSENT
    refusal: msgspec.Raw = _ABSENT
    audio: msgspec.Raw = _ABSENT


T = TypeVar("T")

_outer: Final = msgspec.json.Decoder(_Outer)
_messages: Final = msgspec.json.Decoder(list[_Message])
_listed: Final = msgspec.json.Decoder(list[msgspec.Raw])


def at_once(steps: Steps[T]) -> T:
    """What such a generator returns, without pauses."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: T = done.value
            return found


async def with_pauses(steps: Steps[T]) -> T:
    """What such a generator returns; the event loop goes on with other work in between."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: T = done.value
            return found
        await asyncio.sleep(0)


def check_utf8(body: bytes) -> Iterator[None]:
    """The parser does not look into strings that it skips. Yields after each slice, as all that follows.

    Raises:
        InvalidRequest: The body is not UTF-8.
    """
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), SLICE_BYTES):
        end = start + SLICE_BYTES
        kept = len(decoder.getstate()[0])
        try:
            decoder.decode(body[start:end], final=end >= len(body))
        except UnicodeDecodeError as error:
            at = start - kept + error.start
            raise InvalidRequest(f"the body is not UTF-8: byte {at} cannot be decoded") from None
        if end < len(body):
            yield


def count_commas(body: bytes) -> Generator[None, None, int]:
    """Counts what a body may hold, before it is parsed.

    Returns:
        Its commas, also those in its texts: no array or object has more members than that, and one. Of a body
        that is too small to hold :data:`MAX_ITEMS` of anything they are not counted.

    Raises:
        InvalidRequest: It is more than any model reads.
    """
    if len(body) <= MAX_ITEMS * _LEAST_ITEM_BYTES:
        return 0
    if len(body) <= SLICE_BYTES:
        return body.count(b",")
    commas = brackets = 0
    for start in range(0, len(body), SLICE_BYTES):
        end = start + SLICE_BYTES
        commas += body.count(b",", start, end)
        brackets += body.count(b"[", start, end) + body.count(b"{", start, end)
        if commas + brackets > MAX_VALUES:
            raise InvalidRequest(
                f"the body has more than {MAX_VALUES} commas and brackets; send less data in one request"
            )
        yield
    return commas


def check_items(body: bytes, commas: int) -> Iterator[None]:
    """The bounds of what is not counted while a body is read; it has been parsed, so it is valid.

    Raises:
        InvalidRequest: One is passed; ``param`` names the place.
    """
    if commas < MAX_ITEMS:
        return  # nothing can have so many of anything
    outer = _outer.decode(body)
    yield
    yield from _check_beside(outer, commas)
    if bytes(memoryview(outer.messages)[:1]) == b"[":
        yield from _check_messages(outer.messages)


def too_many(what: str, param: str) -> InvalidRequest:
    """The error for more than :data:`MAX_ITEMS` of something."""
    return InvalidRequest(f"more than {MAX_ITEMS} {what}", param=param)


def check_texts(raw: msgspec.Raw, field: str, commas: int) -> Iterator[None]:
    """Counts the texts of an array of prompts or inputs, before an object is made of each.

    Raises:
        InvalidRequest: There are too many.
    """
    if commas < MAX_ITEMS:
        return
    # A quote behind a backslash is escaped, or the end of a text whose last character is one: so there are at
    # least half as many texts as other quotes, and at most as many.
    quotes, view, before = 0, memoryview(raw), b""
    for start in range(0, len(view), SLICE_BYTES):
        part = before + bytes(view[start : start + SLICE_BYTES])
        quotes += part.count(b'"') - part.count(b'\\"')
        before = b"\\" if part.endswith(b"\\") else b""
        yield
    if quotes > 2 * MAX_ITEMS:
        raise too_many("texts", field)


def _check_beside(outer: _Outer, commas: int) -> Iterator[None]:
    beside = commas
    for raw in (outer.messages, outer.prompt, outer.input):
        view = memoryview(raw)
        for start in range(0, len(view), SLICE_BYTES):
            beside -= bytes(view[start : start + SLICE_BYTES]).count(b",")
            yield
    if beside > MAX_BESIDE_VALUES:
        raise InvalidRequest(
            f"more than {MAX_BESIDE_VALUES} values beside messages, prompts and inputs: in tools, schemas or "
            "other fields"
        )


def _check_messages(raw: msgspec.Raw) -> Iterator[None]:
    try:
        messages = _messages.decode(raw)
    except msgspec.ValidationError:
        return  # not of chats, whose messages have been checked: no other operation reads them
    yield
    size, parts, calls = memoryview(raw).nbytes, 0, 0
    for number, message in enumerate(messages):
        for each in _fields(message):
            size -= memoryview(each).nbytes
        parts += _length(message.content)
        if parts > MAX_ITEMS:
            raise too_many("parts in the messages' content", f"messages[{number}].content")
        calls += _length(message.tool_calls)
        if calls > MAX_ITEMS:
            raise too_many("tool calls in the messages", f"messages[{number}].tool_calls")
        if number % 1000 == 0:
            yield
    if size > MAX_BESIDE_BYTES + len(messages) * MESSAGE_BYTES:
        raise InvalidRequest(
            f"the messages have more than {MAX_BESIDE_BYTES} bytes in members beside their content and calls",
            param="messages",
        )


def _fields(message: _Message) -> tuple[msgspec.Raw, ...]:
    found: tuple[Any, ...] = msgspec.structs.astuple(message)
    return found


def _length(raw: msgspec.Raw) -> int:
    """How many items an array has; 0 for anything else."""
    return len(_listed.decode(raw)) if bytes(memoryview(raw)[:1]) == b"[" else 0
