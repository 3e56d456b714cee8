"""A line: the ingress's half of one attempt's stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tierfall.errors import BackendFault, ClientGone, NoWorkers, WorkerLost
from tierfall.protocol import subjects
from tierfall.protocol.failure import unpack_failure
from tierfall.protocol.frames import CREDIT, Kind, encode

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tierfall.bus import Bus
    from tierfall.errors import TierfallError
    from tierfall.protocol.frames import Frame
    from tierfall_ingress.counts import Count
    from tierfall_ingress.switchboard import Switchboard

WINDOW_BYTES: Final = 256 * 1024
"""What a worker may send ahead of what the client has taken."""
CREDIT_EVERY_BYTES: Final = 64 * 1024
KEEP_ALIVE: Final = b": still here\n\n"


class Line:
    """Frames in, answer bytes out; whoever reads it waits on :meth:`changed`, or lets it :meth:`flow`.

    A clock, a lost worker and a client that hangs up all end a line the same way a worker's error frame does:
    with :meth:`fail`. So its reader has one thing to wait for from this side.

    Attributes:
        opened_at: Loop time when it was published.
        worker: The id of the worker that holds the request, once it has accepted.
        accepted_at: Loop time when it did.
        first_output_at: Loop time of the first real output, ``None`` before it.
        output_at: Loop time of the last one.
        doing: What the worker last said that it is doing.
        ended: Whether the answer is whole.
        error: Why there will be no (more) answer.
        count: What its worker may yet say of an answer that was given up because the client is gone.
        loop: The event loop.
    """

    __slots__ = (
        "_board",
        "_body",
        "_body_parts",
        "_body_sent",
        "_bus",
        "_chunks",
        "_credited",
        "_defect",
        "_parts",
        "_prepaid",
        "_seq",
        "_taken",
        "_waiter",
        "_write",
        "accepted",
        "accepted_at",
        "count",
        "doing",
        "ended",
        "ending",
        "error",
        "first_output_at",
        "loop",
        "opened_at",
        "output_at",
        "read_at",
        "stream",
        "tier",
        "worker",
    )

    def __init__(
        self, board: Switchboard, bus: Bus, stream: int, tier: str, body: bytes, *, sent_bytes: int
    ) -> None:
        self._board = board
        self._bus = bus
        self.loop = board.loop
        self._body = body
        self._body_sent = sent_bytes
        self._body_parts = 0
        self._chunks: list[bytes] = []
        self._parts: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._write: Callable[[bytes], bool] | None = None
        self._defect: Exception | None = None
        self._seq = 0
        self._taken = 0
        self._prepaid = 0
        self._credited = 0
        self.stream = stream
        self.tier = tier
        self.worker = ""
        self.accepted = False
        self.accepted_at = 0.0
        self.first_output_at: float | None = None
        self.output_at: float | None = None
        self.opened_at = self.read_at = self.loop.time()
        self.doing = ""
        self.ended = False
        self.ending = b""
        self.error: TierfallError | None = None
        self.count: Count | None = None

    # -- what the switchboard calls

    def feed(self, frame: Frame) -> None:
        """Takes one frame from the worker."""
        if frame.seq != self._seq:
            self.fail(WorkerLost(f"expected frame {self._seq} from the worker, got {frame.seq}"))
            return
        self._seq += 1
        kind = frame.kind
        if kind is Kind.CHUNK:
            if self._on_chunk(frame.payload):
                return
        elif kind is Kind.PART:
            self._on_part(frame.payload)
            return
        else:
            self._on_signal(kind, frame.payload)
        self._wake()

    def _on_signal(self, kind: Kind, payload: bytes) -> None:
        """Takes a frame that brings nothing of the answer."""
        if kind is Kind.ACCEPTED:
            self._on_accepted(payload)
        elif kind is Kind.BODY_CREDIT:
            self._send_body(payload)
        elif kind is Kind.PROGRESS:
            self.doing = payload.decode("ascii", "replace")
        elif kind is Kind.OUTPUT:
            self._on_output()
        elif kind is Kind.END:
            self.ended = True
            self.ending = payload
            self._board.forget(self)
        elif kind is Kind.ERROR:
            error = unpack_failure(payload)
            if isinstance(error, ClientGone):  # only the ingress knows that, and answers nobody then
                error = BackendFault("the worker reported an error that is not a worker's")
            self._finish(error)

    def check(self) -> None:
        """Raises why there will be no (more) answer, if so."""
        if self.error is not None:
            raise self.error.detached()

    def nudge(self) -> None:
        """Wakes the reader, to look at something else."""
        self._wake()

    def no_responders(self) -> None:
        """NATS says that nobody is in the tier's queue group."""
        self._finish(NoWorkers("no worker took the request"))
        self._wake()

    def keep_alive(self) -> None:
        """Sends an SSE comment, which clients skip, if the next of the answer is waited for."""
        if self._write is not None and not self._pass_on(self._write, KEEP_ALIVE):
            self._wake()

    # -- what the attempt calls

    def fail(self, error: TierfallError) -> None:
        """Ends the line from this side. Does nothing to one that has ended.

        The worker is told to stop; one that has not said yet that it holds the request is turned down when
        it does (the switchboard finds no line for it).
        """
        if self.error is None and not self.ended:
            if self.worker and self._bus.connected:
                self._control(Kind.CANCEL, 0, error.slug.encode())
                if isinstance(error, ClientGone):
                    self.count = self._board.counts.expect(self.stream, self.worker)
            self._finish(error)
            self._wake()

    async def changed(self) -> None:
        """Waits for the next frame or end."""
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def flow(self, write: Callable[[bytes], bool]) -> None:
        """Lets chunks go straight to ``write``, until that has no room for more, or the line ends.

        Its reader sleeps meanwhile: to wake it for each chunk would cost as much as all else that the
        ingress does with one.
        """
        self._write = write
        try:
            await self.changed()
        finally:
            self._write = None
        if self._defect is not None:
            defect, self._defect = self._defect, None
            try:
                raise defect
            finally:
                del defect  # its traceback holds this frame

    @property
    def began(self) -> bool:
        """Whether any byte of the answer has come."""
        return bool(self._taken or self._chunks or self._parts)

    @property
    def readable(self) -> bool:
        """Whether :meth:`take` has something."""
        return bool(self._chunks)

    def take(self) -> bytes:
        """All the bytes that are there, as one; grants the worker credit for them."""
        chunks, self._chunks = self._chunks, []
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        prepaid, self._prepaid = self._prepaid, 0
        self._credit(len(data) - prepaid, self.loop.time())
        return data

    # -- inside

    def _on_chunk(self, data: bytes) -> bool:
        """A chunk is whole; whether it went straight through, so that nobody has to wake for it."""
        self._on_output()
        write = self._write
        if write is None:
            if self._parts:
                self._chunks += self._parts
                self._prepaid += sum(map(len, self._parts))
                self._parts.clear()
            self._chunks.append(data)
            return False
        self._credit(len(data), self.output_at or 0.0)
        if self._parts:
            data = b"".join([*self._parts, data])
            self._parts.clear()
        return self._pass_on(write, data)

    def _on_part(self, data: bytes) -> None:
        """A piece of a chunk larger than the window: credited at once, or the rest could never come."""
        self._on_output()
        self._parts.append(data)
        self._credit(len(data), self.output_at or 0.0)

    def _pass_on(self, write: Callable[[bytes], bool], data: bytes) -> bool:
        try:
            roomy = write(data)
        except Exception as error:  # noqa: BLE001 - it is its reader's defect, so the reader is to hear of it
            self._defect = error
            roomy = False
        if not roomy:
            self._write = None
        return roomy

    def _credit(self, size: int, now: float) -> None:
        self._taken += size
        self.read_at = now
        if self._taken - self._credited >= CREDIT_EVERY_BYTES and not self.ended and self._bus.connected:
            self._credited = self._taken
            self._control(Kind.CREDIT, 0, CREDIT.pack(self._taken))

    def _on_output(self) -> None:
        self.output_at = self.loop.time()
        if self.first_output_at is None:
            self.first_output_at = self.output_at

    def _on_accepted(self, name: bytes) -> None:
        worker = name.decode("ascii", "replace")
        if self.accepted or not subjects.WORKER_ID.fullmatch(worker):
            self.fail(WorkerLost("the request was accepted twice, or by a worker that cannot be addressed"))
            return
        self.accepted = True
        self.accepted_at = self.loop.time()
        self.worker = worker

    def _send_body(self, credit: bytes) -> None:
        """Sends more of the body, as far as the worker allows."""
        if not self.accepted or len(credit) != CREDIT.size:
            self.fail(WorkerLost("the worker asked for the request body in a way that cannot be read"))
            return
        allowed = min(CREDIT.unpack(credit)[0], len(self._body))
        while self._body_sent < allowed:
            end = min(self._body_sent + self._board.part_bytes, allowed)
            self._control(Kind.BODY, self._body_parts, self._body[self._body_sent : end])
            self._body_parts += 1
            self._body_sent = end
        if self._body_sent >= len(self._body):
            self._body = b""

    def _control(self, kind: Kind, seq: int, payload: bytes) -> None:
        self._bus.publish(subjects.control(self.worker), encode(kind, self.stream, seq, payload))

    def _finish(self, error: TierfallError) -> None:
        self.error = error
        self._board.forget(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
