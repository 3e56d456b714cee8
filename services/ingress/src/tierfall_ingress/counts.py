"""What workers counted of answers that were given up: it comes after their request has ended.

A client that hangs up pays for what was generated until then, and only the worker knows that: it sees the
chunks that were on their way, and the usage that comes behind the last one. So it answers a CANCEL that says
that the client is gone with an END frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tierfall.protocol.envelope import unpack_ending
from tierfall.protocol.frames import Kind

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tierfall.protocol.envelope import Ending
    from tierfall.protocol.frames import Frame

COUNT_S: Final = 3.0
"""How long a worker may take: it waits up to 2 s for the usage behind a complete answer."""


class Count:
    """One worker's word, once it is there; None when it does not come.

    Args:
        worker: The worker's id.
    """

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._known = False
        self._ending: Ending | None = None
        self._then: Callable[[Ending | None], None] | None = None

    def then(self, use: Callable[[Ending | None], None]) -> None:
        """Calls ``use`` with it, once: now, or as soon as it is known that it comes or does not."""
        if self._known:
            use(self._ending)
        else:
            self._then = use

    def settle(self, ending: Ending | None) -> None:
        """It is there, or will not come; the first word counts."""
        if self._known:
            return
        self._known, self._ending = True, ending
        use, self._then = self._then, None
        if use is not None:
            use(ending)


class LateCounts:
    """All that are waited for, by stream."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: dict[int, tuple[Count, asyncio.TimerHandle]] = {}

    def expect(self, stream: int, worker: str) -> Count:
        """The worker knows that the client is gone, and may send its count."""
        count = Count(worker)
        self._open[stream] = count, self._loop.call_later(COUNT_S, self._settle, stream, None)
        return count

    def feed(self, frame: Frame) -> None:
        """Takes a frame of a stream without a reader; only its end matters."""
        if frame.kind is Kind.END:
            self._settle(frame.stream, unpack_ending(frame.payload))
        elif frame.kind is Kind.ERROR:
            self._settle(frame.stream, None)

    def lost(self, worker: str) -> None:
        """The worker is gone, and its counts with it."""
        for stream in [stream for stream, (count, _) in self._open.items() if count.worker == worker]:
            self._settle(stream, None)

    def close(self) -> None:
        """Waits for none of them any longer."""
        for stream in list(self._open):
            self._settle(stream, None)

    def _settle(self, stream: int, ending: Ending | None) -> None:
        count, timer = self._open.pop(stream, (None, None))
        if count is not None and timer is not None:
            timer.cancel()
            count.settle(ending)
