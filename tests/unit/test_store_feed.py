"""What a feed believes: only what JetStream delivered to its own consumer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from tierfall.bus import Message
from tierfall.store.feed import Feed

if TYPE_CHECKING:
    from tierfall.store import Entry

INBOX: Final = "_INBOX_UABC.0011"
FORGED: Final = b'{"id": "x"}'


class Told:
    """A feed of the bucket ``b``, and what it has told."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.complete = False
        self.breaks = 0
        self.feed = Feed("b", self.entries.append, self._on_caught_up, self._on_broken)

    def _on_caught_up(self, _: set[str]) -> None:
        self.complete = True

    def _on_broken(self) -> None:
        self.breaks += 1

    def reply(self, own_seq: int, *, stream: str = "KV_b", consumer: str = "", newer: bool = False) -> str:
        """The reply subject of this consumer's delivery of that number, the last that is pending."""
        place = f"{stream}.{consumer or self.feed.name}.1.{own_seq + 10}.{own_seq}.1700000000000000000.0"
        return f"$JS.ACK.{'hub.ACCOUNT.' if newer else ''}{place}"

    def deliver(self, own_seq: int, *, headers: bytes = b"", newer: bool = False) -> None:
        """One entry, as JetStream delivers it."""
        reply = self.reply(own_seq, newer=newer)
        self.feed.take(Message("$KV.b.key", reply, b"true", headers=headers))


@pytest.fixture
async def told() -> Told:
    """A new feed."""
    return Told()


FORGERIES: Final = {
    "a reply of as many tokens": (INBOX, "a.b.c.d.e.11.1.f.0"),
    "the inbox as subject": (INBOX, "$JS.ACK.KV_b.{name}.1.11.1.0.0"),
    "another bucket's subject": ("$KV.other.key", "$JS.ACK.KV_b.{name}.1.11.1.0.0"),
    "another stream": ("$KV.b.key", "$JS.ACK.KV_other.{name}.1.11.1.0.0"),
    "another consumer": ("$KV.b.key", "$JS.ACK.KV_b.other.1.11.1.0.0"),
    "no reply": ("$KV.b.key", ""),
    "no number": ("$KV.b.key", "$JS.ACK.KV_b.{name}.1.x.1.0.0"),
    "an empty number": ("$KV.b.key", "$JS.ACK.KV_b.{name}.1.11..0.0"),
    "another request's reply": ("$KV.b.key", "$JS.FC.KV_b.{name}.1.11.1.0.0"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_what_another_client_publishes_is_ignored(told: Told, forgery: str) -> None:
    """It is told to nobody, breaks nothing, and does not pass for a sign of life."""
    subject, reply = FORGERIES[forgery]
    heard = told.feed._heard
    await asyncio.sleep(0)
    told.feed.take(Message(subject, reply.format(name=told.feed.name), FORGED))
    assert (told.entries, told.complete, told.breaks) == ([], False, 0)
    assert told.feed._heard == heard
    told.deliver(1)
    assert [entry.value for entry in told.entries] == [b"true"]
    assert told.complete


@pytest.mark.parametrize("newer", [False, True], ids=["acks-v1", "acks-v2"])
async def test_both_forms_of_deliveries_are_read(told: Told, newer: bool) -> None:
    """With a domain and an account in the reply subject, and without."""
    told.deliver(1, newer=newer)
    told.deliver(2, newer=newer)
    assert [entry.revision for entry in told.entries] == [11, 12]
    told.deliver(4, newer=newer)
    assert told.breaks == 1


async def test_an_entry_with_a_status_of_its_writer_is_an_entry(told: Told) -> None:
    """A writer's headers are kept with the entry: a status among them is not the server's word."""
    for own_seq, line in enumerate((b"503", b"100", b"409 Consumer Deleted"), start=1):
        told.deliver(own_seq, headers=b"NATS/1.0 " + line + b"\r\n\r\n")
    assert len(told.entries) == 3
    assert told.breaks == 0


@pytest.mark.parametrize("last", [b"0", b"7", b"x"])
async def test_a_heartbeat_says_whether_something_is_missing(told: Told, last: bytes) -> None:
    """The server's own word has the inbox as its subject; a count that differs ends the feed."""
    block = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: " + last + b"\r\n\r\n"
    told.feed.take(Message(INBOX, "", b"", headers=block))
    assert told.breaks == (last != b"0")
    assert told.complete == (last == b"0")
