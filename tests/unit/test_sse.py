"""The SSE parser: whole payloads out, wherever the bytes were split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierfall.errors import StreamBroken
from tierfall.upstream import SSEParser

STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b'event: message\nid: 7\ndata: {"a":"\xc3\xa9"}\n\n'
    b'data:{"b":\r\ndata: 2}\r\n\r\n'
    b"retry: 10\n\n"
    b"data:\n\n"
    b'data: {"c":3}\r\r'
    b"data: [DONE]\n\n"
)
PAYLOADS = [b'{"a":"\xc3\xa9"}', b'{"b":\n2}', b'{"c":3}', b"[DONE]"]


def parse(pieces: list[bytes]) -> list[bytes]:
    """Everything that one parser makes of the pieces."""
    parser = SSEParser()
    return [payload for piece in pieces for payload in parser.feed(piece)]


def test_whole_stream() -> None:
    """Comments, other fields, empty events and every line end are understood; only payloads come out."""
    assert parse([STREAM]) == PAYLOADS


def test_byte_by_byte() -> None:
    """The same comes out when every byte arrives alone: BOM, CRLF and UTF-8 are split."""
    assert parse([STREAM[at : at + 1] for at in range(len(STREAM))]) == PAYLOADS


@given(st.sets(st.integers(0, len(STREAM))))
def test_any_split(cuts: set[int]) -> None:
    """The same comes out of any split."""
    at = [0, *sorted(cuts), len(STREAM)]
    assert parse([STREAM[a:b] for a, b in itertools.pairwise(at)]) == PAYLOADS


@given(st.lists(st.binary(max_size=40)))
def test_garbage_never_breaks_the_parser(pieces: list[bytes]) -> None:
    """Arbitrary bytes give payloads or nothing, the same as in one piece."""
    assert parse(pieces) == parse([b"".join(pieces)])


@given(
    st.lists(st.sampled_from([b"data: ", b"data:", b"data", b"\n", b"\n\n", b"\r", b"a", b": "]), max_size=20)
)
def test_any_lines_are_read_alike(parts: list[bytes]) -> None:
    """Whatever stands in its lines, a stream means the same in one piece and byte by byte."""
    stream = b"".join(parts)
    assert parse([stream]) == parse([stream[at : at + 1] for at in range(len(stream))]) == parse(parts)


def test_event_is_out_with_its_last_byte() -> None:
    """A payload does not wait for the next event, also with CR line ends."""
    assert parse([b'data: {"a":1}\n\n']) == [b'{"a":1}']
    assert parse([b'data: {"a":1}\r\r']) == [b'{"a":1}']
    assert parse([b'data: {"a":1}\r\n\r\n']) == [b'{"a":1}']


def test_only_one_space_is_taken_off() -> None:
    """The standard removes one space after the colon, no more; a field name must match exactly."""
    assert parse([b"data:  x\n\ndatax: y\n\nDATA: z\n\n"]) == [b" x"]


def test_a_field_without_colon_is_empty() -> None:
    """``data`` alone is an empty data line: a line break in a payload, and no event by itself."""
    assert parse([b"data\ndata: x\n\ndata\n\n"]) == [b"\nx"]


def test_unfinished_line_is_bounded() -> None:
    """A line without end is refused when it passes the bound, not kept for ever."""
    parser = SSEParser(max_event_bytes=100)
    parser.feed(b"data: " + b"x" * 90)
    with pytest.raises(StreamBroken, match="more than 100 bytes"):
        parser.feed(b"x" * 10)


def test_unfinished_event_is_bounded() -> None:
    """Many data lines without a blank line are refused likewise."""
    parser = SSEParser(max_event_bytes=100)
    for _ in range(10):
        parser.feed(b"data: 0123456789\n")
    with pytest.raises(StreamBroken, match="more than 100 bytes"):
        parser.feed(b"data: 0123456789\n")


def test_large_event_within_the_bound_passes() -> None:
    """An event of megabytes that arrives in small reads is put together."""
    text = b"x" * (3 * 1024 * 1024)
    parser = SSEParser()
    pieces = [text[at : at + 65536] for at in range(0, len(text), 65536)]
    for piece in [b"data: ", *pieces]:
        assert parser.feed(piece) == []
    assert parser.feed(b"\n\n") == [text]


@pytest.mark.parametrize(
    "tail", [b'data: {"a":1}', b'data: {"a":1}\n', b'data: {"a":\ndata: 1}', b"data: [DONE]"]
)
def test_last_event_without_blank_line(tail: bytes) -> None:
    """An event that lacks only the blank line is delivered at the end of the stream when it is whole."""
    parser = SSEParser()
    assert parser.feed(tail) == []
    assert parser.finish() is not None


def test_cut_event_is_a_broken_stream() -> None:
    """Half an event at the end is an error, never an answer."""
    parser = SSEParser()
    parser.feed(b'data: {"a":1}\n\ndata: {"choices":[{"del')
    with pytest.raises(StreamBroken, match="middle of an event"):
        parser.finish()


@pytest.mark.parametrize("data", [b"", b"data: 1\n\n", b": comment", b"data: 1\n\n: half a comm", b"dat"])
def test_nothing_left_at_the_end(data: bytes) -> None:
    """A stream that ends between events, or in a comment, has no last payload."""
    parser = SSEParser()
    parser.feed(data)
    assert parser.finish() is None
