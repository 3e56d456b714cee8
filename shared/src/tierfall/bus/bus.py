"""The bus: publish, subscribe, heal."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from typing import TYPE_CHECKING, Any, Final, Self

from tierfall.bus import headers as header_block
from tierfall.bus import nkey
from tierfall.bus.dialer import Dialer
from tierfall.bus.options import BusCounters, BusOptions
from tierfall.bus.outbox import Outbox
from tierfall.bus.refusals import Refusals
from tierfall.bus.service import Service
from tierfall.bus.subscription import Subscription, check_subscription
from tierfall.bus.throttle import Throttle
from tierfall.bus.wire import Wire
from tierfall.errors import BusDown, BusUnfit, PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tierfall.bus.message import Callback, Message

logger = logging.getLogger("tierfall.bus")

PAYLOAD_RESERVE_BYTES: Final = 64 * 1024
"""Kept free below the server's ``max_payload``, for headers that a server adds on the way."""
PAYLOAD_RESERVE_SHARE: Final = 16
"""The reserve is at most one part in this many of ``max_payload``."""
HEAD_BYTES: Final = 2048
"""Longest first line of a message; the server's ``max_control_line`` is 4096 by default."""
RECONNECT_MIN_S: Final = 0.1
RECONNECT_MAX_S: Final = 1.0
STEADY_S: Final = 2.0
"""A connection that lasted so long was a good one: the next reconnect starts without a long wait."""
CLOSE_TIMEOUT_S: Final = 5.0
INBOX_BYTES: Final = 11
"""Random bytes in the name of an inbox: it cannot be guessed."""


