"""What every request handler shares."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tierfall.errors import BusDown
from tierfall.protocol.presence import BEAT_EVERY_S, RECOVERY_S
from tierfall.quota import QuotaView
from tierfall.store import QUOTA, Bucket
from tierfall.telemetry import OFF
from tierfall_ingress.body_memory import BodyMemory
from tierfall_ingress.breaker import Breaker
from tierfall_ingress.cashier import Cashier
from tierfall_ingress.keys import KeyRing
from tierfall_ingress.roster import Roster
from tierfall_ingress.store import StoreCheck, StoreMemory
from tierfall_ingress.stored import StoredKeys
from tierfall_ingress.switchboard import Switchboard
from tierfall_ingress.waiting import WaitingRoom

if TYPE_CHECKING:
    from tierfall.bus import Bus
    from tierfall.config import Config
    from tierfall.telemetry import Tracer
    from tierfall_ingress.keys import Caller
    from tierfall_ingress.meters import Meters


FIRST_BEATS_S: Final = BEAT_EVERY_S + 0.5
"""After the start of the process, how long it may take to have heard of every worker."""


class Services:
    """The bus and all that stands on it, and the config of the moment.

    A request takes ``config`` and ``keys`` once, at its beginning: a reload changes the next request.
    """

    def __init__(
        self,
        bus: Bus,
        config: Config,
        meters: Meters,
        tracer: Tracer = OFF,
        store_memory: StoreMemory | None = None,
    ) -> None:
        self.bus = bus
        self.meters = meters
        self.tracer = tracer
        self.roster = Roster(bus, self._on_slot, self._on_idle)
        self.switchboard = Switchboard(bus, self.roster.drop, self.roster.is_away)
        self.rooms: dict[str, WaitingRoom] = {}
        self.breakers: dict[str, Breaker] = {}
        self.stored: StoredKeys | None = None
        quota = Bucket(bus, QUOTA, replicas=config.nats.replicas)
        self.cashier = Cashier(quota, meters)
        self.store = StoreCheck(
            bus,
            quota,
            config.nats.replicas,
            store_memory or StoreMemory(),
            self.cashier.ledger.outage.over,
        )
        self.quotas = QuotaView(quota)
        self.body_memory = BodyMemory(config.server.max_bodies)
        self.draining = False
        self.started_at = int(time.time())
        self._loop = asyncio.get_running_loop()
        self._recovered_at = 0.0
        self._bus_up = asyncio.Event()
        if bus.connected:
            self._bus_up.set()
        bus.on_state(self._on_bus_state)
        self.apply(config)
        meters.watch(self)

    async def start(self) -> None:
        """Subscribes to replies and beats."""
        await self.switchboard.start()
        await self.roster.start()
        await self.store.wait_checked()
        if self.stored is not None:
            await self.stored.wait_read()

    async def close(self) -> None:
        """Ends what is open on the bus."""
        await self.store.close()
        if self.stored is not None:
            await self.stored.close()
        self.switchboard.counts.close()  # what workers have not counted yet is settled by estimate
        await self.cashier.close()
        await self.quotas.close()
        await self.switchboard.close()
        await self.roster.close()

    def apply(self, config: Config) -> None:
        """Makes this the config of all requests to come."""
        self.config = config
        self.body_memory.limit_bytes = config.server.max_bodies
        if config.server.stored_keys and self.stored is None:
            self.stored = StoredKeys(self.bus, config.nats.replicas)
        self.keys = KeyRing(config.server, self.stored if config.server.stored_keys else None)
        for name, tier in config.tiers.items():
            room = self.rooms.setdefault(name, WaitingRoom(name, tier.max_waiting))
            room.limit = tier.max_waiting
            self.breakers.setdefault(name, Breaker())
        self.quotas.apply(config)
        self.store.apply(config)

    def is_usable(self, tier: str) -> bool:
        """Whether the tier has a worker whose backend is up, and has answered lately."""
        return self.roster.is_live(tier) and not self.breakers[tier].is_open

    def is_available(self, model: str, caller: Caller) -> bool:
        """Whether some tier of the caller's ladder for the model could answer now."""
        models = self.config.models
        return any(
            self.roster.is_live(models[name].tier) and self.quotas.spent(name) is None
            for name in caller.ladder(self.config, model)
        )

    def unready_because(self) -> str | None:
        """Why no request should be sent to this process; None when it is ready."""
        if self.draining:
            return "the gateway is stopping"
        if not self.bus.connected:
            return "no connection to NATS"
        return None

    async def bus_ready(self, timeout_s: float) -> None:
        """Waits for NATS to come back.

        Raises:
            BusDown: It did not within ``timeout_s``.
        """
        if self.bus.connected:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._bus_up.wait()
        except TimeoutError:
            raise BusDown("the gateway has lost its message bus for the moment", retry_after=1.0) from None

    def expect_beats(self) -> None:
        """This process has just started: a tier of which it has heard nothing yet may have workers."""
        self._recovered_at = self._loop.time() + FIRST_BEATS_S

    @property
    def recovering_s(self) -> float:
        """Seconds for which nobody's absence is believed, because beats are still to come."""
        return max(0.0, self._recovered_at - self._loop.time())

    def _on_bus_state(self, connected: bool) -> None:  # noqa: FBT001 - the bus's listener signature
        if connected:
            self._bus_up.set()
            self._recovered_at = self._loop.time() + RECOVERY_S
        else:
            self._bus_up.clear()

    def _on_slot(self, tier: str) -> None:
        room = self.rooms.get(tier)
        if room is not None:
            room.wake()

    def _on_idle(self, tier: str) -> None:
        room = self.rooms.get(tier)
        if room is not None:
            room.wake(each_the_next=True)
