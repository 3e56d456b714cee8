"""What a watch promises: everything is told, whatever happens to server and connection."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from typing import TYPE_CHECKING

import pytest

from fakes.buses import Buses
from fakes.nats_server import NatsServer
from fakes.polling import until
from tierfall.store import Bucket, Entry, Watch, feed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tierfall.bus import Bus, Message

NAME = "documents"
WAIT_S = 10.0


@pytest.fixture(params=["false", "true"], ids=["acks-v1", "acks-v2"])
async def nats_server(request: pytest.FixtureRequest) -> AsyncIterator[NatsServer]:
    """A nats-server with JetStream, with the older and the newer form of its subjects."""
    config = f"feature_flags {{ js_ack_fc_v2: {request.param} }}"
    async with NatsServer(config, jetstream=True) as server:
        yield server


@pytest.fixture
async def writer(bus_factory: Buses) -> Bucket:
    """An empty bucket."""
    return await Bucket.open(await bus_factory(), NAME)


class Mirror:
    """What a watch has told: the present state, and every entry."""

    def __init__(self, bus: Bus) -> None:
        self.state: dict[str, bytes] = {}
        self.told: list[Entry] = []
        self.watch = Bucket(bus, NAME).watch(self._take)

    def _take(self, entry: Entry) -> None:
        self.told.append(entry)
        if entry.deleted:
            self.state.pop(entry.key, None)
        else:
            self.state[entry.key] = entry.value


def told(mirror: Mirror, keys: set[str]) -> bool:
    """Whether just these keys are there."""
    return mirror.state.keys() == keys


async def complete(watch: Watch) -> None:
    """Returns when the initial state has been told."""
    async with asyncio.timeout(WAIT_S):
        await watch.wait_complete()


async def test_state_first_then_changes(writer: Bucket, bus_factory: Buses) -> None:
    """Entries that are there come before it is complete, each once, then every change in order."""
    for number in range(300):
        await writer.put(f"k.{number}", b"old")
    await writer.put("k.7", b"newer")
    await writer.delete("k.8")
    mirror = Mirror(await bus_factory())
    assert not mirror.watch.complete
    await complete(mirror.watch)
    assert mirror.state == {f"k.{n}": b"newer" if n == 7 else b"old" for n in range(300) if n != 8}
    mirror.told.clear()
    revisions: list[int] = []
    for change in (partial(writer.put, value=b"1"), writer.delete, partial(writer.put, value=b"2")):
        revisions.append(await change("k.1"))
        # The bucket keeps the last entry of a key alone: one that is overtaken is not delivered.
        await until(lambda: len(mirror.told) == len(revisions))
    assert [(entry.value, entry.revision, entry.deleted) for entry in mirror.told] == [
        (b"1", revisions[0], False),
        (b"", revisions[1], True),
        (b"2", revisions[2], False),
    ]
    await mirror.watch.close()


async def test_an_empty_bucket_is_complete(bus_factory: Buses) -> None:
    """A watch makes the bucket that is not there and says that nothing is in it."""
    mirror = Mirror(await bus_factory())
    await complete(mirror.watch)
    assert mirror.told == []
    await mirror.watch.close()
    await mirror.watch.close()


async def test_nothing_is_missed_over_kills(
    writer: Bucket, bus_factory: Buses, nats_server: NatsServer
) -> None:
    """Changes before, between and after two SIGKILLs of the server are all told, deletions too."""
    await writer.put("kept", b"1")
    await writer.put("dropped", b"1")
    mirror = Mirror(await bus_factory())
    await complete(mirror.watch)
    for number in range(2):
        await nats_server.kill()
        await nats_server.start()
        await until(lambda: writer._bus.connected)
        # The watch's own connection may come back later than this.
        await writer.delete("dropped")
        await writer.put(f"new.{number}", b"2")
        await until(partial(told, mirror, {"kept", *(f"new.{count}" for count in range(number + 1))}))
    await writer.put("last", b"3")
    await until(lambda: "last" in mirror.state)
    assert mirror.state == {"kept": b"1", "new.0": b"2", "new.1": b"2", "last": b"3"}
    assert mirror.watch.complete
    assert mirror.watch.problem == ""
    await mirror.watch.close()


async def test_a_lost_store_is_told_as_deletions(
    writer: Bucket, bus_factory: Buses, nats_server: NatsServer
) -> None:
    """A server that comes back without its disk has no entries: the watch takes them all away again."""
    await writer.put("a", b"1")
    await writer.put("b", b"1")
    mirror = Mirror(await bus_factory())
    await complete(mirror.watch)
    await nats_server.kill()
    shutil.rmtree(nats_server._path / "jetstream")
    await nats_server.start()
    await until(lambda: mirror.state == {})
    await until(lambda: writer._bus.connected)
    await writer.put("a", b"2", expected=0)
    await until(lambda: mirror.state == {"a": b"2"})
    await mirror.watch.close()


async def test_a_gap_is_noticed(writer: Bucket, bus_factory: Buses, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that is lost on the way is made good as soon as the next one shows the gap."""
    lost: list[Message] = []
    take = feed.Feed.take

    def lossy(self: feed.Feed, message: Message) -> None:
        if message.data == b"lost" and not lost:
            lost.append(message)
        else:
            take(self, message)

    monkeypatch.setattr(feed.Feed, "take", lossy)
    mirror = Mirror(await bus_factory())
    await complete(mirror.watch)
    await writer.put("a", b"lost")
    await until(lambda: lost)
    await writer.put("b", b"next")
    await until(lambda: mirror.state == {"a": b"lost", "b": b"next"})
    await mirror.watch.close()


