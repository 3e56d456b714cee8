"""What one ordered consumer delivers: in order, without gaps, or it is broken.

Only what JetStream delivered for this consumer counts. An entry has its own subject in the bucket, and a
reply subject with the names of stream and consumer; what a client publishes to the inbox has the inbox as
subject.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
ACK: Final = ["$JS", "ACK"]
OLD_TOKENS: Final = 9
"""``$JS.ACK.<stream>.<consumer>.<times>.<stream seq>.<own seq>.<time>.<pending>``; the newer form has a
domain and an account before the stream (flag ``js_ack_fc_v2``)."""
NEW_TOKENS_MORE: Final = 2

logger = logging.getLogger("tierfall.store")


class Place(NamedTuple):
    """Where a delivery stands, as its reply subject says."""

    stream_seq: int
    own_seq: int
    pending: int
    """How many entries are left to deliver."""


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
        self._stream = names.stream(bucket)
        self._prefix = names.entries(bucket).removesuffix(">")
        self._tell = tell
        self._caught_up = caught_up
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._count = 0
        self._seen: set[str] | None = set()
        self._ended = False
        self._warned = False

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
        if not message.subject.startswith(self._prefix):  # JetStream's own word has the inbox as its subject
            self._take_status(message)
            return
        # Whatever its headers say: an entry keeps those of its writer, with a status if it likes.
        place = _place(message.reply, self._stream, self.name)
        if place is None:
            self._ignore(message)
            return
        self._heard = self._loop.time()
        if place.own_seq != self._count + 1:
            self._break()
            return
        self._count = place.own_seq
        key = message.subject.removeprefix(self._prefix)
        entry = Entry(key, message.data, place.stream_seq, is_deletion(message.headers))
        if self._seen is not None and not entry.deleted:
            self._seen.add(entry.key)
        elif self._seen is not None:
            self._seen.discard(entry.key)
        try:
            self._tell(entry)
        finally:
            if place.pending == 0:
                self._complete()

    def _take_status(self, message: Message) -> None:
        status = header_block.status(message.headers)
        if not status:
            self._ignore(message)
            return
        self._heard = self._loop.time()
        last = header_block.find(message.headers, LAST)
        if status != HEARTBEAT or (last and last != str(self._count)):
            self._break()
        else:
            # It comes only when nothing is left to deliver.
            self._complete()

    def _ignore(self, message: Message) -> None:
        """It is not from JetStream: another client that may publish to this inbox."""
        if not self._warned:
            self._warned = True
            logger.warning("ignored a message on %s that JetStream did not deliver", message.subject)

    def _complete(self) -> None:
        seen, self._seen = self._seen, None
        if seen is not None:
            self._caught_up(seen)

    def _break(self) -> None:
        self._ended = True
        self._broken()


def _place(reply: str, stream: str, consumer: str) -> Place | None:
    """What the reply subject of a delivery says (ADR-15); None unless it is this consumer's."""
    tokens = reply.split(".")
    at = {OLD_TOKENS: 0, OLD_TOKENS + NEW_TOKENS_MORE: NEW_TOKENS_MORE}.get(len(tokens), -1)
    if at < 0 or tokens[:2] != ACK or tokens[at + 2 : at + 4] != [stream, consumer]:
        return None
    numbers = [tokens[at + index] for index in (5, 6, 8)]
    return Place(*map(int, numbers)) if all(map(str.isdecimal, numbers)) else None
