"""The way back: one reply per stream, and the outbox that lets them share NATS messages."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.errors import StreamBroken
from tierfall.protocol.failure import pack_failure
from tierfall.protocol.frames import CREDIT, HEADER, SEQ_LIMIT, Kind, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierfall.bus import Bus
    from tierfall.errors import TierfallError
    from tierfall.protocol.envelope import Ending

SHARE_WITHIN_S: Final = 0.003
"""How long a frame that is not urgent waits for others: 3 ms takes a third off the CPU per chunk."""
PENDING_LIMIT_BYTES: Final = 1024 * 1024
"""What one stream may pile up for a slow client before its backend is no longer read."""
_encoder: Final = msgspec.json.Encoder()


class Outbox:
    """Sends the frames of all streams of this process, those of one ingress in shared messages.

    A shared message goes to the reply subject of one of its streams: a worker may be allowed no other
    subject than those it was asked to answer on, and the ingress tells streams apart by their frames.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._homes: dict[str, dict[Reply, None]] = {}
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        bus.on_state(self._on_bus_state)

    def touch(self, reply: Reply, *, urgent: bool) -> None:
        """Notes that a reply has something to send, at the end of this loop turn or within 3 ms."""
        self._homes.setdefault(reply.home, {})[reply] = None
        if urgent:
            if self._soon is None:
                self._soon = self._loop.call_soon(self._flush)
        elif self._later is None and self._soon is None:
            self._later = self._loop.call_later(SHARE_WITHIN_S, self._flush)

    def _flush(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
        if self._later is not None:
            self._later.cancel()
        self._soon = self._later = None
        if not self._bus.connected:
            return  # kept: a frame taken and lost would be a gap, and the stream broken for nothing
        homes, self._homes = self._homes, {}
        for replies in homes.values():
            self._send(replies)

    def _send(self, replies: dict[Reply, None]) -> None:
        limit = self._bus.max_payload
        message: list[bytes] = []
        size, subject = 0, ""
        for reply in replies:
            for frame in reply.take(limit):
                if message and size + len(frame) > limit:
                    self._bus.publish(subject, b"".join(message))
                    message, size = [], 0
                message.append(frame)
                size += len(frame)
                subject = reply.subject
        if message:
            self._bus.publish(subject, b"".join(message))

    def _on_bus_state(self, connected: bool) -> None:  # noqa: FBT001 - the bus's listener signature
        if connected and self._homes and self._soon is None:
            self._soon = self._loop.call_soon(self._flush)


class Reply:
    """The sending half of one stream: frames in order, within the window that the ingress granted.

    Args:
        outbox: Where it says that it has something to send.
        subject: The request's reply subject.
        stream: The attempt's id.
        window: Bytes that may be sent before the first credit.
        on_done: Called once, when nothing is left to send.
    """

    def __init__(
        self, outbox: Outbox, subject: str, stream: int, window: int, on_done: Callable[[], object]
    ) -> None:
        self._outbox = outbox
        self._on_done = on_done
        self._stream = stream
        self._window = window
        self._taken = 0
        self._sent = 0
        self._seq = 0
        self._ready: list[bytes] = []
        self._pending: deque[bytes | memoryview] = deque()
        self._pending_bytes = 0
        self._grew = False
        self._last: tuple[Kind, bytes] | None = None
        self._muted = False
        self._drained = asyncio.Event()
        self._drained.set()
        self.subject = subject
        self.home = subject.rpartition(".")[0]

    def accepted(self, worker: str, *, urgent: bool) -> None:
        """The request has a slot; unless it is urgent, a fast answer takes the word along."""
        self._control(Kind.ACCEPTED, worker.encode(), urgent=urgent)

    def progress(self, doing: str) -> None:
        """Alive, nothing to show."""
        self._control(Kind.PROGRESS, doing.encode("ascii", "replace"))

    def grant_body(self, total_bytes: int) -> None:
        """The ingress may have sent so many bytes of the request body in all."""
        self._control(Kind.BODY_CREDIT, CREDIT.pack(total_bytes))

    def output(self) -> None:
        """The answer grows, though it is not sent before it is whole; if it is at once, that says enough."""
        self._grew = True
        self._outbox.touch(self, urgent=False)

    def write(self, data: bytes) -> None:
        """Whole SSE events, or the whole JSON body."""
        if self._muted:
            return
        first = not self._sent and not self._pending
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > PENDING_LIMIT_BYTES:
            self._drained.clear()
        self._outbox.touch(self, urgent=first)

    @property
    def is_full(self) -> bool:
        """Whether more should not be written before :meth:`room`."""
        return self._pending_bytes > PENDING_LIMIT_BYTES

    async def room(self) -> None:
        """Waits until the client has taken enough for more to be written."""
        await self._drained.wait()

    def end(self, ending: Ending) -> None:
        """The answer is whole; goes out after all that was written."""
        self._finish(Kind.END, _encoder.encode(ending))

    def fail(self, error: TierfallError) -> None:
        """The attempt failed; goes out after all that was written."""
        self._finish(Kind.ERROR, pack_failure(error))

    def drop(self) -> None:
        """Nobody waits any longer: nothing more is sent."""
        self.mute()
        self._last = None
        self._on_done()

    def mute(self) -> None:
        """Nobody reads the answer any longer: how it ends is all that is still sent."""
        self._muted = True
        self._ready.clear()
        self._pending.clear()
        self._pending_bytes = 0
        self._grew = False
        self._drained.set()

    def credit(self, payload: bytes) -> None:
        """The ingress says how many bytes the client has taken in all."""
        if len(payload) == CREDIT.size:
            self._taken = max(self._taken, CREDIT.unpack(payload)[0])
            self._outbox.touch(self, urgent=False)

    def take(self, limit: int) -> list[bytes]:
        """The frames that may go out now, none above ``limit`` bytes; called when the outbox sends them."""
        frames, self._ready = self._ready, []
        room = self._window - (self._sent - self._taken)
        if self._pending and room > 0:
            self._send_pending(frames, room, limit - HEADER.size)
        elif self._grew:
            frames.append(self._frame(Kind.OUTPUT, b""))
        self._grew = False
        if self._last is not None and not self._pending:
            kind, payload = self._last
            if len(payload) > limit - HEADER.size:  # a backend may choose the length of what stands in it
                kind, payload = Kind.ERROR, pack_failure(StreamBroken("the answer's end is too large"))
            frames.append(self._frame(kind, payload))
            self._last = None
            self._on_done()
        return frames

    def _send_pending(self, frames: list[bytes], room: int, limit: int) -> None:
        """Moves what fits into ``room`` bytes into frames: whole writes, or parts of one that is too large.

        Credit comes in steps, so ``room`` may never reach the whole window; half of it always does.
        """
        pending, left = self._pending, room
        whole: list[bytes | memoryview] = []
        while pending and len(pending[0]) <= left:
            left -= len(pending[0])
            whole.append(pending.popleft())
        if whole:
            self._frame_whole(frames, whole[0] if len(whole) == 1 else b"".join(whole), limit)
        if pending and left and len(pending[0]) > self._window // 2:
            data = memoryview(pending.popleft())
            pending.appendleft(data[left:])
            frames += [
                self._frame(Kind.PART, data[start : min(start + limit, left)])
                for start in range(0, left, limit)
            ]
            left = 0
        self._sent += room - left
        was_full = self.is_full
        self._pending_bytes -= room - left
        if was_full and not self.is_full:
            self._drained.set()

    def _frame_whole(self, frames: list[bytes], data: bytes | memoryview, limit: int) -> None:
        while len(data) > limit:
            frames.append(self._frame(Kind.PART, data[:limit]))
            data = data[limit:]
        frames.append(self._frame(Kind.CHUNK, data))

    def _frame(self, kind: Kind, payload: bytes | memoryview) -> bytes:
        frame = encode(kind, self._stream, self._seq, payload)
        self._seq = (self._seq + 1) % SEQ_LIMIT
        return frame

    def _control(self, kind: Kind, payload: bytes, *, urgent: bool = True) -> None:
        self._ready.append(self._frame(kind, payload))
        self._outbox.touch(self, urgent=urgent)

    def _finish(self, kind: Kind, payload: bytes) -> None:
        self._last = (kind, payload)
        self._outbox.touch(self, urgent=True)
