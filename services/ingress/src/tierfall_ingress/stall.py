"""Gives up clients that stop reading: each would hold a slot, a backend and memory while it likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

STALLED_S: Final = 30.0
"""How long a client may take nothing of what waits for it."""


class StallGuard:
    """Watches one connection while its send buffer is full; costs nothing while it is not.

    Args:
        loop: The event loop.
        transport: The connection's; aborted when the client takes nothing for :data:`STALLED_S`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_bytes = 0

    def full(self) -> None:
        """The send buffer has passed its high-water mark."""
        self._waiting_bytes = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(STALLED_S, self._look)

    def drained(self) -> None:
        """The send buffer is below its low-water mark again, or the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        waiting_bytes = self._transport.get_write_buffer_size()
        if waiting_bytes < self._waiting_bytes:
            self.full()
        else:
            self._transport.abort()
