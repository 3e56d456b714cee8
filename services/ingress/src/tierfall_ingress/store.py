"""How NATS's store is: whether it can be written, and whether it is still the one that it was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tierfall import state
from tierfall.errors import BusDown, BusError
from tierfall.quota import plans
from tierfall.store import KEYS, QUOTA, Bucket
from tierfall.store.clock import unix_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

    from tierfall.bus import Bus
    from tierfall.config import Config

CHECK_EVERY_S: Final = 10.0
"""Between two writes of a few bytes while all is well."""
AGAIN_S: Final = 2.0
"""Between two while it is not."""
FIRST_CHECK_S: Final = 2.0
"""How long an ingress that starts waits for the first one."""
NEW_S: Final = 60.0
"""A bucket that was made within so many seconds before it is seen first is worth a word."""
HOLDS: Final[Mapping[str, str]] = {KEYS: "client keys", QUOTA: "counters"}
_log: Final = logging.getLogger("tierfall.ingress")


class StoreMemory:
    """When each bucket was made, as far as this ingress, or with a file an earlier one, has seen it.

    Args:
        path: A file that outlasts the process; ``None`` where there is no such place.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._made: dict[str, str] = {}
        if path is not None:
            with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
                self._made = msgspec.json.decode(path.read_bytes(), type=dict[str, str])

    def is_first(self, bucket: str) -> bool:
        """Whether the bucket was never seen, and none that may have been there before would be remembered."""
        return self._path is None and bucket not in self._made

    def is_another(self, bucket: str, made: str) -> bool:
        """Whether the bucket that was seen last was made at another time; from now on this one is known."""
        before = self._made.get(bucket)
        if before == made:
            return False
        self._made[bucket] = made
        if self._path is not None:
            try:
                state.write_private(self._path, msgspec.json.encode(self._made).decode())
            except OSError as error:
                _log.warning("cannot write %s (a lost store may go unnoticed): %s", self._path, error)
        return before is not None


class StoreCheck:
    """Looks at the buckets that the config needs every few seconds, and writes a few bytes into one.

    It also makes them, and keeps the time right that limits are counted by. No request waits for it.

    Args:
        bus: The ingress's.
        quota: The bucket of the ledger.
        replicas: As :class:`tierfall.store.Bucket`'s.
        memory: Which buckets were there before.
        works: Called each time that the ledger's bucket takes a write.
    """

    def __init__(
        self, bus: Bus, quota: Bucket, replicas: int, memory: StoreMemory, works: Callable[[], None]
    ) -> None:
        self.problem = ""
        """Why the store cannot be used at the moment; empty while it can."""
        self._lost: dict[str, str] = {}
        self._bus = bus
        self._buckets = {QUOTA: quota, KEYS: Bucket(bus, KEYS, replicas=replicas)}
        self._memory = memory
        self._works = works
        self._needed: tuple[str, ...] = ()
        self._wake = asyncio.Event()
        self._checked = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="check the store")
        bus.on_state(self._on_state)

    @property
    def lost(self) -> str:
        """That what was stored is gone; stays so until the process ends. Empty: it is not."""
        if not self._lost:
            return ""
        what, made = " and ".join(self._lost), max(self._lost.values())
        return f"{what} were lost: the store is new, NATS made it at {made}"

    @property
    def needed(self) -> bool:
        """Whether the config needs the store at all."""
        return bool(self._needed)

    def apply(self, config: Config) -> None:
        """Looks after what this config needs."""
        needed = []
        limited = any(key.limits for key in config.server.api_keys)
        if limited or config.server.stored_keys or plans(config):
            needed.append(QUOTA)
        if config.server.stored_keys:
            needed.append(KEYS)
        if tuple(needed) != self._needed:
            self._needed = tuple(needed)
            self._wake.set()

    async def wait_checked(self) -> None:
        """Waits a moment for the first look, so that the first request finds what it needs."""
        if self._needed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_CHECK_S):
                    await self._checked.wait()

    async def close(self) -> None:
        """Looks no more."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def report(self) -> dict[str, Any]:
        """For ``/health``."""
        if self.problem:
            return {"state": "unavailable", "reason": self.problem}
        if self.lost:
            return {"state": "lost", "reason": self.lost}
        return {"state": "ok", "reason": ""}

    async def _run(self) -> None:
        while True:
            known = self.lost
            if self._needed:
                await self._look()
                self._checked.set()
            if self.lost != known:
                _log.error("%s", self.lost)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if self.problem else CHECK_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _look(self) -> None:
        try:
            for name in self._needed:
                await self._recognise(name)
            await self._buckets[QUOTA].try_write()
            self._works()
        except BusDown:
            return  # said by `nats` already, and it comes back with the connection
        except Exception as error:  # noqa: BLE001 - a defect must not end the looking, and is said in `/health`
            if not isinstance(error, BusError):
                _log.exception("the store cannot be checked")
                self.problem = f"it cannot be checked: {error!r}"
                return
            if error.message != self.problem:
                _log.error("%s", error.message)
            self.problem = error.message
            return
        if self.problem:
            _log.info("NATS's store can be used again")
        self.problem = ""

    async def _recognise(self, name: str) -> None:
        """Makes the bucket if it is not there, and finds out whether it was there before."""
        bucket = self._buckets[name]
        made = await bucket.ensure()
        await bucket.clock.sync()
        if self._memory.is_first(name) and bucket.clock.now() - unix_s(made) < NEW_S:
            _log.warning(
                "the bucket %s is new and empty; unless this is a first start, NATS has lost its store", name
            )
        if self._memory.is_another(name, made):
            self._lost[HOLDS[name]] = made

    def _on_state(self, connected: bool) -> None:  # noqa: FBT001 - the bus calls it so
        if connected:
            self._wake.set()


class StoreCollector(Collector):
    """``tierfall_store_up`` and ``tierfall_store_lost``, where the config needs the store."""

    def __init__(self, check: StoreCheck) -> None:
        self._check = check

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """As the last look found it."""
        up = GaugeMetricFamily(
            "tierfall_store_up",
            "Whether NATS's store takes writes: client keys, limits and quotas are kept in it.",
        )
        lost = GaugeMetricFamily(
            "tierfall_store_lost",
            "Whether the store was found to be another one than before, since the ingress started.",
        )
        if self._check.needed:
            up.add_metric([], float(not self._check.problem))
            lost.add_metric([], float(bool(self._check.lost)))
        yield from (up, lost)
