"""Frames: what travels between ingress and worker once a request is accepted.

One NATS message holds one or more frames, of one or of several streams. A frame is

    kind: u8 | stream: u64 | seq: u32 | length: u32 | payload

in network byte order. ``stream`` is the attempt's id, drawn by the ingress: a new attempt is a new stream,
so a late frame of a lost attempt finds nobody. ``seq`` counts a stream's frames in one direction from 0; a
gap means that NATS (at most once) lost some, and the stream is broken.

There are no NATS headers: parsing them costs more than the rest of a frame.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER: Final = struct.Struct("!BQII")
CREDIT: Final = struct.Struct("!Q")
"""The payload of CREDIT and BODY_CREDIT: a total of bytes, so that a later one makes up for a lost one."""
SEQ_LIMIT: Final = 1 << 32
STREAM_LIMIT: Final = 1 << 64


class Kind(enum.IntEnum):
    """What a frame says. 1 to 15 go from worker to ingress, 16 and up the other way."""

    ACCEPTED = 1
    """The worker holds the request; payload: its id, ASCII."""
    PROGRESS = 2
    """Alive, nothing to show; payload: what it is doing (see :data:`tierfall.worker.backend.Progress`)."""
    OUTPUT = 3
    """Real output exists though none is sent (the answer is being assembled); no payload."""
    CHUNK = 4
    """Bytes of the answer, ending at the end of an SSE event (or of the whole JSON body)."""
    PART = 5
    """As CHUNK, but the event goes on in the next frame."""
    END = 6
    """The answer is complete; payload: JSON :class:`tierfall.protocol.envelope.Ending`. Also the answer to a
    CANCEL for a client that is gone: then it says what was generated."""
    ERROR = 7
    """The attempt failed; payload: JSON :class:`tierfall.protocol.failure.Failure`."""
    BODY_CREDIT = 8
    """payload: u64, how many bytes of the request body the ingress may have sent in all."""

    LEASE = 16
    """The ingress still wants this stream; payload: the subject for an ERROR if the worker does not know it.

    The message's reply subject is for NATS's 503 alone: a worker may not publish there.
    """
    CREDIT = 17
    """payload: u64, how many bytes of this stream the client has taken in all."""
    CANCEL = 18
    """Stop the backend's work; payload: why, ASCII. To ``client_gone`` the worker answers with END."""
    BODY = 19
    """A further part of a request body, as far as BODY_CREDIT allows."""
    PING = 20
    """Asks whether the worker is there; payload: the subject for an empty answer. Reply subject as LEASE."""


class Frame(NamedTuple):
    """One decoded frame."""

    kind: Kind
    stream: int
    seq: int
    payload: bytes


class FrameError(ValueError):
    """Bytes that are no whole frames: a foreign or broken sender; the message is dropped whole."""


_KINDS: Final = {int(kind): kind for kind in Kind}


def encode(kind: Kind, stream: int, seq: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame as bytes; join several to one message."""
    return HEADER.pack(kind, stream, seq, len(payload)) + payload


def decode(message: bytes) -> Iterator[Frame]:
    """The frames of one message, in order.

    Raises:
        FrameError: On an unknown kind or bytes left over; frames before it have been yielded.
    """
    at, end = 0, len(message)
    while at < end:
        body = at + HEADER.size
        if body > end:
            raise FrameError(f"{end - at} bytes left over at {at}, too few for a frame header")
        number, stream, seq, length = HEADER.unpack_from(message, at)
        at = body + length
        kind = _KINDS.get(number)
        if kind is None or at > end:
            raise FrameError(f"no frame at byte {body - HEADER.size}: kind {number}, length {length}")
        yield Frame(kind, stream, seq, message[body:at])
