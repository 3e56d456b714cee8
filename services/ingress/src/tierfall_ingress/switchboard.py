"""The switchboard: opens lines, routes frames to them, renews their leases.

All replies to one ingress come to one wildcard inbox; frames carry the stream they belong to. Each half
second one message per worker renews the leases of all its streams; it carries a reply subject, so if the
worker is dead NATS itself says *no responders* and every line to it ends at once.

NATS's 503 is nothing but bytes that a worker could publish too. So the leases' reply subject is in a private
inbox, to which no worker may publish; what a worker has to say to a lease goes to the inbox for replies.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tierfall.bus.throttle import Throttle
from tierfall.errors import Undelivered, WorkerLost
from tierfall.protocol import subjects
from tierfall.protocol.envelope import pack
from tierfall.protocol.frames import FrameError, Kind, decode, encode
from tierfall.protocol.presence import RECOVERY_S
from tierfall_ingress.counts import LateCounts
from tierfall_ingress.entropy import entropy
from tierfall_ingress.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierfall.bus import Bus, Message, Subscription
    from tierfall.protocol.envelope import Envelope
    from tierfall.protocol.frames import Frame

LEASE_EVERY_S: Final = 0.5
LEASES_AT_A_TIME: Final = 250
"""In one message, of some 100 bytes each: any server takes one of that size."""
FIRST_PART_BYTES: Final = 128 * 1024
"""What of a body travels with the envelope; the rest follows by the worker's credit."""
PART_BYTES: Final = 512 * 1024
"""How much of the rest goes in one message: a larger one would hold up all that is queued behind it."""
ENVELOPE_RESERVE_BYTES: Final = 16 * 1024

_log: Final = logging.getLogger("tierfall.ingress")


def new_stream() -> int:
    """An attempt's id: random, so that a late or foreign frame finds nobody."""
    return int.from_bytes(entropy.take(8))


