"""The first message of an attempt (the envelope and the body) and the last frame's payload."""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec

from tierfall.protocol.frames import STREAM_LIMIT, FrameError
from tierfall.protocol.operation import Operation

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""What may be added to a counter: a backend that counts a negative number of tokens has not counted."""
_LENGTH: Final = struct.Struct("!I")


class Resume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the client has of an answer whose stream broke."""

    content: str
    reasoning: str = ""
    outputs: int = 0
    """How many chunks it came in: an estimate of its tokens."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker has to know besides the raw body.

    ``sent_at`` is the ingress's own clock, never the time of day: a worker compares it with ``sent_at`` of
    other requests from the same ingress, to find those that NATS delivered late (a request can lie in a
    buffer while the server or the worker is frozen). ``body_size`` says how many bytes the body has in all:
    what is missing here follows as BODY frames on the worker's control subject, by BODY_CREDIT.
    """

    stream: int
    request_id: str
    attempt: int
    """Counts the request's attempts over all tiers, from 1."""
    model: str
    """The configured name, which every chunk of the answer carries."""
    backend_model: str
    operation: Operation = Operation.CHAT
    choices: int = 1
    """How many answers are asked for: ``n`` for each prompt, or as many as there are inputs to embed."""
    max_tokens: Count | msgspec.UnsetType | None = msgspec.UNSET
    """The limit of each answer, or None for none: the worker writes it into what its backend gets, in place
    of all that the body says of it. Unset by an ingress that does not read it."""
    answer_id: str
    """``id`` of the answer: the same for every attempt, so also when two tiers contribute."""
    created: int
    """Unix seconds, likewise."""
    streaming: bool = False
    """Whether the client wants SSE; otherwise the worker assembles one JSON body."""
    include_usage: bool = False
    """Whether the client wants the usage chunk."""
    sent_at: float
    """Seconds on the clock of :func:`tierfall.protocol.age.clock`, in the ingress."""
    fresh: bool = False
    """The ingress has just sent it again because a worker found it late: it must not be judged once more."""
    signs_every_s: float
    """How often a worker that assembles the answer has to say that it grows: well within the idle clock."""
    window: int
    """Bytes that may be sent before the first CREDIT."""
    body_size: int
    body_on_credit: bool = False
    """Whether the ingress waits for BODY_CREDIT before it sends what is missing of the body."""
    traceparent: str = ""
    resume: Resume | None = None
    """Set when this attempt goes on with an answer that another attempt began."""


class Ending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an answer ended, for metrics, logs and limits; ``usage`` in OpenAI's terms.

    A worker also sends it of an answer that was given up because the client is gone.
    """

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    finish_reasons: tuple[str, ...] = ()
    estimated: bool = False
    """Whether the backend has not counted: then the answer has at least so many tokens, and those of the
    prompt are not known."""


_encoder: Final = msgspec.json.Encoder()
_envelope: Final = msgspec.json.Decoder(Envelope)
_ending: Final = msgspec.json.Decoder(Ending)


def pack(envelope: Envelope, body: bytes) -> bytes:
    """``u32 length of the envelope | envelope as JSON | body or its first part``."""
    head = _encoder.encode(envelope)
    return _LENGTH.pack(len(head)) + head + body


def unpack(message: bytes) -> tuple[Envelope, bytes]:
    """The reverse of :func:`pack`.

    Raises:
        FrameError: The bytes are no envelope.
    """
    if len(message) < _LENGTH.size:
        raise FrameError("too short for an envelope")
    start = _LENGTH.size + _LENGTH.unpack_from(message)[0]
    if start > len(message):
        raise FrameError("the envelope is cut off")
    try:
        envelope = _envelope.decode(memoryview(message)[_LENGTH.size : start])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"no envelope: {error}") from None
    if not 0 <= envelope.stream < STREAM_LIMIT:
        raise FrameError("no envelope: its stream's id does not fit a frame")
    return envelope, message[start:]


def unpack_ending(payload: bytes) -> Ending:
    """The payload of an END frame; one that cannot be read says nothing."""
    try:
        return _ending.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Ending()
