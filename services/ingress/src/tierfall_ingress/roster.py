"""The roster: who serves which tier, as the workers' beats tell."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from tierfall.errors import BusDown
from tierfall.protocol import subjects
from tierfall.protocol.frames import Kind, encode
from tierfall.protocol.presence import BEAT_EVERY_S, BEAT_STALE_S, RECOVERY_S, Beat, unpack_beat
from tierfall.timelimit import TimeLimit
from tierfall_ingress.skew import Skews

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tierfall.bus import Bus, Message, Subscription

SILENCE_S: Final = 0.3
"""How long a worker may leave a ping without an answer before its requests go elsewhere."""
OVERDUE_S: Final = 1.5 * BEAT_EVERY_S
"""A worker whose next beat is so late is pinged."""
AWAY_S: Final = 0.5
"""How long a worker may stay silent before what it has not begun to answer is given to another one."""
CONFIRMED_FOR_S: Final = 0.25
"""A worker that answered so lately is not pinged only because its tier is full."""
PONG_TOKEN_BYTES: Final = 8
QUICK_S: Final = 0.2
"""A NATS server that needs longer for a round trip explains why workers do not answer."""
DETOUR_S: Final = 400.0
"""How long a tier's requests avoid its queue group after a worker fell silent in it. A nats-server with
default settings (``ping_interval`` of 2 minutes, three times) may keep a dead connection that long."""
LITTLE_ROOM: Final = 0.01
"""The weight of a worker whose last beat says that it is full, against one free slot."""
TICK_S: Final = 0.5
"""How often the beats are looked through for stale ones."""

TierState = Literal["up", "loading", "down", "no_workers"]
_RANK: Final[dict[str, int]] = {"up": 2, "loading": 1, "down": 0}

_log: Final = logging.getLogger("tierfall.ingress")


class Standing(NamedTuple):
    """How a tier stands right now."""

    state: TierState
    reason: str
    free: int
    """Slots that nobody uses, over all workers that are up."""
    workers: tuple[Beat, ...]

    @property
    def said(self) -> str:
        """The reason as clients may read it."""
        alike = (beat for beat in self.workers if (beat.backend, beat.reason) == (self.state, self.reason))
        return next((beat.said for beat in alike), "")


class Roster:
    """The latest beat of every worker.

    Args:
        bus: Where the beats come from.
        on_slot: Called with a tier's name when one of its slots has become free.
        on_idle: Called with a tier's name each time that one of its workers says that it is not full.

    Attributes:
        skews: How far the workers' clocks are from this process's.
    """

    def __init__(self, bus: Bus, on_slot: Callable[[str], None], on_idle: Callable[[str], None]) -> None:
        self._bus = bus
        self._on_free_slot = on_slot
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._beats: dict[str, dict[str, tuple[Beat, float]]] = {}
        self._subscriptions: list[Subscription] = []
        self._pings = bus.inbox()
        self._pongs = bus.reply_inbox()
        self._secret = secrets.token_bytes()
        self._confirmed: dict[str, float] = {}
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._silent: dict[str, float] = {}
        self.skews = Skews()
        self._detours: dict[str, float] = {}
        self._inquiries: dict[str, asyncio.Task[bool]] = {}
        self._recovered_at = 0.0
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens for beats and free slots."""
        self._subscriptions = [
            await self._bus.subscribe(subjects.PRESENCE_ALL, self._on_beat),
            await self._bus.subscribe(subjects.SLOTS_ALL, self._on_slot),
            await self._bus.subscribe(f"{self._pings}.*", self._on_ping_status),
            await self._bus.subscribe(f"{self._pongs}.*.*", self._on_pong),
        ]
        self._ticking = asyncio.create_task(self._tick(), name="roster")
        self._bus.on_state(self._on_bus_state)

    async def close(self) -> None:
        """Stops listening."""
        tasks = [*self._inquiries.values(), *([] if self._ticking is None else [self._ticking])]
        for task in tasks:
            task.cancel()
        for subscription in self._subscriptions:
            await subscription.close()

    def standing(self, tier: str) -> Standing:
        """How ``tier`` stands; workers that do not answer, and those that drain, are not counted."""
        beats = tuple(self._present(tier))
        if not beats:
            silent = ", ".join(self._unheard(tier))
            reason = f"no answer from {silent}" if silent else "no worker serves this tier"
            return Standing("no_workers", reason, 0, ())
        best = max(beats, key=lambda beat: _RANK[beat.backend])
        free = sum(max(0, beat.slots - beat.in_flight) for beat in beats if beat.backend == "up")
        return Standing(best.backend, best.reason, free, beats)

    def is_live(self, tier: str) -> bool:
        """Whether some worker of the tier has its backend up."""
        return self.standing(tier).state == "up"

    def has_workers(self, tier: str) -> bool:
        """Whether some worker serves the tier, whatever its backend does."""
        return next(self._present(tier), None) is not None

    def may_come_back(self, tier: str) -> bool:
        """Whether a worker of the tier was heard of a moment ago, though it does not answer now."""
        return next(self._unheard(tier), None) is not None

    def is_away(self, worker: str, since: float) -> bool:
        """Whether the worker was silent for so long that another one should do what it has not begun.

        Args:
            worker: Its id.
            since: Loop time at which it was there for certain.
        """
        now = self._loop.time()
        if (silent_since := self._silent.get(worker)) is not None:
            return now - silent_since > AWAY_S
        known = any(worker in workers for workers in self._beats.values())
        return not known and now - since > BEAT_STALE_S

    def by_room(self, tier: str) -> list[str]:
        """The tier's workers whose backend is up, mostly those first that have more slots free."""
        up = [beat for beat in self._present(tier) if beat.backend == "up"]
        up.sort(key=lambda beat: random.expovariate(max(beat.slots - beat.in_flight, LITTLE_ROOM)))
        return [beat.worker for beat in up]

    def must_detour(self, tier: str) -> bool:
        """Whether the tier's queue group may have a member that does not answer."""
        until = self._detours.get(tier)
        if until is None:
            return False
        if until > self._loop.time():
            return True
        del self._detours[tier]
        return False

    def detour(self, tier: str) -> None:
        """From now on, for a while, requests of the tier are to be addressed to one worker each."""
        if not self.must_detour(tier):
            _log.warning("tier %s: the queue group has a member that does not answer: it is avoided", tier)
        self._detours[tier] = self._loop.time() + DETOUR_S

    def inquire(self, tier: str) -> asyncio.Task[bool]:
        """Asks the tier's workers whether they are there; those that do not answer count as silent after it.

        The first sign of life brings a silent worker back. If NATS itself is slow, that tells nothing of
        workers.

        Returns:
            A task that all callers of the moment share, so it is not to be cancelled. Its result says
            whether anything is known now.
        """
        task = self._inquiries.get(tier)
        if task is None:
            task = self._inquiries[tier] = asyncio.create_task(self._ask_all(tier), name=f"pings of {tier}")
            task.add_done_callback(lambda _: self._inquiries.pop(tier, None))
        return task

    async def confirm(self, tier: str) -> Standing:
        """As :meth:`standing`, after asking the tier's workers whether they are still there.

        For when nobody took a request though beats say that somebody could: a worker that was killed leaves
        its last beat behind, but NATS knows at once that it is gone.
        """
        since = self._loop.time() - CONFIRMED_FOR_S
        workers = self.standing(tier).workers
        if any(beat.backend == "up" and self._confirmed.get(beat.worker, 0.0) < since for beat in workers):
            await asyncio.shield(self.inquire(tier))
        return self.standing(tier)

    def drop(self, worker: str) -> None:
        """The worker is known to be gone."""
        for workers in self._beats.values():
            workers.pop(worker, None)
        self._forget_unknown()

    def _present(self, tier: str) -> Iterator[Beat]:
        for beat, _ in self._beats.get(tier, {}).values():
            if not beat.draining and beat.worker not in self._silent:
                yield beat

    def _unheard(self, tier: str) -> Iterator[str]:
        """The workers that do not answer, and whose last beat is not a stale one yet."""
        for beat, _ in self._beats.get(tier, {}).values():
            if not beat.draining and beat.worker in self._silent:
                yield beat.worker

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self._loop.time() < self._recovered_at:
                continue
            for tier in {tier for tier, _ in self._older_than(OVERDUE_S)}:
                self.inquire(tier)
            # Beats that wait in this process's socket, or in a slow NATS server, are not missing.
            if self._older_than(BEAT_STALE_S) and await self._is_bus_quick():
                self._forget(self._older_than(BEAT_STALE_S))

    def _older_than(self, seconds: float) -> list[tuple[str, str]]:
        """Tier and worker of each beat that is too old."""
        limit = self._loop.time() - seconds
        return [
            (tier, worker)
            for tier, workers in self._beats.items()
            for worker, (_, at) in workers.items()
            if at < limit
        ]

    def _forget(self, stale: list[tuple[str, str]]) -> None:
        """Drops workers without heartbeats, which NATS may still have in their queue groups."""
        for tier, worker in stale:
            _log.warning("tier %s: no heartbeat from worker %s for %g s", tier, worker, BEAT_STALE_S)
            del self._beats[tier][worker]
            if not self._beats[tier]:
                del self._beats[tier]
            self.detour(tier)
        self._forget_unknown()

    def _forget_unknown(self) -> None:
        """Lets go of what was known of workers that have no beat any more."""
        known = {worker for workers in self._beats.values() for worker in workers}
        for worker in self._silent.keys() - known:
            del self._silent[worker]
        for worker in self._confirmed.keys() - known:
            del self._confirmed[worker]
        for worker in self._asked.keys() - known:
            del self._asked[worker]
        for tier in list(self._detours):
            self.must_detour(tier)  # forgets one that is over
        self.skews.keep(known)

    def _on_bus_state(self, connected: bool) -> None:  # noqa: FBT001 - the bus's listener signature
        """After NATS was away the workers need a moment to beat again."""
        if connected:
            self._recovered_at = self._loop.time() + RECOVERY_S

    async def _ask_all(self, tier: str) -> bool:
        asked = {beat.worker: self._ping(beat.worker) for beat in self._present(tier)}
        if not asked:
            return False
        asked_at = self._loop.time()
        if not await self._is_bus_quick():
            return False
        await asyncio.wait(asked.values(), timeout=max(0.0, asked_at + SILENCE_S - self._loop.time()))
        # Again: what the server has delivered while this process was busy itself comes in before it answers.
        if not (all(future.done() for future in asked.values()) or await self._is_bus_quick()):
            return False
        for worker, future in asked.items():
            if not future.done():
                self._note_silent(worker)
        return True

    async def _is_bus_quick(self) -> bool:
        """Whether NATS answers at once: else it may be why others do not."""
        asked_at = self._loop.time()
        try:
            with TimeLimit(self._loop, SILENCE_S):
                await self._bus.flush()
        except (BusDown, TimeoutError):
            return False
        return self._loop.time() - asked_at < QUICK_S

    def _note_silent(self, worker: str) -> None:
        tiers = [tier for tier, workers in self._beats.items() if worker in workers]
        if tiers and worker not in self._silent:
            _log.warning("worker %s does not answer: its requests go elsewhere", worker)
            self._silent[worker] = self._loop.time()
        for tier in tiers:
            self.detour(tier)

    def _note_alive(self, worker: str) -> None:
        """Brings a silent worker back, and those to its slots who wait for one."""
        if worker not in self._silent:
            return
        del self._silent[worker]
        _log.info("worker %s answers again", worker)
        for tier, workers in self._beats.items():
            if worker in workers:
                self._on_idle(tier)

    def _ping(self, worker: str) -> asyncio.Future[None]:
        asked = self._asked.get(worker)
        if asked is None or asked.done():
            asked = self._asked[worker] = self._loop.create_future()
        if self._bus.connected:
            ping = encode(Kind.PING, 0, 0, self._pong_of(worker).encode())
            self._bus.publish(subjects.control(worker), ping, reply=f"{self._pings}.{worker}")
        return asked

    def _pong_of(self, worker: str) -> str:
        """Where this worker answers pings: with a token that only it is sent, so no other can for it."""
        token = hashlib.blake2b(worker.encode(), digest_size=PONG_TOKEN_BYTES, key=self._secret).hexdigest()
        return f"{self._pongs}.{worker}.{token}"

    def _on_ping_status(self, message: Message) -> None:
        if message.no_responders:
            worker = message.subject.rpartition(".")[2]
            self._answered(worker)
            self.drop(worker)

    def _on_pong(self, message: Message) -> None:
        worker = message.subject.split(".")[-2]
        if message.subject == self._pong_of(worker):
            self._confirmed[worker] = self._loop.time()
            self._note_alive(worker)
            self._answered(worker)

    def _answered(self, worker: str) -> None:
        asked = self._asked.pop(worker, None)
        if asked is not None and not asked.done():
            asked.set_result(None)

    def _on_beat(self, message: Message) -> None:
        beat = unpack_beat(message.data)
        if beat is None or not subjects.WORKER_ID.fullmatch(beat.worker):
            return
        if message.subject != subjects.presence(beat.tier, beat.worker):
            return  # NATS permits a worker its own subject, not what it says in it
        workers = self._beats.setdefault(beat.tier, {})
        if beat.gone:
            workers.pop(beat.worker, None)
            self._forget_unknown()
            return
        workers[beat.worker] = (beat, self._loop.time())
        self.skews.note(beat)
        self._note_alive(beat.worker)
        if beat.backend == "up" and not beat.draining and beat.in_flight < beat.slots:
            self._on_idle(beat.tier)

    def _on_slot(self, message: Message) -> None:
        self._on_free_slot(message.subject.rpartition(".")[2])
