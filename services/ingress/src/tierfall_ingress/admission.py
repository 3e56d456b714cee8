"""Admission: getting one attempt into the hands of a worker, or learning why not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from tierfall.errors import BackendDown, ClientGone, NoWorkers, Stale, TierBusy, Undelivered, Unreadable
from tierfall.protocol.age import clock
from tierfall.protocol.envelope import Envelope
from tierfall.protocol.presence import down
from tierfall.timelimit import TimeLimit
from tierfall_ingress.line import WINDOW_BYTES
from tierfall_ingress.roster import SILENCE_S
from tierfall_ingress.switchboard import new_stream

if TYPE_CHECKING:
    from tierfall.protocol.envelope import Resume
    from tierfall_ingress.ask import Ask
    from tierfall_ingress.ladder import Rung
    from tierfall_ingress.line import Line
    from tierfall_ingress.services import Services

ACCEPT_S: Final = 0.15
"""How long a worker may take to say that it holds a request; then the tier's workers are pinged. With the
time that they have to answer, a frozen worker costs a request 0.5 s."""
OVERTAKEN_S: Final = 0.02
"""How much later than its answer to a ping a worker's word may come for a request that it got before."""
UNDELIVERED_S: Final = 2.0
"""How long a request waits for a worker to accept it, while NATS is too slow to say whether one is there."""
STRAGGLER_TRIES: Final = 16
"""How often a request that reached a worker just as it filled up is sent again at once. Hardly more workers
than that fill up in the same moment, and each has left its queue group by the time it says so."""
LAST_TIER_PATIENCE_S: Final = 30.0
"""How long the last live tier may be full before the client is told to come back: there is nowhere to go."""
LOOK_AGAIN_S: Final = 0.5
"""How often a waiting request checks that there is still somebody to wait for."""
SIGNS_EVERY_S: Final = 1.0
"""How often a worker that assembles an answer says that it grows, if the idle clock is not a short one."""
BUS_PATIENCE_S: Final = 2.0
"""How long a request waits for NATS to come back."""