class Bus:
    """One process's connection to NATS. Made with :meth:`connect`; everything happens on that event loop.

    ``publish()`` never waits, so a task that is being cancelled may call it. Callbacks are called in the
    order in which the server delivered. A lost connection is replaced for ever; meanwhile ``connected`` is
    false and ``publish()`` raises.
    """

    def __init__(self, options: BusOptions) -> None:
        self.counters = BusCounters()
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._throttle = Throttle()
        self._routes: dict[int, Callback] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._refusals = Refusals(self.counters, self._throttle, self._subscriptions)
        self._sids = itertools.count(1)
        self._listeners: list[Callable[[bool], None]] = []
        self._outbox = Outbox(self._loop)
        self._dialer = Dialer(options, self._new_wire)
        self._wire: Wire | None = None
        self._lost_wire: Wire | None = None
        self._connected = False
        self._closed = False
        self._max_payload = 0
        self._since = 0.0
        self._delay_s = RECONNECT_MIN_S
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, options: BusOptions) -> Self:
        """Connects, waiting for a server up to ``options.connect_timeout_s``.

        Raises:
            BusDown: No server let us in by then, or a URL is wrong; the message says which and why.
        """
        bus = cls(options)
        bus._adopt(await bus._first_wire())
        bus._keeper = bus._loop.create_task(bus._keep(), name="bus-keeper")
        return bus

    @property
    def connected(self) -> bool:
        """While it is true, ``publish()`` does not raise BusDown."""
        return self._connected

    @property
    def max_payload(self) -> int:
        """Largest payload in bytes that ``publish()`` takes: the last server's limit less the reserve."""
        return self._max_payload

    def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Queues a message; all that one turn of the event loop publishes leaves together.

        ``headers`` are for JetStream; they count towards the size, and cost more than the rest.

        Raises:
            BusDown: There is no connection now.
            PayloadTooLarge: ``payload`` is above :attr:`max_payload`.
            ValueError: A subject or header that would break the protocol.
        """
        if not self._connected:
            raise BusDown("NATS is not connected" if not self._closed else "the bus is closed")
        verb, sizes = "PUB", ""
        if headers:
            block = header_block.encode(headers)
            verb, sizes, payload = "HPUB", f"{len(block)} ", block + payload
        size = len(payload)
        if size > self._max_payload:
            self.counters.oversize_refused += 1
            raise PayloadTooLarge(f"{size} bytes are more than the bus carries at once ({self._max_payload})")
        if not subject or " " in subject or " " in reply or not (subject + reply).isprintable():
            raise ValueError(f"not a NATS subject: {subject!r}, reply {reply!r}")
        head = f"{verb} {subject} {reply} {sizes}{size}\r\n".encode()
        if len(head) > HEAD_BYTES:
            raise ValueError(f"subject and reply are too long: {len(head)} bytes")
        self._outbox.put(b"%b%b\r\n" % (head, payload))

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Subscribes, and returns once the server has it; waits for a connection if there is none.

        Raises:
            BusDown: The bus is closed.
            ValueError: A subject or queue group that NATS would refuse.
        """
        subscription = self._register(subject, callback, queue)
        await self._settle([subscription])
        return subscription

    def inbox(self) -> str:
        """A new private subject: only nats-server itself answers there (its 503, JetStream).

        With the users of ``tierfall nats-config`` no other user may publish to it. What other services are to
        answer needs a :meth:`reply_inbox`.
        """
        return f"{self._dialer.inbox_prefix}.{secrets.token_hex(INBOX_BYTES)}"

    def reply_inbox(self) -> str:
        """A new subject that workers may publish to, under the reply prefix of this client.

        Any worker may: so what arrives there is to be believed only as far as it proves where it comes from,
        and a 503 may be forged.
        """
        return f"{self._dialer.inbox_prefix}.{nkey.REPLIES}.{secrets.token_hex(INBOX_BYTES)}"

    async def flush(self) -> None:
        """Waits until the server has handled all that was published, joined and left before.

        As callbacks run in the order of delivery, all that the server delivered before has been handled here
        too. May be cancelled or timed out without harm.

        Raises:
            BusDown: The connection is down or went down meanwhile: what was sent on it may be lost.
        """
        if not self._connected or not await self._outbox.barrier():
            raise BusDown("NATS is not connected")

    async def request(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Message:
        """One request and its first answer, which may be the server's 503; for what nats-server answers.

        The answer comes to a private :meth:`inbox`, so a service whose user may not publish there cannot
        answer.

        Raises:
            TimeoutError: No answer within ``timeout_s``.
            BusDown, PayloadTooLarge, ValueError: As :meth:`publish`.
        """
        answer: asyncio.Future[Message] = self._loop.create_future()

        def take(message: Message) -> None:
            if not answer.done():
                answer.set_result(message)

        inbox = self.inbox()
        # Not waited for: the SUB goes ahead of the request on the same connection.
        subscription = self._register(inbox, take)
        try:
            self.publish(subject, payload, reply=inbox, headers=headers)
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            self._discard(subscription)

    def on_state(self, listener: Callable[[bool], None]) -> None:
        """Calls ``listener`` with False at each disconnect and True at each reconnect, synchronously.

        An exception in it is logged and counted. A ``close()`` is no disconnect.
        """
        self._listeners.append(listener)

    async def add_service(
        self,
        name: str,
        version: str,
        description: str,
        metadata: dict[str, str],
        stats: Callable[[], dict[str, Any]],
        *,
        subject: str = "",
        queue: str = "",
    ) -> None:
        """Answers NATS's service discovery (ADR-32): ``$SRV.PING``, ``$SRV.INFO`` and ``$SRV.STATS``.

        The arguments are those of :class:`tierfall.bus.service.Service`.

        Raises:
            ValueError: A name or version that the protocol does not allow.
        """
        service = Service(
            name=name,
            version=version,
            description=description,
            metadata=metadata,
            stats=stats,
            subject=subject,
            queue=queue,
            publish=self.publish,
        )
        await self._settle([self._register(route, callback) for route, callback in service.routes()])

    async def close(self) -> None:
        """Leaves all subscriptions, handles what was delivered, sends what was queued, disconnects.

        Takes up to ``CLOSE_TIMEOUT_S`` and a second. Again, it does nothing.
        """
        if self._closed:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for subscription in self._subscriptions.values():
                    subscription.leave()
                await self.flush()
                # The last callbacks may have published.
                await self.flush()
        except (TimeoutError, BusDown):
            logger.warning("closed without a connection to NATS: what was not sent is lost")
        finally:
            self._closed = True
            self._connected = False
            self._up.set()
            self._refusals.close()
            self.counters.dropped += self._outbox.detach(kept_bytes=0)
            if self._keeper is not None:
                self._keeper.cancel()
            for wire in (self._wire, self._lost_wire):
                if wire is not None:
                    await wire.shut()
            if self._keeper is not None:
                await asyncio.wait([self._keeper])
            self._routes.clear()
            self._subscriptions.clear()

    def _register(self, subject: str, callback: Callback, queue: str = "") -> Subscription:
        check_subscription(subject, queue)
        if self._closed:
            raise BusDown("the bus is closed")
        sid = next(self._sids)
        subscription = Subscription(
            sid=sid,
            subject=subject,
            queue=queue,
            send=self._outbox.put_control,
            flush=self.flush,
            forget=self._forget,
        )
        self._subscriptions[sid] = subscription
        self._routes[sid] = callback
        subscription.join()
        return subscription

    def _forget(self, sid: int) -> None:
        self._routes.pop(sid, None)
        self._subscriptions.pop(sid, None)

    def _discard(self, subscription: Subscription) -> None:
        subscription.leave()
        self._forget(subscription.sid)

    async def _settle(self, subscriptions: list[Subscription]) -> None:
        """Waits until the server has them, over reconnects; takes them back if the waiting ends early."""
        settled = False
        try:
            while not (settled or self._closed):
                await self._up.wait()
                settled = not self._closed and await self._outbox.barrier()
        finally:
            if not settled:
                for subscription in subscriptions:
                    self._discard(subscription)
        if not settled:
            raise BusDown("the bus is closed")

    def _new_wire(self) -> Wire:
        return Wire(
            routes=self._routes,
            on_error=self._on_callback_error,
            on_refusal=self._refusals.note,
            on_lost=self._on_lost,
        )

    async def _first_wire(self) -> Wire:
        failure = BusDown(f"cannot connect to NATS at {self._dialer.servers}: no answer")
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                while True:
                    try:
                        return await self._dialer.dial()
                    except BusDown as error:
                        failure = error
                        if isinstance(error, BusUnfit):
                            self._log_dial_failure(error)
                    await asyncio.sleep(_jittered(self._delay_s))
                    self._delay_s = min(2 * self._delay_s, RECONNECT_MAX_S)
        except TimeoutError:
            raise failure from None

    def _adopt(self, wire: Wire) -> None:
        """Makes a fresh connection the bus's own: subscriptions first, then what waited."""
        if wire.gone:
            # It ended between the handshake and now; the keeper has the next try.
            self._lost_wire = wire
            self._lost.set()
            return
        limit = wire.max_payload
        self._max_payload = limit - min(PAYLOAD_RESERVE_BYTES, limit // PAYLOAD_RESERVE_SHARE)
        self._wire = wire
        self._since = self._loop.time()
        joined = [s.sub_line for s in self._subscriptions.values() if s.joined]
        self.counters.dropped += self._outbox.attach(wire, joined, limit)
        self._set_connected(connected=True)

    def _on_lost(self, wire: Wire, reason: str) -> None:
        if wire is not self._wire:
            return
        self._wire, self._lost_wire = None, wire
        self.counters.dropped += (dropped := self._outbox.detach())
        logger.warning("lost the connection to NATS: %s (%d waiting messages given up)", reason, dropped)
        self._set_connected(connected=False)
        self._lost.set()

    def _set_connected(self, *, connected: bool) -> None:
        self._connected = connected
        if connected:
            self._up.set()
        else:
            self._up.clear()
        for listener in self._listeners:
            try:
                listener(connected)
            except Exception as error:  # noqa: BLE001 - a listener must not keep the bus from healing
                self._on_callback_error(error)

    async def _keep(self) -> None:
        """Replaces each lost connection; runs as long as the bus."""
        while not self._closed:
            await self._lost.wait()
            self._lost.clear()
            lost, self._lost_wire = self._lost_wire, None
            if lost is not None:
                await lost.shut()
            wire = await self._redial()
            if wire is None:
                return
            self.counters.reconnects += 1
            if lost is not None and lost.refusal:
                self.counters.rebuilds += 1
            logger.info("connected to NATS again, at %s", wire.server)
            if lost is not None and lost.cut_short:
                self._note_cut(lost, wire)
            self._adopt(wire)

    async def _redial(self) -> Wire | None:
        """Tries until a server lets us in; ``None`` once the bus is closed.

        Being cancelled is not enough of an end: Python 3.11's ``wait_for()``, which nats-py connects with,
        swallows a cancellation that meets its result.
        """
        if self._loop.time() - self._since > STEADY_S:
            self._delay_s = RECONNECT_MIN_S
        while not self._closed:
            await asyncio.sleep(_jittered(self._delay_s))
            self._delay_s = min(2 * self._delay_s, RECONNECT_MAX_S)
            try:
                wire = await self._dialer.dial()
            except BusDown as error:
                self._log_dial_failure(error)
                continue
            if not self._closed:
                return wire
            await wire.shut()
        return None

    def _note_cut(self, lost: Wire, wire: Wire) -> None:
        """Counts a connection that ended as a slow consumer's does, unless its server was restarted.

        nats-server tells a slow consumer nothing before it closes. Messages that were still on their way are
        the one sign, and a server that was killed leaves it too; then another process answers there now.
        """
        if wire.is_same_process(lost) is False:
            return
        self.counters.slow_consumer += 1
        logger.error(
            "NATS at %s cut the connection off with messages still on their way, as it does when this side"
            " reads too slowly: what was under way is lost. Its log names the limit (max_pending or"
            " write_deadline)",
            lost.server,
        )

    def _log_dial_failure(self, error: BusDown) -> None:
        held = self._throttle.pass_(f"dial {type(error).__name__}")
        if held is not None:
            level = logging.ERROR if isinstance(error, BusUnfit) else logging.WARNING
            logger.log(level, "%s; trying on (%d tries since the last such line)", error.message, held)

    def _on_callback_error(self, error: BaseException) -> None:
        self.counters.callback_errors += 1
        held = self._throttle.pass_("callback")
        if held is not None:
            logger.error("a callback failed (%d more since the last such line)", held, exc_info=error)


def _jittered(delay_s: float) -> float:
    """Between half of it and all of it, so that a fleet does not come back in step."""
    return delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it
