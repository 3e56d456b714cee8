"""NATS's time: the one clock that all who share a bucket go by, whatever their own machines say."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import TYPE_CHECKING, Final

from tierfall.errors import BusError, StoreUnavailable
from tierfall.store import names
from tierfall.store.jetstream import Refused, ask

if TYPE_CHECKING:
    from tierfall.bus import Bus

MEASURED_EVERY_S: Final = 30.0
"""How old a measurement may be. Between two of them a clock that counts this machine's seconds goes on."""
AGAIN_S: Final = 5.0
"""After a measurement that failed, how long the last one is gone on with before the next try."""
ANSWER_S: Final = 1.0
"""For one answer. Half of what it took is the most that the measured time can be wrong by."""
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Counts while the machine sleeps too, where there is such a clock (Linux)."""


class StoreClock:
    """What time it is for NATS, measured now and then and counted on in between.

    The machine's own time of day plays no part in it: it may be wrong, and may jump.

    Args:
        bus: The connection.
        bucket: The name of a bucket that this user may ask about.
    """

    def __init__(self, bus: Bus, bucket: str) -> None:
        self._bus = bus
        self._bucket = bucket
        self._offset: float | None = None
        self._due = float("-inf")
        self._measuring = asyncio.Lock()
        bus.on_state(self._on_state)

    def now(self) -> float:
        """Unix seconds by NATS's clock; by this machine's before the first :meth:`sync`."""
        return time.time() if self._offset is None else steady_s() + self._offset

    async def sync(self) -> None:
        """Measures, if that is due; most calls return at once.

        Raises:
            StoreUnavailable, BusDown: It was never measured, and cannot be. Later failures are no matter: the
                last measurement is gone on with.
        """
        if steady_s() < self._due:
            return
        async with self._measuring:
            if steady_s() < self._due:
                return
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._measure()
            except (BusError, TimeoutError) as error:
                if self._offset is None:
                    raise _cause(error) from None
                self._due = steady_s() + AGAIN_S

    async def _measure(self) -> None:
        asked_at = steady_s()
        try:
            found = await ask(self._bus, names.info(self._bucket), b"")
        except Refused as error:
            raise StoreUnavailable(f"NATS has no bucket {self._bucket}: {error.text}") from None
        answered_at = steady_s()
        self._offset = unix_s(found.get("ts")) - (asked_at + answered_at) / 2
        self._due = answered_at + MEASURED_EVERY_S

    def _on_state(self, connected: bool) -> None:  # noqa: FBT001 - the bus calls it so
        if connected:
            self._due = float("-inf")  # it may be another server, or the same one with its clock set


def steady_s() -> float:
    """Seconds that only ever grow, by one a second."""
    return time.clock_gettime(_STEADY)


def unix_s(told: object) -> float:
    """Unix seconds of a time as JetStream's answers have it: ``2026-11-28T13:43:22.505230478Z``.

    Raises:
        StoreUnavailable: It is none: the server is older than 2.10.
    """
    try:
        return dt.datetime.fromisoformat(str(told)).timestamp()
    except ValueError:
        raise StoreUnavailable("NATS does not report its time: nats-server must be 2.14 or newer") from None


def _cause(error: BusError | TimeoutError) -> BusError:
    if isinstance(error, BusError):
        return error
    return StoreUnavailable(f"JetStream gave no answer within {ANSWER_S:g} s")
