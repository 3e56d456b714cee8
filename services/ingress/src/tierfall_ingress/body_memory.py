"""A bound on the bytes of all request bodies that this process holds."""

from __future__ import annotations

from typing import Final

from tierfall.errors import GatewayBusy

RETRY_AFTER_S: Final = 1.0
SMALL_BYTES: Final = 64 * 1024
"""What each request may hold beyond the limit. A few clients that send large bodies slowly can fill it for
long, and most requests of others are smaller than this."""


class BodyMemory:
    """Counts what all requests hold.

    Args:
        limit_bytes: ``server.max_bodies``.

    Attributes:
        held_bytes: What they hold now.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0


class BodyShare:
    """What one request holds of it; given back by :meth:`release`, once the body is no longer needed."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._size = 0

    def take(self, size: int) -> None:
        """Counts ``size`` bytes more.

        Raises:
            GatewayBusy: All requests together would hold more than the limit, and this one is not small.
        """
        memory = self._memory
        if memory.held_bytes + size > memory.limit_bytes and self._size + size > SMALL_BYTES:
            raise GatewayBusy(
                f"the bodies of requests under way fill the gateway's memory for them "
                f"({memory.limit_bytes} bytes; server.max_bodies)",
                retry_after=RETRY_AFTER_S,
            )
        memory.held_bytes += size
        self._size += size

    def release(self) -> None:
        """Gives everything back. Again, it does nothing."""
        self._memory.held_bytes -= self._size
        self._size = 0
