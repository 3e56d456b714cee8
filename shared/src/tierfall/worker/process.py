"""A worker process: one bus connection, one control subject, a station per tier it serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from typing import TYPE_CHECKING, Final

from tierfall import __version__
from tierfall.errors import BackendFault, BusDown
from tierfall.protocol import subjects
from tierfall.protocol.age import Ages
from tierfall.protocol.failure import pack_failure
from tierfall.protocol.frames import FrameError, Kind, decode, encode
from tierfall.telemetry import OFF
from tierfall.worker.incoming import BodyIntake
from tierfall.worker.meters import Meters
from tierfall.worker.reply import Outbox
from tierfall.worker.station import Station

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierfall.bus import Bus, Message, Subscription
    from tierfall.config import Config, Model, Tier
    from tierfall.protocol.frames import Frame
    from tierfall.telemetry import Tracer
    from tierfall.worker.backend import Backend
    from tierfall.worker.job import Job

    Build = Callable[[str, Tier, Config, Bus], Backend]
    Recipe = tuple[Tier, frozenset[tuple[object, ...]]]

LEASE_LAPSES_S: Final = 6.0
"""A stream whose ingress was silent for this long is stopped; the ingress renews every 0.5 s."""
SWEEP_EVERY_S: Final = 1.0
FROZEN_S: Final = 1.5 * SWEEP_EVERY_S
"""A sweep that comes so long after the last one is late: the process was held up itself."""
ID_BYTES: Final = 6
"""Random bytes in a worker's id: too many to meet twice, or to try."""
DRAIN_S: Final = 60.0
"""How long a worker that was told to stop lets its requests finish."""

_log: Final = logging.getLogger("tierfall.worker")


def worker_id(kind: str) -> str:
    """An id that says what and where it is, and is a safe subject token: ``vllm-gpubox-3f9a07c2b15d``."""
    return f"{kind}-{subjects.machine_of(socket.gethostname())}-{secrets.token_hex(ID_BYTES)}"


