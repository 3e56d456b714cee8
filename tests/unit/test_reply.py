"""The sending half of a stream: it never stalls for ever, and one reply's defect is not the others'."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fakes.polling import until
from tierfall.bus.bus import PAYLOAD_RESERVE_SHARE
from tierfall.bus.dialer import MIN_PAYLOAD_BYTES
from tierfall.chat import ChunkStream
from tierfall.errors import PayloadTooLarge
from tierfall.protocol.envelope import Ending
from tierfall.protocol.frames import CREDIT, HEADER, Kind, decode
from tierfall.worker.reply import Outbox, Reply
from tierfall_ingress.line import CREDIT_EVERY_BYTES, WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PAYLOAD = 60 * 1024


class FakeBus:
    """Keeps what is published."""

    connected = True
    max_payload = MAX_PAYLOAD

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def on_state(self, listener: Callable[[bool], None]) -> None:
        """As the bus's."""

    def publish(self, _subject: str, payload: bytes) -> None:
        """As the bus's."""
        if len(payload) > self.max_payload:
            raise PayloadTooLarge(str(len(payload)))
        self.sent.append(payload)


class Reader:
    """The ingress's side: credits PARTs at once and CHUNKs when they are taken, each 64 KiB."""

    def __init__(self) -> None:
        self.answer = bytearray()
        self.unread: deque[int] = deque()
        self.taken = self.credited = 0
        self.ended = False

    def feed(self, message: bytes) -> None:
        """A message of the worker."""
        for frame in decode(message):
            assert not self.ended
            if frame.kind is Kind.PART:
                self.taken += len(frame.payload)
            elif frame.kind is Kind.CHUNK:
                self.unread.append(len(frame.payload))
            self.ended = frame.kind is Kind.END
            if not self.ended:
                self.answer += frame.payload

    def credit(self) -> bytes | None:
        """The payload of a CREDIT frame, when one is due."""
        if self.taken - self.credited < CREDIT_EVERY_BYTES:
            return None
        self.credited = self.taken
        return CREDIT.pack(self.taken)


class Idle:
    """An outbox that only notes."""

    def touch(self, reply: Reply, *, urgent: bool) -> None:
        """As the outbox's."""


SIZES = st.one_of(
    st.integers(0, 3 * WINDOW_BYTES),
    st.sampled_from(
        [WINDOW_BYTES // 2 + d for d in (-1, 0, 1)]
        + [WINDOW_BYTES + d for d in (-1, 0, 1)]
        + [CREDIT_EVERY_BYTES + d for d in (-1, 0, 1)]
        + [WINDOW_BYTES - CREDIT_EVERY_BYTES + d for d in (-1, 0, 1)]
    ),
)
STEPS = st.lists(st.one_of(SIZES, st.sampled_from(["send", "read", "credit"])), max_size=40)


@given(STEPS, st.sampled_from([4096, MAX_PAYLOAD, 8 * 1024 * 1024]))
def test_no_order_of_writes_and_credits_stalls(steps: list[Any], limit: int) -> None:
    """However writes, sends and reads take turns: a reader that goes on reading gets all of it, and END."""
    done: list[bool] = []
    reply = Reply(Idle(), "inbox.1", 1, WINDOW_BYTES, lambda: done.append(True))  # type: ignore[arg-type]
    reader, written = Reader(), 0

    def act(step: object) -> None:
        if isinstance(step, int):
            nonlocal written
            reply.write(bytes([written % 251]) * step)
            written += step
        elif step == "send":
            for frame in reply.take(limit):
                assert len(frame) <= limit
                reader.feed(frame)
        elif step == "read" and reader.unread:
            reader.taken += reader.unread.popleft()
        elif (credit := reader.credit()) is not None:
            reply.credit(credit)

    for step in steps:
        act(step)
    reply.end(Ending())
    for _ in range(4 * len(steps) + 4 * written // CREDIT_EVERY_BYTES + 8):
        act("send")
        while reader.unread:
            act("read")
        act("credit")
    assert reader.ended
    assert len(reader.answer) == written
    assert done == [True]
    assert not reply.is_full


async def test_a_last_word_that_is_too_large_harms_no_other_stream() -> None:
    """What share a message would be lost with it."""
    bus = FakeBus()
    outbox = Outbox(bus)  # type: ignore[arg-type]
    first, second = (Reply(outbox, f"inbox.{stream}", stream, WINDOW_BYTES, bool) for stream in (1, 2))
    first.end(Ending(finish_reasons=("x" * MAX_PAYLOAD,)))
    second.end(Ending())
    await until(lambda: bool(bus.sent))
    frames = [frame for message in bus.sent for frame in decode(message)]
    assert [(frame.stream, frame.kind) for frame in frames] == [(1, Kind.ERROR), (2, Kind.END)]


def test_a_backend_chooses_no_size_of_the_ending() -> None:
    """Neither by the length of a reason nor by the number of choices."""
    chunks = ChunkStream("id", 1, "m")
    for index in range(1000):
        choice = {"index": index, "delta": {}, "finish_reason": "\x01" * 1000}
        chunks.feed(json.dumps({"choices": [choice]}).encode())
    ending = msgspec.json.encode(Ending(finish_reasons=chunks.finish_reasons))
    assert len(ending) < MIN_PAYLOAD_BYTES - MIN_PAYLOAD_BYTES // PAYLOAD_RESERVE_SHARE - HEADER.size
