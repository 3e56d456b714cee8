"""Buses for a test, closed at its end."""

from __future__ import annotations

from typing import Any

from tierfall.bus import Bus, BusOptions


class Buses:
    """Called, makes a connected bus; keywords go to :class:`tierfall.bus.BusOptions`."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._made: list[Bus] = []

    async def __call__(self, **options: Any) -> Bus:
        """Connects one more bus.

        Raises:
            BusDown: As :meth:`tierfall.bus.Bus.connect`.
        """
        options.setdefault("servers", self._servers)
        options.setdefault("name", f"bus-{len(self._made)}")
        bus = await Bus.connect(BusOptions(**options))
        self._made.append(bus)
        return bus

    async def close(self) -> None:
        """Closes them all."""
        for bus in self._made:
            await bus.close()
