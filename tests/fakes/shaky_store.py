"""A bucket in memory whose answers get lost, whose writes come late, and which is away for a while."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING

from tierfall.errors import BusDown, Conflict, StoreUnavailable
from tierfall.store import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable


class Mood(enum.Enum):
    """What becomes of the next write."""

    FINE = "fine"
    LOST = "it is made, its answer is lost"
    LATE = "it has no answer, and arrives just before the next call"
    SILENT = "it has no answer, and is not made"
    REFUSED = "the connection is down"


class StillClock:
    """A store's clock that stands still until it is set.

    Args:
        at: Unix seconds.
    """

    def __init__(self, at: float) -> None:
        self.at = at

    def now(self) -> float:
        """As :meth:`tierfall.store.StoreClock.now`."""
        return self.at

    async def sync(self) -> None:
        """It is always right."""


class ShakyStore:
    """Keeps documents by key, with one count of revisions, as JetStream does.

    Args:
        now: Where its clock stands, in Unix seconds.
        moods: What becomes of the writes, in order; after the last one all is fine.
    """

    def __init__(self, moods: Iterable[Mood] = (), now: float = 0.0) -> None:
        self.clock = StillClock(now)
        self.entries: dict[str, Entry] = {}
        self.gets = 0
        self.puts = 0
        self.down = False
        self.turned_away = 0
        self._moods = list(moods)
        self._late: list[tuple[str, bytes, int | None]] = []
        self._revision = 0

    async def get(self, key: str) -> Entry | None:
        """As :meth:`tierfall.store.Bucket.get`."""
        await self._travel()
        self.gets += 1
        return self.entries.get(key)

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> int:
        """As :meth:`tierfall.store.Bucket.put`."""
        await self._travel()
        self.puts += 1
        mood = self._moods.pop(0) if self._moods else Mood.FINE
        if mood is Mood.REFUSED:
            raise BusDown("NATS is not connected")
        if mood is Mood.LATE:
            self._late.append((key, value, expected))
            raise StoreUnavailable("no answer")
        if mood is Mood.SILENT:
            raise StoreUnavailable("no answer")
        revision = self._write(key, value, expected)
        if mood is Mood.LOST:
            raise StoreUnavailable("no answer")
        return revision

    def _write(self, key: str, value: bytes, expected: int | None) -> int:
        known = self.entries.get(key)
        if expected is not None and (known.revision if known else 0) != expected:
            raise Conflict("has changed")
        self._revision += 1
        self.entries[key] = Entry(key, value, self._revision)
        return self._revision

    async def _travel(self) -> None:
        """Others get their turns meanwhile, and what was late arrives."""
        await asyncio.sleep(0)
        if self.down:
            self.turned_away += 1
            raise StoreUnavailable("JetStream gave no answer")
        late, self._late = self._late, []
        for key, value, expected in late:
            try:
                self._write(key, value, expected)
            except Conflict:
                continue
