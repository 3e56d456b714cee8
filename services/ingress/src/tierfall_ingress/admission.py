"""Admission: getting one attempt into the hands of a worker, or learning why not."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tierfall.errors import ClientGone, NoWorkers, TierBusy
from tierfall.protocol.envelope import Envelope
from tierfall.protocol.presence import down
from tierfall_ingress.line import WINDOW_BYTES
from tierfall_ingress.switchboard import ACCEPT_S, new_stream

if TYPE_CHECKING:
    from tierfall.protocol.envelope import Resume
    from tierfall_ingress.ask import Ask
    from tierfall_ingress.ladder import Rung
    from tierfall_ingress.line import Line
    from tierfall_ingress.services import Services

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
            WorkerLost: A worker got it and was not heard of again.
            BusDown: NATS is away.
        """
        room = self._services.rooms[rung.tier]
        wakes = room.wakes
        if not room.has_line:
            line = await self._offer(rung)
            if line is not None:
                return line
            await self._check_alive(rung.tier)
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
            return await self._wait(rung, patience, wakes)
        finally:
            self.waited_s += loop.time() - began

    async def _wait(self, rung: Rung, patience_s: float, wakes: int) -> Line:
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
                await self._check_alive(rung.tier)
        raise TierBusy(
            f"every slot of tier {rung.tier!r} was taken for {patience_s:g} s", retry_after=room.retry_after_s
        )

    async def _offer(self, rung: Rung) -> Line | None:
        """Publishes the request; None when no worker of the tier is free to take it."""
        for _ in range(STRAGGLER_TRIES):
            line = await self._publish(rung)
            try:
                await self._accepted(line)
            except NoWorkers:
                return None
            except TierBusy:
                continue  # it was just leaving the queue group: the next try goes elsewhere
            else:
                return line
        return None

    async def _publish(self, rung: Rung) -> Line:
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
            expires_at=time.time() + ACCEPT_S,
            signs_every_s=min(SIGNS_EVERY_S, rung.model.deadlines.idle / 4),
            window=WINDOW_BYTES,
            body_size=len(ask.body),
            body_on_credit=True,
            traceparent=self.traceparent,
            resume=self.resume,
        )
        return self._services.switchboard.open(rung.tier, envelope, ask.body)

    async def _accepted(self, line: Line) -> None:
        try:
            while not line.accepted:
                line.check()
                await line.changed()
        except asyncio.CancelledError:
            line.fail(ClientGone("the request was given up"))
            raise

    async def _check_alive(self, tier: str) -> None:
        """Nobody took it: raises unless that is because everybody is busy."""
        standing = await self._services.roster.confirm(tier)
        if standing.state == "no_workers":
            if self._services.recovering_s:
                return
            raise NoWorkers(f"no worker serves tier {tier!r}")
        if standing.state != "up":
            raise down(tier, standing.state, standing.said)
