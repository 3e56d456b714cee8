"""One tier served by this process: its queue-group membership, its slots, its backend's health."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from tierfall.engines import advice
from tierfall.errors import BackendDown, ProviderRefused, Stale, TierBusy, TierfallError, Unreadable
from tierfall.protocol import subjects
from tierfall.protocol.age import LATE_S
from tierfall.protocol.envelope import unpack
from tierfall.protocol.failure import pack_failure
from tierfall.protocol.frames import STREAM_LIMIT, FrameError, Kind, encode
from tierfall.protocol.presence import BEAT_EVERY_S, Beat, down, pack_beat
from tierfall.redact import redactor_of
from tierfall.worker.backend import Health
from tierfall.worker.incoming import IncomingBody
from tierfall.worker.job import Job
from tierfall.worker.reply import Reply
from tierfall.worker.tracing import TierTrace

if TYPE_CHECKING:
    from collections.abc import Collection

    from tierfall.bus import Bus, Message, Subscription
    from tierfall.config import Tier
    from tierfall.protocol.age import Ages
    from tierfall.protocol.envelope import Envelope
    from tierfall.telemetry import Tracer
    from tierfall.worker.backend import Backend
    from tierfall.worker.incoming import BodyIntake
    from tierfall.worker.meters import Meters
    from tierfall.worker.reply import Outbox

PROBE_EVERY_S: Final = 1.0
PROBE_TIMEOUT_S: Final = 5.0
LINE_LASTS_S: Final = 10.0
"""How long after a worker was last full requests may be waiting for its slots; its beats tell the rest."""

_log: Final = logging.getLogger("tierfall.worker")


class Station:
    """Serves one tier with one backend until it is drained.

    Args:
        name: The tier's name.
        tier: Its config.
        backend: Not started yet.
        worker: The process's id.
        jobs: The process's running jobs by stream, where control frames find them.
        intake: The process's.
        ages: The process's.
        meters: The process's.
        tracer: The process's.
    """

    def __init__(
        self,
        name: str,
        tier: Tier,
        backend: Backend,
        *,
        worker: str,
        bus: Bus,
        outbox: Outbox,
        jobs: dict[int, Job],
        intake: BodyIntake,
        ages: Ages,
        meters: Meters,
        tracer: Tracer,
    ) -> None:
        self.name = name
        self.in_flight = 0
        self.served = 0
        self._tier = tier
        self._backend = backend
        self._worker = worker
        self._bus = bus
        self._outbox = outbox
        self._jobs = jobs
        self._intake = intake
        self._ages = ages
        self._meters = meters
        self._trace = TierTrace(tracer, name, tier, worker, backend.base_url)
        self._redactor = redactor_of(tier)
        self._loop = asyncio.get_running_loop()
        self._health = Health("down", "not probed yet")
        self._advised: set[str] = set()
        """The engines that the log has warned of: once for each version."""
        self._said = self._redactor.text(self._health.reason)
        self._draining = False
        self._replaced = False
        self._unsent: set[int] = set()
        self._full_at = float("-inf")
        self._idle = asyncio.Event()
        self._idle.set()
        self._subscription: Subscription | None = None
        self._direct: Subscription | None = None
        self._tending: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Opens the backend, joins the queue group if its first probe is good, and begins to beat."""
        await self._backend.start()
        subject = subjects.chat(self.name)
        await self._probe()
        self._subscription = await self._bus.subscribe(subject, self._on_request, queue=subjects.QUEUE_GROUP)
        self._direct = await self._bus.subscribe(subjects.direct(self.name, self._worker), self._on_request)
        self._settle()
        self._tending = [
            asyncio.create_task(self._keep_beating(), name=f"beats of station {self.name}"),
            asyncio.create_task(self._keep_probing(), name=f"probes of station {self.name}"),
        ]

    def hand_over(self) -> None:
        """Another station of this worker has the tier: that one's word counts, so this one says nothing."""
        self._replaced = True

    async def drain(self, timeout_s: float, behind: Collection[asyncio.Task[None]] = ()) -> None:
        """Leaves the queue group, lets what is in flight finish and be sent, and says goodbye.

        Args:
            timeout_s: After this, what still runs is cancelled: its ingress sees the worker go.
            behind: What else has to end before the worker may say goodbye.
        """
        self._draining = True
        self._settle()
        self.beat()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning(
                "tier %s: %d requests did not finish in %.0f s", self.name, len(self._unsent), timeout_s
            )
        if behind:
            await asyncio.wait(behind)
        for task in self._tending:
            task.cancel()
        for subscription in (self._subscription, self._direct):
            if subscription is not None:
                await subscription.close()
        self.beat(gone=True)
        await self._backend.close()

    @property
    def slots(self) -> int:
        """How many requests may be in flight at a time."""
        return self._tier.max_in_flight

    @property
    def health(self) -> Health:
        """What the last probe or a request found."""
        return self._health

    def _on_request(self, message: Message) -> None:
        try:
            envelope, part = unpack(message.data)
        except FrameError as error:
            _log.warning("tier %s: cannot read a request: %s", self.name, error)
            self._refuse_unread(message.reply, error)
            return
        if not message.reply or envelope.stream in self._jobs:
            _log.warning("tier %s: dropped a request that is held already or wants no answer", self.name)
            return
        late_s = self._ages.age(message.reply.rpartition(".")[0], envelope.sent_at, fresh=envelope.fresh)
        refusal = self._refusal(late_s)
        if refusal is not None:
            self._bus.publish(message.reply, encode(Kind.ERROR, envelope.stream, 0, pack_failure(refusal)))
            return
        self._admit(envelope, part, message.reply)

    def _refuse_unread(self, reply_to: str, error: FrameError) -> None:
        """Answers an ingress of another version at once; the reply subject ends in the stream's id."""
        try:
            stream = int(reply_to.rpartition(".")[2], 16)
        except ValueError:
            return
        if 0 <= stream < STREAM_LIMIT and self._bus.connected:
            refusal = Unreadable(f"worker {self._worker} is of another version than its ingress: {error}")
            self._bus.publish(reply_to, encode(Kind.ERROR, stream, 0, pack_failure(refusal)))

    def _refusal(self, late_s: float) -> TierfallError | None:
        """Why a request is sent back: it is late, or came while this worker was leaving the group."""
        if late_s > LATE_S:
            _log.info("tier %s: refused a request that came %.1f s late", self.name, late_s)
            return Stale(f"the request came {late_s:.1f} s late to worker {self._worker}")
        if self._health.state != "up":
            return down(self.name, self._health.state, self._said)
        if self._draining or self.in_flight >= self._tier.max_in_flight:
            return TierBusy("this worker has no free slot")
        return None

    def _admit(self, envelope: Envelope, part: bytes, reply_to: str) -> None:
        forget = partial(self._forget, envelope.stream)
        reply = Reply(self._outbox, reply_to, envelope.stream, envelope.window, forget)
        grant = reply.grant_body if envelope.body_on_credit else None
        body = IncomingBody(self._intake, part, envelope.body_size, grant)
        job = Job(
            envelope,
            body,
            reply,
            self._backend,
            trace=self._trace.begin(envelope),
            refuse_extra=self._tier.extra_fields == "refuse",
            redactor=self._redactor,
        )
        self._jobs[job.stream] = job
        self._unsent.add(job.stream)
        self.in_flight += 1
        self._idle.clear()
        reply.accepted(
            self._worker, urgent=len(part) < envelope.body_size
        )  # the rest of its body waits for it
        task = job.start()
        task.add_done_callback(lambda _: self._release(job))
        if self.in_flight >= self._tier.max_in_flight:
            self._full_at = self._loop.time()
        self._settle()

    def _release(self, job: Job) -> None:
        self.in_flight -= 1
        self.served += 1
        job.close()
        self._meters.finished(self.name, job)
        self._note_idle()
        if isinstance(job.failure, BackendDown):
            # The backend's own word beats the last probe; the next probe may bring it back.
            self._become(Health("down", job.failure.internal))
        elif isinstance(job.failure, ProviderRefused):
            _log.error("tier %s: %s", self.name, job.failure.internal)  # only its operator can mend it
        self._settle()
        self._announce()

    def _forget(self, stream: int) -> None:
        """All of an answer is sent: a slow client may take it long after the backend is done with it."""
        self._jobs.pop(stream, None)
        self._unsent.discard(stream)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self.in_flight and not self._unsent:
            self._idle.set()

    def _settle(self) -> None:
        """Joins or leaves the queue group as health, slots and drain demand."""
        subscription = self._subscription
        if subscription is None:
            return
        if self._draining and self._direct is not None:
            self._direct.leave()  # a changed tier's new station takes over
        able = not self._draining and self._health.state == "up" and self.in_flight < self._tier.max_in_flight
        if able:
            subscription.join()
        else:
            subscription.leave()

    def _announce(self) -> None:
        """Says that a slot is free again, while there may be a line for it.

        Who waits has found every worker of the tier full, and each slot that is announced wakes one of them.
        So each release counts: the request that it wakes may take another worker's slot, whose own
        announcement then serves the next.
        """
        joined = self._subscription is not None and self._subscription.joined
        if joined and self._bus.connected and self._loop.time() - self._full_at < LINE_LASTS_S:
            self._bus.publish(subjects.slot(self.name), self._worker.encode())

    async def _keep_beating(self) -> None:
        """Beats however long a probe takes: a worker without beats gets no requests."""
        while True:
            self.beat()
            await asyncio.sleep(BEAT_EVERY_S)

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            await self._probe()
            self._settle()

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                self._become(await self._backend.probe())
        except TimeoutError:
            self._become(Health("down", f"the health probe took longer than {PROBE_TIMEOUT_S:.0f} s"))
        except Exception as error:  # noqa: BLE001 - a defect in one backend must not end the others
            _log.debug("probe of tier %s", self.name, exc_info=error)
            self._become(Health("down", f"the health probe failed: {type(error).__name__}"))

    def _become(self, health: Health) -> None:
        before, self._health = self._health, health
        if health.reason != before.reason:
            self._said = self._redactor.text(health.reason)
        if (health.state, health.reason) != (before.state, before.reason):
            level = logging.WARNING if health.state == "down" else logging.INFO
            _log.log(
                level,
                "tier %s: backend %s%s",
                self.name,
                health.state,
                health.reason and f": {health.reason}",
            )
            self.beat()
        if health.engine not in self._advised and (said := advice(health.engine)):
            self._advised.add(health.engine)
            _log.warning("tier %s: %s", self.name, said)

    def beat(self, *, gone: bool = False) -> None:
        """Tells the ingresses how this worker is."""
        if self._replaced or not self._bus.connected:
            return
        beat = Beat(
            worker=self._worker,
            tier=self.name,
            kind=self._tier.kind,
            slots=self._tier.max_in_flight,
            in_flight=self.in_flight,
            backend=self._health.state,
            reason=self._health.reason,
            said=self._said,
            draining=self._draining,
            gone=gone,
            models=self._health.models,
            engine=self._health.engine,
            time=time.time(),
        )
        self._bus.publish(subjects.presence(self.name, self._worker), pack_beat(beat))