class WorkerProcess:
    """Serves every configured tier of its kind, or those it was told to.

    Args:
        kind: The kind of tier, as in the config's ``worker:``.
        build: Makes the backend of one tier; the bus is for what it keeps in NATS.
        bus: Connected; the caller closes it.
        only: Names of tiers to serve; all of the kind when empty.
        tracer: What records the spans of its requests.
        name: Its id, drawn anew when left out.
    """

    def __init__(
        self,
        kind: str,
        build: Build,
        bus: Bus,
        only: frozenset[str] = frozenset(),
        *,
        tracer: Tracer = OFF,
        name: str = "",
    ) -> None:
        self.id = name or worker_id(kind)
        self.meters = Meters(
            kind, bus, lambda: {name: station for name, (_, station) in self._stations.items()}
        )
        self._tracer = tracer
        self._ready = False
        self._stopping = False
        self._kind = kind
        self._build = build
        self._bus = bus
        self._only = only
        self._outbox = Outbox(bus)
        self._jobs: dict[int, Job] = {}
        self._intake = BodyIntake()
        self._ages = Ages()
        self._stations: dict[str, tuple[object, Station]] = {}
        self._leaving: dict[asyncio.Task[None], Station] = {}
        self._applying = asyncio.Lock()
        self._control: Subscription | None = None
        self._sweeping: asyncio.Task[None] | None = None
        bus.on_state(self._on_bus_state)

    async def start(self, config: Config) -> None:
        """Subscribes, starts the stations, answers the ``nats micro`` tools."""
        self._control = await self._bus.subscribe(subjects.control(self.id), self._on_control)
        self._sweeping = asyncio.create_task(self._sweep(), name="lease sweep")
        await self.apply(config)
        await self._bus.add_service(
            name=subjects.service(self._kind),
            version=__version__,
            description=f"Tierfall worker for {self._kind} backends",
            metadata={"worker": self.id, "tiers": ",".join(self._stations)},
            stats=self._stats,
        )
        self._ready = True

    async def apply(self, config: Config) -> None:
        """Makes the stations those of this config.

        A changed tier's old station serves until the new one does, and then drains in the background. May be
        cancelled, also where it waits for NATS. Once the process drains, it does nothing.
        """
        async with self._applying:
            if self._stopping:
                return
            wanted = self._wanted(config)
            for name, (_, station) in list(self._stations.items()):
                if name not in wanted:
                    del self._stations[name]
                    self._drain_aside(station)
            for name, recipe in wanted.items():
                if name not in self._stations or self._stations[name][0] != recipe:
                    await self._open(name, recipe, config)

    async def drain(self, timeout_s: float = DRAIN_S) -> None:
        """Leaves every queue group, lets the requests in flight finish, and stops."""
        self._ready, self._stopping = False, True
        async with self._applying:
            stations = [station for _, station in self._stations.values()]
            self._stations.clear()
        leaving = list(self._leaving)
        await asyncio.gather(*(station.drain(timeout_s, leaving) for station in stations), *leaving)
        for job in list(self._jobs.values()):
            job.cancel()
        with contextlib.suppress(BusDown):
            await self._bus.flush()
        if self._control is not None:
            await self._control.close()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def unready_because(self) -> str | None:
        """Why it takes no requests; None when it does, as far as its backends are up."""
        if not self._ready:
            return "the worker is starting or draining"
        return None if self._bus.connected else "no connection to NATS"

    def backends(self) -> dict[str, str]:
        """Each tier's backend: ``up``, ``loading`` or ``down``."""
        return {name: station.health.state for name, (_, station) in self._stations.items()}

    def _wanted(self, config: Config) -> dict[str, Recipe]:
        """The tiers to serve, each with all that its backend is built from."""
        return {
            name: (
                tier,
                frozenset(_ingredients(*model) for model in config.models.items() if model[1].tier == name),
            )
            for name, tier in config.tiers.items()
            if tier.kind == self._kind and (not self._only or name in self._only)
        }

    async def _open(self, name: str, recipe: Recipe, config: Config) -> None:
        tier = recipe[0]
        backend = self._build(name, tier, config, self._bus)
        station = Station(
            name,
            tier,
            backend,
            worker=self.id,
            bus=self._bus,
            outbox=self._outbox,
            jobs=self._jobs,
            intake=self._intake,
            ages=self._ages,
            meters=self.meters,
            tracer=self._tracer,
        )
        try:
            await station.start()
        except BaseException:
            station.hand_over()  # it may have taken requests already
            self._drain_aside(station)
            raise
        _, old = self._stations.get(name, (None, None))
        self._stations[name] = (recipe, station)
        if old is not None:
            self._drain_aside(old)
        for leaving in self._leaving.values():
            if leaving.name == name:
                leaving.hand_over()

    def _drain_aside(self, station: Station) -> None:
        task = asyncio.create_task(station.drain(DRAIN_S), name=f"drain {station.name}")
        self._leaving[task] = station
        task.add_done_callback(self._leaving.pop)

    def _on_control(self, message: Message) -> None:
        try:
            for frame in decode(message.data):
                self._obey(frame)
        except FrameError as error:
            _log.warning("dropped a control message: %s", error)

    def _obey(self, frame: Frame) -> None:
        if frame.kind is Kind.PING:
            self._answer(frame, b"")
            return
        job = self._jobs.get(frame.stream)
        if job is None:
            if frame.kind is Kind.LEASE:
                # Its last frame was lost, or another process took the request: do not let it hang.
                unknown = pack_failure(BackendFault("the worker no longer knows this request"))
                self._answer(frame, encode(Kind.ERROR, frame.stream, frame.seq, unknown))
            return
        job.leased_at = asyncio.get_running_loop().time()
        if frame.kind is Kind.CREDIT:
            job.reply.credit(frame.payload)
        elif frame.kind is Kind.CANCEL:
            job.cancel(frame.payload.decode("ascii", "replace"))
        elif frame.kind is Kind.BODY:
            job.add_body(frame.seq, frame.payload)

    def _answer(self, frame: Frame, data: bytes) -> None:
        if subject := subjects.answer(frame.payload):
            self._bus.publish(subject, data)

    async def _sweep(self) -> None:
        """Stops what nobody waits for: an ingress that died cannot cancel."""
        loop = asyncio.get_running_loop()
        while True:
            slept_at = loop.time()
            await asyncio.sleep(SWEEP_EVERY_S)
            if loop.time() - slept_at < FROZEN_S:
                self._stop_unleased(loop.time() - LEASE_LAPSES_S)
            # Else the leases that came while this process was held up are still to be read.

    def _stop_unleased(self, limit: float) -> None:
        """Stops the jobs whose last lease is older than ``limit``, in loop time.

        A method of its own: a variable of the task that calls it would hold the last job.
        """
        for job in [job for job in self._jobs.values() if job.leased_at < limit]:
            _log.warning("stream %016x: its ingress is silent, stopped", job.stream)
            job.cancel("ingress_silent")

    def _on_bus_state(self, connected: bool) -> None:  # noqa: FBT001 - the bus's listener signature
        """Whoever waits for a worker after NATS was away hears of this one at once."""
        if connected:
            for _, station in self._stations.values():
                station.beat()

    def _stats(self) -> dict[str, object]:
        return {
            name: {"in_flight": station.in_flight, "served": station.served, "backend": station.health.state}
            for name, (_, station) in self._stations.items()
        }


def _ingredients(name: str, model: Model) -> tuple[object, ...]:
    """What of a model a backend is built from: its name towards the backend, and all that a quota needs."""
    return model.backend_model, *((name, model.quota, model.deadlines.first_token) if model.quota else ())
