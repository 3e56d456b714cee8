"""Request bodies that come in parts: how much of them may be on its way to this worker at a time.

The envelope brings the first part. For the rest the worker grants credit, so that what NATS holds for its
connection stays far below ``max_pending``: a client above that is cut off, with all its streams.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from tierfall.errors import BodyLost
from tierfall.timelimit import TimeLimit

if TYPE_CHECKING:
    from collections.abc import Callable

GRANT_BYTES: Final = 512 * 1024
"""Credit is granted in such pieces, in turn to all bodies that wait for it."""
AHEAD_BYTES: Final = 2 * GRANT_BYTES
"""What one body may have on its way: the next piece is granted while the last one arrives."""
TOTAL_BYTES: Final = 4 * 1024 * 1024
"""What all bodies together may have on their way; nats-server's ``max_pending`` is 64 MB by default."""
STALLED_AFTER_S: Final = 10.0
"""How long a granted part may take before the attempt fails; at 4 Mbit/s all that is granted takes 8 s."""


class BodyIntake:
    """Grants credit to all incoming bodies of a worker process, in turn."""

    def __init__(self) -> None:
        self._waiting: deque[IncomingBody] = deque()
        self._outstanding = 0

    @property
    def outstanding(self) -> int:
        """Bytes that are granted and have not arrived."""
        return self._outstanding

    def request(self, body: IncomingBody) -> None:
        """Puts a body in line for credit."""
        self._waiting.append(body)
        self._grant()

    def release(self, size: int) -> None:
        """So many granted bytes have arrived, or will never be sent."""
        self._outstanding -= size
        self._grant()

    def remove(self, body: IncomingBody) -> None:
        """Takes a body out of the line."""
        if body in self._waiting:
            self._waiting.remove(body)

    def _grant(self) -> None:
        while self._waiting and self._outstanding + GRANT_BYTES <= TOTAL_BYTES:
            body = self._waiting.popleft()
            self._outstanding += body.grant()
            if body.wants_credit:
                self._waiting.append(body)


class IncomingBody:
    """The body of one request, as its parts arrive.

    Args:
        intake: The process's.
        first_part: What came with the envelope.
        size: Of the whole body, in bytes.
        send_credit: Tells the ingress how many bytes it may have sent in all; None if it sends unasked.
    """

    def __init__(
        self, intake: BodyIntake, first_part: bytes, size: int, send_credit: Callable[[int], None] | None
    ) -> None:
        self._intake = intake
        self._data = bytearray(first_part)
        self._size = size
        self._send_credit = send_credit
        self._granted = len(first_part)
        self._next_part = 0
        self._loop = asyncio.get_running_loop()
        self._progress_at = self._loop.time()
        self._error: BodyLost | None = None
        self._changed = asyncio.Event()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return len(self._data) >= self._size

    @property
    def wants_credit(self) -> bool:
        """Whether more may be granted now."""
        return self._granted < self._size and self._granted - len(self._data) < AHEAD_BYTES

    def open(self) -> None:
        """Asks for what is missing."""
        if self._send_credit is not None and not self.is_whole:
            self._intake.request(self)

    def grant(self) -> int:
        """Lets the ingress send the next piece; returns its size in bytes."""
        assert self._send_credit is not None  # noqa: S101 - only such a body asks for credit
        size = min(GRANT_BYTES, self._size - self._granted)
        self._progress_at = self._loop.time()
        self._granted += size
        self._send_credit(self._granted)
        return size

    def add(self, number: int, part: bytes) -> None:
        """Takes the next part; one that is missing fails the body."""
        if self.is_whole or self._error is not None:
            return
        if number != self._next_part:
            self._error = BodyLost(f"part {self._next_part} of the request body was lost on the bus")
        elif self._send_credit is not None and len(self._data) + len(part) > self._granted:
            self._error = BodyLost("more of the request body came than was granted")
        else:
            self._next_part += 1
            self._append(part)
        self._changed.set()

    def _append(self, part: bytes) -> None:
        self._progress_at = self._loop.time()
        in_line = self.wants_credit
        self._data += part
        if self._send_credit is not None:
            if self.wants_credit and not in_line:
                self._intake.request(self)
            self._intake.release(len(part))

    async def read(self) -> bytearray:
        """The whole body, once it is there.

        Raises:
            BodyLost: A part was lost, or did not come.
        """
        while not self.is_whole:
            if self._error is not None:
                raise self._error.detached()
            self._changed.clear()
            try:
                with TimeLimit(self._loop, self._late_at - self._loop.time()):
                    await self._changed.wait()
            except TimeoutError:
                if self._loop.time() >= self._late_at:
                    raise BodyLost(
                        f"the next part of the request body did not come within {STALLED_AFTER_S:g} s"
                    ) from None
        return self._data

    @property
    def _late_at(self) -> float:
        """Loop time at which the next part is late; while the body waits for credit, none is due."""
        is_due = self._send_credit is None or self._granted > len(self._data)
        return (self._progress_at if is_due else self._loop.time()) + STALLED_AFTER_S

    def close(self) -> None:
        """Drops the data, and gives back what was granted and has not come."""
        outstanding = self._granted - len(self._data)
        self._data = bytearray()
        self._size = self._granted = 0
        if self._send_credit is not None:
            self._intake.remove(self)
            self._intake.release(outstanding)
