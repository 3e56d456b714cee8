"""What one ordered consumer delivers: in order, without gaps, or it is broken."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final

from tierfall.bus import headers as header_block
from tierfall.store import names
from tierfall.store.entry import Entry
from tierfall.store.markers import is_deletion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tierfall.bus import Message

HEARTBEAT_S: Final = 1.0
SILENT_S: Final = 3.0
"""Without an entry or a heartbeat for so long the consumer is taken for gone."""
FORGOTTEN_S: Final = 10.0
"""After so long NATS removes a consumer that nobody listens to."""
HEARTBEAT: Final = 100
LAST: Final = "Nats-Last-Consumer"
OLD_TOKENS: Final = 9
"""``$JS.ACK.<stream>.<consumer>.<times>.<stream seq>.<own seq>.<time>.<pending>``; the newer form has a
domain and an account before the stream (flag ``js_ack_fc_v2``)."""
NEW_TOKENS_MORE: Final = 2


def consumer(bucket: str, name: str, inbox: str) -> Mapping[str, Any]:
    """The request for a consumer that begins with the last entry of each key."""
    return {
        "stream_name": names.stream(bucket),
        "action": "create",
        "config": {
            "name": name,
            "filter_subject": names.entries(bucket),
            "deliver_policy": "last_per_subject",
            "deliver_subject": inbox,
            "ack_policy": "none",
            "replay_policy": "instant",
            "max_deliver": 1,
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            "inactive_threshold": int(FORGOTTEN_S * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        },
    }


class Feed:
    """One consumer's deliveries.

    Args:
        bucket: The bucket's name.
        tell: Called with each entry in order.
        caught_up: Called once with the keys that are there, when all that was there at first has been told.
        broken: Called when something is missing; nothing is told any more.
    """

    def __init__(
        self,
        bucket: str,
        tell: Callable[[Entry], None],
        caught_up: Callable[[set[str]], None],
        broken: Callable[[], None],
    ) -> None:
        self.name = secrets.token_hex(8)
        self._prefix = len(names.entries(bucket)) - 1
        self._tell = tell
        self._caught_up = caught_up
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._count = 0
        self._seen: set[str] | None = set()
        self._ended = False

    def begin(self, created: Mapping[str, Any]) -> None:
        """Takes in the answer to :func:`consumer`: nothing in an empty bucket would say it is complete."""
        delivered = created.get("delivered", {}).get("consumer_seq", 0)
        if created.get("num_pending", 0) + delivered == 0:
            self._complete()

    def end(self) -> None:
        """Tells nothing any more."""
        self._ended = True

    def silent(self) -> bool:
        """Whether nothing came for ``SILENT_S``."""
        return self._loop.time() - self._heard >= SILENT_S

    def take(self, message: Message) -> None:
        """The subscription's callback."""
        if self._ended:
            return
        self._heard = self._loop.time()
        status = header_block.status(message.headers) if message.headers else 0
        if status:
            self._take_status(status, message.headers)
            return
        stream_seq, own_seq, pending = _position(message.reply)
        if own_seq != self._count + 1:
            self._break()
            return
        self._count = own_seq
        entry = Entry(message.subject[self._prefix :], message.data, stream_seq, is_deletion(message.headers))
        if self._seen is not None and not entry.deleted:
            self._seen.add(entry.key)
        elif self._seen is not None:
            self._seen.discard(entry.key)
        try:
            self._tell(entry)
        finally:
            if pending == 0:
                self._complete()

    def _take_status(self, status: int, block: bytes) -> None:
        last = header_block.find(block, LAST)
        if status != HEARTBEAT or (last and int(last) != self._count):
            self._break()
        else:
            # It comes only when nothing is left to deliver.
            self._complete()

    def _complete(self) -> None:
        seen, self._seen = self._seen, None
        if seen is not None:
            self._caught_up(seen)

    def _break(self) -> None:
        self._ended = True
        self._broken()


def _position(reply: str) -> tuple[int, int, int]:
    """Stream sequence, consumer sequence, and how many are left, from a delivery's reply subject (ADR-15)."""
    tokens = reply.split(".")
    first = 5 if len(tokens) == OLD_TOKENS else 5 + NEW_TOKENS_MORE
    return int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 3])