class Admission:
    """Admits one request's attempts, one after the other."""

    def __init__(self, services: Services, ask: Ask, client: str, *, request_id: str, created: int) -> None:
        self._services = services
        self._ask = ask
        self._client = client
        self._request_id = request_id
        self._created = created
        self._attempts = 0
        self.resume: Resume | None = None
        """What the client has already, when an attempt is to go on with a broken stream."""
        self.traceparent = ""
        """The span of the attempt that is to be admitted."""
        self.waited_s = 0.0
        """Seconds for which the request stood in line, over all its attempts."""

    async def admit(self, rung: Rung, *, last: bool) -> Line:
        """A line that a worker of the rung's tier has accepted.

        Args:
            rung: The step of the ladder.
            last: Whether no later tier is alive, so that waiting for a slot is all there is.

        Raises:
            NoWorkers, BackendDown: There is nobody to take it.
            TierBusy: All slots are taken, and waiting is not allowed or was in vain.
            Unreadable: The tier's workers are of another version.
            Undelivered: NATS does not carry it.
            BusDown: NATS is away.
        """
        room = self._services.rooms[rung.tier]
        wakes = room.wakes
        if not room.has_line:
            line = await self._offer(rung)
            if line is not None:
                return line
            await self._check_alive(rung.tier, last=last)
        patience = max(
            rung.model.when_full.seconds,
            LAST_TIER_PATIENCE_S if last else 0.0,
            self._services.recovering_s,
        )
        if not patience:
            raise TierBusy(f"every slot of tier {rung.tier!r} is taken")
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await self._wait(rung, patience, wakes, last=last)
        finally:
            self.waited_s += loop.time() - began

    async def _wait(self, rung: Rung, patience_s: float, wakes: int, *, last: bool) -> Line:
        loop = asyncio.get_running_loop()
        room = self._services.rooms[rung.tier]
        until = loop.time() + patience_s
        with room.ticket(self._client) as ticket:
            while (left := until - loop.time()) > 0:
                if await ticket.turn(min(left, LOOK_AGAIN_S), wakes):
                    wakes = room.wakes
                    line = await self._offer(rung)
                    if line is not None:
                        ticket.served = True
                        return line
                await self._check_alive(rung.tier, last=last)
        raise TierBusy(
            f"every slot of tier {rung.tier!r} was taken for {patience_s:g} s", retry_after=room.retry_after_s
        )

    async def _offer(self, rung: Rung) -> Line | None:
        """Publishes the request; None when no worker of the tier is free to take it."""
        roster, tier = self._services.roster, rung.tier
        for _ in range(STRAGGLER_TRIES):
            if not (roster.has_workers(tier) or self._services.recovering_s):
                return None
            if roster.must_detour(tier):
                return await self._offer_to_each(rung)
            try:
                if line := await self._send(rung):
                    return line
            except NoWorkers:
                return None
            except TierBusy:
                pass  # it was just leaving the queue group: the next try goes elsewhere
            except Unreadable:
                return await self._offer_to_each(rung)  # while a tier is upgraded, some of its workers can
        return None

    async def _offer_to_each(self, rung: Rung) -> Line | None:
        """As :meth:`_offer`, past the queue group: not each of its members may be of use.

        Raises:
            Unreadable: No worker can read it.
        """
        workers = self._services.roster.by_room(rung.tier)[:STRAGGLER_TRIES]
        unsubscribed, unread, reason = 0, 0, ""
        for worker in workers:
            try:
                if line := await self._send(rung, worker):
                    return line
            except NoWorkers:
                unsubscribed += 1
            except (TierBusy, BackendDown):
                pass
            except Unreadable as error:
                unread, reason = unread + 1, error.message
        if workers and unread == len(workers):
            raise Unreadable(reason)
        if workers and unsubscribed == len(workers):
            # Their NATS users may not subscribe to these subjects: they are from before there were any.
            with contextlib.suppress(NoWorkers, TierBusy):
                return await self._send(rung)
        return None

    async def _send(self, rung: Rung, worker: str = "") -> Line | None:
        """Sends the request once, to this worker or to the queue group; None if nothing was heard of it."""
        try:
            line = await self._publish(rung, worker)
            return line if await self._accepted(line) else None
        except Stale:
            line = await self._publish(rung, worker, fresh=True)
            return line if await self._accepted(line) else None

    async def _publish(self, rung: Rung, worker: str, *, fresh: bool = False) -> Line:
        await self._services.bus_ready(BUS_PATIENCE_S)
        self._attempts += 1
        ask = self._ask
        envelope = Envelope(
            stream=new_stream(),
            request_id=self._request_id,
            attempt=self._attempts,
            model=rung.name,
            backend_model=rung.model.backend_model,
            operation=ask.operation,
            choices=ask.choices,
            max_tokens=ask.max_tokens,
            answer_id=ask.operation.answer_id(self._request_id),
            created=self._created,
            streaming=ask.streaming,
            include_usage=ask.include_usage,
            sent_at=clock(),
            fresh=fresh,
            signs_every_s=min(SIGNS_EVERY_S, rung.model.deadlines.idle / 4),
            window=WINDOW_BYTES,
            body_size=len(ask.body),
            body_on_credit=True,
            traceparent=self.traceparent,
            resume=self.resume,
        )
        return self._services.switchboard.open(rung.tier, envelope, ask.body, worker)

    async def _accepted(self, line: Line) -> bool:
        """Whether a worker holds it; False when one received it and does not answer: send it again.

        Raises:
            TierfallError: NATS or a worker turned it down.
        """
        overdue = False
        try:
            with TimeLimit(line.loop, ACCEPT_S):
                await self._word(line)
        except TimeoutError:
            overdue = True
        except asyncio.CancelledError:
            line.fail(ClientGone("the request was given up"))
            raise
        return not overdue or await self._look_into(line)

    async def _look_into(self, line: Line) -> bool:
        """As :meth:`_accepted`, once a request is overdue: finds out which worker does not answer."""
        roster, tier = self._services.roster, line.tier
        try:
            while line.loop.time() - line.opened_at < UNDELIVERED_S:
                pings = roster.inquire(tier)
                pings.add_done_callback(lambda _: line.nudge())
                await self._word(line, pings)
                known = pings.done() and not pings.cancelled() and pings.result()
                if not (roster.has_workers(tier) or self._services.recovering_s):
                    known = True
                left_s = line.opened_at + ACCEPT_S + SILENCE_S - line.loop.time()
                patience = max(left_s, OVERTAKEN_S if known else ACCEPT_S)
                with contextlib.suppress(TimeoutError), TimeLimit(line.loop, patience):
                    await self._word(line)
                if line.accepted:
                    return True
                if known:
                    if roster.has_workers(tier):
                        # Those that answer do not have it: it went to a dead member of the queue group.
                        roster.detour(tier)
                    line.fail(Undelivered(f"a worker of tier {tier!r} received it and does not answer"))
                    return False
        except asyncio.CancelledError:
            line.fail(ClientGone("the request was given up"))
            raise
        line.fail(Undelivered(f"no worker confirmed the request within {UNDELIVERED_S:g} s: NATS is slow"))
        line.check()
        return False

    async def _word(self, line: Line, pings: asyncio.Task[bool] | None = None) -> None:
        """Returns once a worker holds it, or the pings are over.

        Raises:
            TierfallError: NATS or a worker turned it down.
        """
        while not (line.accepted or (pings is not None and pings.done())):
            line.check()
            await line.changed()

    async def _check_alive(self, tier: str, *, last: bool) -> None:
        """Nobody took it: raises unless that is because everybody is busy.

        On the last tier a worker that was there a moment ago is waited for: it may only have been held up.
        """
        roster = self._services.roster
        standing = await roster.confirm(tier)
        if standing.state == "no_workers":
            if self._services.recovering_s or (last and roster.may_come_back(tier)):
                return
            silent = roster.may_come_back(tier)
            raise NoWorkers(
                f"tier {tier!r}: {standing.reason}" if silent else f"no worker serves tier {tier!r}"
            )
        if standing.state != "up":
            raise down(tier, standing.state, standing.said)
