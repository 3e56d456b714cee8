"""The roster: who serves which tier, as the workers' beats tell."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from tierfall.protocol import subjects
from tierfall.protocol.frames import Kind, encode
from tierfall.protocol.presence import BEAT_STALE_S, Beat, unpack_beat

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierfall.bus import Bus, Message, Subscription

PING_S: Final = 0.25
"""How long a worker may take to say that it is there, before its last beat is believed instead."""
CONFIRMED_FOR_S: Final = 0.25
PONG_TOKEN_BYTES: Final = 8

TierState = Literal["up", "loading", "down", "no_workers"]
_RANK: Final[dict[str, int]] = {"up": 2, "loading": 1, "down": 0}


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
    """

    def __init__(self, bus: Bus, on_slot: Callable[[str], None], on_idle: Callable[[str], None]) -> None:
        self._bus = bus
        self._on_free_slot = on_slot
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._beats: dict[str, dict[str, tuple[Beat, float]]] = {}
        self._next_sweep = 0.0
        self._subscriptions: list[Subscription] = []
        self._pings = bus.inbox()
        self._pongs = bus.reply_inbox()
        self._secret = secrets.token_bytes()
        self._confirmed: dict[str, float] = {}
        self._asked: dict[str, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Listens for beats and free slots."""
        self._subscriptions = [
            await self._bus.subscribe(subjects.PRESENCE_ALL, self._on_beat),
            await self._bus.subscribe(subjects.SLOTS_ALL, self._on_slot),
            await self._bus.subscribe(f"{self._pings}.*", self._on_ping_status),
            await self._bus.subscribe(f"{self._pongs}.*.*", self._on_pong),
        ]

    async def close(self) -> None:
        """Stops listening."""
        for subscription in self._subscriptions:
            await subscription.close()

    def standing(self, tier: str) -> Standing:
        """How ``tier`` stands; workers that were silent for too long are not counted."""
        limit = self._loop.time() - BEAT_STALE_S
        beats = tuple(
            beat for beat, at in self._beats.get(tier, {}).values() if at >= limit and not beat.draining
        )
        if not beats:
            return Standing("no_workers", "no worker serves this tier", 0, ())
        best = max(beats, key=lambda beat: _RANK[beat.backend])
        free = sum(max(0, beat.slots - beat.in_flight) for beat in beats if beat.backend == "up")
        return Standing(best.backend, best.reason, free, beats)

    def is_live(self, tier: str) -> bool:
        """Whether some worker of the tier has its backend up."""
        return self.standing(tier).state == "up"

    async def confirm(self, tier: str) -> Standing:
        """As :meth:`standing`, after asking the tier's workers whether they are still there.

        For when nobody took a request though beats say that somebody could: a worker that was killed leaves
        its last beat behind, but NATS knows at once that it is gone.
        """
        asked = [self._ping(beat.worker) for beat in self.standing(tier).workers if beat.backend == "up"]
        if asked:
            await asyncio.wait(asked, timeout=PING_S)
        return self.standing(tier)

    def drop(self, worker: str) -> None:
        """The worker is known to be gone."""
        for workers in self._beats.values():
            workers.pop(worker, None)

    def _ping(self, worker: str) -> asyncio.Future[None]:
        asked = self._asked.get(worker)
        if asked is not None and not asked.done():
            return asked
        asked = self._asked[worker] = self._loop.create_future()
        if self._loop.time() - self._confirmed.get(worker, float("-inf")) < CONFIRMED_FOR_S:
            asked.set_result(None)
        elif self._bus.connected:
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
            self.drop(worker)
            self._answered(worker)

    def _on_pong(self, message: Message) -> None:
        worker = message.subject.split(".")[-2]
        if message.subject == self._pong_of(worker):
            self._confirmed[worker] = self._loop.time()
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
        self._forget_stale()
        workers = self._beats.setdefault(beat.tier, {})
        if beat.gone:
            workers.pop(beat.worker, None)
            return
        workers[beat.worker] = (beat, self._loop.time())
        if beat.backend == "up" and not beat.draining and beat.in_flight < beat.slots:
            self._on_idle(beat.tier)

    def _forget_stale(self) -> None:
        """Now and then drops the beats of workers that have not said goodbye."""
        now = self._loop.time()
        if now < self._next_sweep:
            return
        self._next_sweep = now + BEAT_STALE_S
        for tier, workers in list(self._beats.items()):
            for worker in [name for name, (_, at) in workers.items() if at < now - BEAT_STALE_S]:
                del workers[worker]
            if not workers:
                del self._beats[tier]
        known = {worker for workers in self._beats.values() for worker in workers}
        for worker in self._confirmed.keys() - known:
            del self._confirmed[worker]

    def _on_slot(self, message: Message) -> None:
        self._on_free_slot(message.subject.rpartition(".")[2])
