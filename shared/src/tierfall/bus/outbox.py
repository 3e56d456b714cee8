"""The one ordered queue of everything that goes to the server: messages, SUB, UNSUB and PING."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from tierfall.bus.wire import Wire

PING: Final = b"PING\r\n"
MESSAGE: Final = (b"PUB ", b"HPUB ")

WRITE_BYTES: Final = 1024 * 1024
"""Handed over at once at most (a single message may be larger), so that a keep-alive is never far behind."""
BACKLOG_BYTES: Final = 64 * 1024
"""Unsent bytes above which the next hand-over waits for the kernel; asyncio's own high-water mark."""
STALLED_BYTES: Final = 256 * 1024 * 1024
"""Above this the server is taken for gone, since it does not read."""
KEPT_BYTES: Final = 16 * 1024 * 1024
"""What may wait for a reconnect."""


class Outbox:
    """Takes protocol lines without waiting, and hands all that one turn of the loop brought to the wire.

    The hand-over is a callback of the loop, not a task: there is nothing that could be cancelled.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wire: Wire | None = None
        self._items: list[bytes] = []
        self._bytes = 0
        self._barriers: list[asyncio.Future[bool]] = []
        self._scheduled = False
        self._draining: asyncio.Task[None] | None = None

    def put(self, item: bytes) -> None:
        """Queues one whole protocol line (with its payload, if it is a message)."""
        self._items.append(item)
        self._bytes += len(item)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._hand_over)

    def put_control(self, item: bytes) -> None:
        """Queues a SUB or UNSUB if there is a wire; otherwise the next one starts from the bus's own list."""
        if self._wire is not None:
            self.put(item)

    def barrier(self) -> asyncio.Future[bool]:
        """True once the server has handled all that was queued before; false if the connection ends first."""
        future: asyncio.Future[bool] = self._loop.create_future()
        self._barriers.append(future)
        self.put(PING)
        return future

    def attach(self, wire: Wire, first: list[bytes], largest_bytes: int) -> int:
        """Sends ``first`` and then what waited, over a new wire.

        Returns:
            How many waiting messages were given up, because they are above ``largest_bytes``, which is
            what this server takes.
        """
        fitting = [item for item in self._items if len(item) <= largest_bytes]
        unfit = len(self._items) - len(fitting)
        self._items = first + fitting
        self._bytes = sum(map(len, self._items))
        self._wire = wire
        self._hand_over()
        return unfit

    def detach(self, kept_bytes: int = KEPT_BYTES) -> int:
        """Takes the wire away, keeps the oldest messages within ``kept_bytes``, and counts those given up."""
        self._wire = None
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        for barrier in self._barriers:
            if not barrier.done():
                barrier.set_result(False)
        self._barriers = []
        # SUB and UNSUB are not kept: the bus knows which subscriptions the next wire has to have.
        messages = [item for item in self._items if item.startswith(MESSAGE)]
        self._items, self._bytes = [], 0
        for item in messages:
            if self._bytes + len(item) > kept_bytes:
                break
            self._items.append(item)
            self._bytes += len(item)
        return len(messages) - len(self._items)

    def _hand_over(self) -> None:
        self._scheduled = False
        wire = self._wire
        if wire is None or not self._items:
            return
        if self._draining is not None:
            if self._bytes > STALLED_BYTES:
                wire.lose(f"the server reads nothing, and {self._bytes} bytes wait for it")
            return
        if self._bytes <= WRITE_BYTES:
            items, self._items, self._bytes = self._items, [], 0
        else:
            items = self._first_items()
        barriers: list[asyncio.Future[bool]] = []
        if self._barriers:
            count = items.count(PING)
            barriers, self._barriers = self._barriers[:count], self._barriers[count:]
        backlog_bytes = wire.write(items, barriers)
        if not wire.gone and (self._items or backlog_bytes > BACKLOG_BYTES):
            self._draining = self._loop.create_task(self._drain(wire))

    def _first_items(self) -> list[bytes]:
        count = size = 0
        for item in self._items:
            if count and size + len(item) > WRITE_BYTES:
                break
            count += 1
            size += len(item)
        items = self._items[:count]
        del self._items[:count]
        self._bytes -= size
        return items

    async def _drain(self, wire: Wire) -> None:
        try:
            await wire.drain()
        except (OSError, RuntimeError) as error:
            wire.lose(str(error) or type(error).__name__)
            return
        self._draining = None
        self._hand_over()
