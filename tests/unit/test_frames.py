"""Frames and envelopes: what is packed comes out again, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierfall.errors import ERROR_CLASSES, BackendFault, RateLimited, TierfallError
from tierfall.protocol.envelope import Envelope, pack, unpack
from tierfall.protocol.failure import pack_failure, unpack_failure
from tierfall.protocol.frames import Frame, FrameError, Kind, decode, encode

FRAMES = st.lists(
    st.builds(
        Frame,
        st.sampled_from(Kind),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=64),
    )
)


@given(FRAMES)
def test_frames_survive_sharing_a_message(frames: list[Frame]) -> None:
    """Any frames, joined to one message, come out in order and unchanged."""
    assert list(decode(b"".join(encode(*frame) for frame in frames))) == frames


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_a_frame_error(message: bytes) -> None:
    """The decoder meets a foreign sender's bytes with frames or a FrameError, never with anything else."""
    try:
        frames = list(decode(message))
    except FrameError:
        return
    assert b"".join(encode(*frame) for frame in frames) == message


@given(FRAMES.filter(bool), st.data())
def test_a_cut_message_is_refused(frames: list[Frame], data: st.DataObject) -> None:
    """A message that lost its end is never taken for a whole one."""
    message = b"".join(encode(*frame) for frame in frames)
    starts = {0}
    for frame in frames:
        starts.add(max(starts) + len(encode(*frame)))
    cut = data.draw(st.integers(1, len(message) - 1).filter(lambda at: at not in starts))
    with pytest.raises(FrameError):
        list(decode(message[:cut]))


def envelope() -> Envelope:
    """One with every required field."""
    return Envelope(
        stream=2**64 - 1,
        request_id="r",
        attempt=1,
        model="vllm-qwen",
        backend_model="Qwen",
        answer_id="chatcmpl-r",
        created=1,
        sent_at=2.5,
        signs_every_s=1.0,
        window=10,
        body_size=3,
    )


@given(st.binary())
def test_the_body_travels_byte_for_byte(body: bytes) -> None:
    """An envelope and its body come out as they went in."""
    assert unpack(pack(envelope(), body)) == (envelope(), body)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_a_frame_error(message: bytes) -> None:
    """What is no envelope is a FrameError."""
    try:
        unpack(message)
    except FrameError:
        return


@pytest.mark.parametrize("kind", sorted(ERROR_CLASSES.values(), key=str))
def test_every_error_crosses_a_process_border(kind: type[TierfallError]) -> None:
    """Class, message and all that was said with it arrive."""
    error = kind("what happened", param="p", code="c", status=418, retry_after=1.5, should_retry=False)
    got = unpack_failure(pack_failure(error))
    assert type(got) is kind
    assert vars(got) == vars(error)


def test_an_unknown_error_is_a_fault() -> None:
    """An error of a newer worker, or bytes that are none, count as a fault of the backend."""
    newer = pack_failure(RateLimited("x")).replace(b"rate_limited", b"from_the_future")
    assert type(unpack_failure(newer)) is BackendFault
    assert type(unpack_failure(b"\xff")) is BackendFault