async def test_a_last_delivery_that_is_lost_is_noticed(
    writer: Bucket, bus_factory: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing after it, the heartbeat shows the gap."""
    lost: list[Message] = []
    take = feed.Feed.take

    def lossy(self: feed.Feed, message: Message) -> None:
        if message.data == b"lost" and not lost:
            lost.append(message)
        else:
            take(self, message)

    monkeypatch.setattr(feed.Feed, "take", lossy)
    mirror = Mirror(await bus_factory())
    await complete(mirror.watch)
    await writer.put("a", b"lost")
    await until(lambda: mirror.state == {"a": b"lost"})
    assert lost
    await mirror.watch.close()


async def test_a_consumer_that_is_gone_is_replaced(
    writer: Bucket, bus_factory: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that an operator deleted is silent or says so; the watch goes on with another."""
    monkeypatch.setattr(feed, "SILENT_S", 1.5)
    bus = await bus_factory()
    mirror = Mirror(bus)
    await complete(mirror.watch)
    listed = await bus.request(f"$JS.API.CONSUMER.NAMES.KV_{NAME}", b"", timeout_s=WAIT_S)
    (name,) = [part for part in listed.data.decode().split('"') if len(part) == 16]
    await bus.request(f"$JS.API.CONSUMER.DELETE.KV_{NAME}.{name}", b"", timeout_s=WAIT_S)
    await writer.put("a", b"1")
    await until(lambda: mirror.state == {"a": b"1"})
    await mirror.watch.close()


async def test_jetstream_that_comes_later_counts(caplog: pytest.LogCaptureFixture) -> None:
    """Without JetStream a watch says why, once in the log, and begins when there is one."""
    async with NatsServer() as server:
        buses = Buses(server.url)
        mirror = Mirror(await buses())
        await until(lambda: mirror.watch.problem)
        assert "NATS has no JetStream" in mirror.watch.problem
        server._jetstream = True
        await server.restart()
        await complete(mirror.watch)
        assert mirror.watch.problem == ""
        assert (
            sum("cannot follow the bucket" in line and "no JetStream" in line for line in caplog.messages)
            == 1
        )
        await mirror.watch.close()
        await buses.close()