class Switchboard:
    """All open lines of this ingress process.

    Args:
        bus: What carries them.
        on_lost: Called with the id of a worker that turned out to be gone.
        is_away: Whether the worker of that id, last heard at that loop time, has been silent for too long.
    """

    def __init__(
        self, bus: Bus, on_lost: Callable[[str], None], is_away: Callable[[str, float], bool]
    ) -> None:
        self._bus = bus
        self._on_lost = on_lost
        self._is_away = is_away
        self.loop = asyncio.get_running_loop()
        self._base = bus.reply_inbox()
        self._unknown_to = f"{self._base}.unknown".encode()
        self._leases = bus.inbox()
        self._lines: dict[int, Line] = {}
        self._throttle = Throttle()
        self.counts = LateCounts(self.loop)
        self._recovered_at = 0.0
        self._subscriptions: list[Subscription] = []
        self._leasing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribes both inboxes and begins to renew leases."""
        self._subscriptions = [
            await self._bus.subscribe(f"{self._base}.>", self._on_message),
            await self._bus.subscribe(f"{self._leases}.*", self._on_lease_status),
        ]
        self._leasing = asyncio.create_task(self._renew_leases(), name="leases")
        self._bus.on_state(self._on_bus_state)

    async def close(self) -> None:
        """Ends every line and stops listening."""
        for line in list(self._lines.values()):
            line.fail(WorkerLost("the ingress is stopping"))
        self.counts.close()
        if self._leasing is not None:
            self._leasing.cancel()
        for subscription in self._subscriptions:
            await subscription.close()

    @property
    def open_lines(self) -> int:
        """How many attempts are under way."""
        return len(self._lines)

    @property
    def part_bytes(self) -> int:
        """How much of a body travels in one message behind the first."""
        return min(PART_BYTES, self._bus.max_payload - ENVELOPE_RESERVE_BYTES)

    def open(self, tier: str, envelope: Envelope, body: bytes, worker: str = "") -> Line:
        """Publishes one attempt on its tier.

        Args:
            tier: Its name.
            envelope: The attempt's.
            body: The whole request body.
            worker: Who is to take it; whom NATS chooses from the queue group when empty.

        Raises:
            BusDown: There is no connection to NATS now.
        """
        first = min(FIRST_PART_BYTES, self.part_bytes)
        line = Line(self, self._bus, envelope.stream, tier, body, sent_bytes=first)
        message = pack(envelope, body[:first])
        subject = subjects.direct(tier, worker) if worker else subjects.chat(tier)
        self._bus.publish(subject, message, reply=f"{self._base}.{envelope.stream:016x}")
        self._lines[envelope.stream] = line
        return line

    def forget(self, line: Line) -> None:
        """Frames for this line find nobody from now on."""
        self._lines.pop(line.stream, None)

    def _on_message(self, message: Message) -> None:
        if message.no_responders:
            self._on_no_responders(message.subject[len(self._base) + 1 :])
            return
        try:
            for frame in decode(message.data):
                line = self._lines.get(frame.stream)
                if line is not None:
                    line.feed(frame)
                elif frame.kind is Kind.ACCEPTED:
                    self._turn_down(frame)
                else:
                    self.counts.feed(frame)
        except FrameError as error:
            self._log_dropped("a reply", str(error))

    def _turn_down(self, frame: Frame) -> None:
        """A worker accepted what nobody waits for any longer."""
        worker = frame.payload.decode("ascii", "replace")
        if not subjects.WORKER_ID.fullmatch(worker):
            self._log_dropped("an acceptance", "it names no worker")
            return
        self._bus.publish(subjects.control(worker), encode(Kind.CANCEL, frame.stream, 0, b"too_late"))

    def _log_dropped(self, what: str, why: str) -> None:
        held = self._throttle.pass_(what)  # any worker may send as many of them as it likes
        if held is not None:
            _log.warning("dropped %s: %s (%d more since the last such line)", what, why, held)

    def _on_no_responders(self, token: str) -> None:
        """Nobody took a request, as NATS says, or the worker that has it: it could end its stream anyway."""
        try:
            unanswered = self._lines.get(int(token, 16))
        except ValueError:
            return
        if unanswered is not None and not unanswered.accepted:
            unanswered.no_responders()

    def _on_lease_status(self, message: Message) -> None:
        if not message.no_responders or self.loop.time() < self._recovered_at:
            return  # NATS was away: the worker may be on its way back, with its answers
        worker = message.subject[len(self._leases) + 1 :]
        for line in [line for line in self._lines.values() if line.worker == worker]:
            line.fail(WorkerLost(f"worker {worker} is gone"))
        self.counts.lost(worker)
        self._on_lost(worker)

    def _on_bus_state(self, connected: bool) -> None:  # noqa: FBT001 - the bus's listener signature
        """What no worker holds when NATS goes away may never have reached one: it is sent again."""
        if connected:
            self._recovered_at = self.loop.time() + RECOVERY_S
        else:
            for line in [line for line in self._lines.values() if not line.accepted]:
                line.fail(Undelivered("the connection to NATS was lost before a worker accepted"))

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_EVERY_S)
            if self._bus.connected:
                self._fail_unheard()
                self._send_leases()

    def _send_leases(self) -> None:
        # A method of its own: a variable of the task that calls it would hold the last line, body and all.
        leases: defaultdict[str, list[bytes]] = defaultdict(list)
        for line in self._lines.values():
            if line.worker:
                leases[line.worker].append(encode(Kind.LEASE, line.stream, 0, self._unknown_to))
        for worker, frames in leases.items():
            reply = f"{self._leases}.{worker}"
            for start in range(0, len(frames), LEASES_AT_A_TIME):
                some = frames[start : start + LEASES_AT_A_TIME]
                self._bus.publish(subjects.control(worker), b"".join(some), reply=reply)

    def _fail_unheard(self) -> None:
        """Ends lines whose worker has fallen silent before the answer began: another worker can do them.

        Others are left to the idle clock: the worker may only have been frozen for a moment.
        """
        if self.loop.time() < self._recovered_at:
            return
        for line in list(self._lines.values()):
            if line.accepted and not line.began and self._is_away(line.worker, line.accepted_at):
                line.fail(WorkerLost(f"worker {line.worker} does not answer any more"))
