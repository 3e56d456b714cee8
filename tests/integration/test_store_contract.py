"""What a bucket promises, against a real nats-server with JetStream."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError, ServerError

from fakes.buses import Buses
from fakes.nats_server import NatsServer
from fakes.polling import until
from tierfall.errors import BusDown, Conflict, StoreUnavailable
from tierfall.store import Bucket, jetstream, names
from tierfall.store import clock as clock_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tierfall.bus import Bus

NAME = "documents"


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    """A nats-server with JetStream."""
    async with NatsServer(jetstream=True) as server:
        yield server


@pytest.fixture
async def bus(bus_factory: Buses) -> Bus:
    """A connected bus."""
    return await bus_factory()


@pytest.fixture
async def bucket(bus: Bus) -> Bucket:
    """An empty bucket."""
    return await Bucket.open(bus, NAME)


async def test_what_was_put_is_there(bucket: Bucket) -> None:
    """A value comes back as it was, with its revision; another key and a deleted one are not there."""
    assert await bucket.get("a") is None
    revision = await bucket.put("a", b"\x00one\r\n")
    found = await bucket.get("a")
    assert found is not None
    assert (found.key, found.value, found.revision, found.deleted) == ("a", b"\x00one\r\n", revision, False)
    assert await bucket.put("a", b"") > revision
    assert (await bucket.get("a") or found).value == b""
    assert await bucket.get("a.b") is None
    await bucket.delete("a")
    assert await bucket.get("a") is None


async def test_only_who_knows_the_last_revision_writes(bucket: Bucket, bus_factory: Buses) -> None:
    """Of two that read the same revision one writes and the other is told; nothing of its is kept."""
    other = await Bucket.open(await bus_factory(), NAME)
    first = await bucket.put("a", b"1")
    await other.put("a", b"2", expected=first)
    with pytest.raises(Conflict):
        await bucket.put("a", b"3", expected=first)
    with pytest.raises(Conflict):
        await bucket.delete("a", expected=first)
    found = await bucket.get("a")
    assert found is not None
    assert found.value == b"2"
    await bucket.put("b", b"another key moves no revision of this one")
    await bucket.put("a", b"4", expected=found.revision)


async def test_a_key_is_made_once(bucket: Bucket) -> None:
    """``expected=0`` writes where nothing is, also where something was deleted, and nowhere else."""
    await bucket.put("a", b"1", expected=0)
    with pytest.raises(Conflict):
        await bucket.put("a", b"2", expected=0)
    await bucket.delete("a")
    revision = await bucket.put("a", b"3", expected=0)
    with pytest.raises(Conflict):
        await bucket.put("a", b"4", expected=0)
    found = await bucket.get("a")
    assert found is not None
    assert (found.value, found.revision) == (b"3", revision)


async def test_many_writers_lose_no_change(bucket: Bucket, bus_factory: Buses) -> None:
    """Four connections that each add one 25 times, reading again after a conflict, make 100."""

    async def add(own: Bucket) -> None:
        while True:
            found = await own.get("count")
            value, expected = (int(found.value), found.revision) if found else (0, 0)
            try:
                await own.put("count", str(value + 1).encode(), expected=expected)
            except Conflict:
                continue
            return

    async def add_all(own: Bucket) -> None:
        for _ in range(25):
            await add(own)

    others = [await Bucket.open(await bus_factory(), NAME) for _ in range(3)]
    await asyncio.gather(*(add_all(own) for own in (bucket, *others)))
    found = await bucket.get("count")
    assert found is not None
    assert found.value == b"100"


async def test_a_killed_server_has_kept_it(bucket: Bucket, bus: Bus, nats_server: NatsServer) -> None:
    """What was acknowledged is there after SIGKILL, with its revision; meanwhile BusDown says so at once."""
    revision = await bucket.put("a", b"kept")
    await nats_server.kill()
    await until(lambda: not bus.connected)
    with pytest.raises(BusDown):
        await bucket.put("a", b"lost")
    with pytest.raises(BusDown):
        await bucket.get("a")
    await nats_server.start()
    await until(lambda: bus.connected)
    found = await bucket.get("a")
    assert found is not None
    assert (found.value, found.revision) == (b"kept", revision)
    with pytest.raises(Conflict):
        await bucket.put("a", b"old", expected=revision - 1)
    await bucket.put("a", b"new", expected=revision)


async def test_opening_again_changes_nothing(bucket: Bucket, bus_factory: Buses) -> None:
    """Several that open the same bucket at the same time, and later, find what is in it."""
    await bucket.put("a", b"1")
    buses = [await bus_factory() for _ in range(4)]
    opened = await asyncio.gather(*(Bucket.open(bus, NAME) for bus in buses))
    for other in opened:
        assert await other.get("a") == await bucket.get("a")
    fresh = await asyncio.gather(*(Bucket.open(bus, "fresh", replicas=1) for bus in buses))
    assert await fresh[0].put("a", b"1", expected=0) == 1


async def test_official_clients_see_the_same(bucket: Bucket, nats_server: NatsServer) -> None:
    """nats-py's own key-value client reads, writes and deletes the same keys, and knows it for a bucket."""
    client = Client()
    await client.connect(nats_server.url)
    try:
        theirs = await client.jetstream().key_value(NAME)
        await bucket.put("a", b"ours")
        assert (await theirs.get("a")).value == b"ours"
        revision = await theirs.put("a", b"theirs")
        found = await bucket.get("a")
        assert found is not None
        assert (found.value, found.revision) == (b"theirs", revision)
        await theirs.delete("a")
        assert await bucket.get("a") is None
        await bucket.put("a", b"again", expected=0)
        await bucket.delete("a")
        with pytest.raises(KeyNotFoundError):
            await theirs.get("a")
        with pytest.raises(ServerError, match="rollup not permitted"):
            await theirs.purge("a")  # the header that it sends could wipe every key
        config = (await theirs.status()).stream_info.config
        assert (config.max_msgs_per_subject, config.allow_direct, config.num_replicas) == (1, True, 1)
    finally:
        await client.close()


async def test_a_bucket_of_an_older_version_loses_its_rollups(bus_factory: Buses) -> None:
    """What allows one message to wipe all keys is ended when the bucket is opened; what it holds stays."""
    bus = await bus_factory()
    old = Bucket(bus, "old")
    made = (await old._create(1))["config"]
    await jetstream.ask(bus, names.update("old"), {**made, "allow_rollup_hdrs": True})
    await old.put("a", b"1")
    assert await rollup(bus, "b") is None
    assert await old.get("a") is None, "a rollup wipes: the premise of this test"
    revision = await old.put("a", b"2")
    opened = await Bucket.open(bus, "old")
    assert "rollup not permitted" in str(await rollup(bus, "b"))
    found = await opened.get("a")
    assert found is not None
    assert (found.value, found.revision) == (b"2", revision)


async def rollup(bus: Bus, key: str) -> jetstream.Refused | None:
    """What JetStream says to a write that is to replace the whole bucket."""
    try:
        await jetstream.ask(bus, names.entry("old", key), b"x", {"Nats-Rollup": "all"})
    except jetstream.Refused as error:
        return error
    return None


async def test_no_jetstream_is_said() -> None:
    """A server without JetStream, and one whose account has none, are told apart, with what to change."""
    accounts = "accounts { A { users = [ {user: a, password: a} ] } }"
    for config, jetstream_on, url_user, text in (
        ("", False, "", "NATS has no JetStream: add `jetstream"),
        (accounts, True, "a:a@", "JetStream is off for this user's NATS account|NATS has no JetStream"),
    ):
        async with NatsServer(config, jetstream=jetstream_on) as server:
            buses = Buses(server.url.replace("//", f"//{url_user}"))
            bus = await buses()
            with pytest.raises(StoreUnavailable, match=text):
                await Bucket.open(bus, NAME)
            with pytest.raises(StoreUnavailable, match="is not there: NATS has no JetStream, it was removed"):
                await Bucket(bus, NAME).put("a", b"1")
            await buses.close()


async def test_a_refused_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the permissions of the user are too few, the error names the subject and what writes them."""
    monkeypatch.setattr(jetstream, "TIMEOUT_S", 0.5)
    user = '{user: a, password: a, permissions: {publish: "x"}}'
    users = f"accounts {{ A {{ jetstream: enabled, users = [ {user} ] }} }}"
    async with NatsServer(users, jetstream=True) as server:
        buses = Buses(server.url.replace("//", "//a:a@"))
        with pytest.raises(StoreUnavailable, match=r"does not allow .*STREAM\.INFO.*tierfall nats-config"):
            await Bucket.open(await buses(), NAME)
        await buses.close()


async def test_silence_is_an_error(bucket: Bucket, nats_server: NatsServer, monkeypatch: Any) -> None:
    """A server that hangs does not hang the caller."""
    monkeypatch.setattr(jetstream, "TIMEOUT_S", 0.3)
    nats_server.pause()
    try:
        with pytest.raises(StoreUnavailable, match="no answer"):
            await bucket.put("a", b"1")
    finally:
        nats_server.resume()


async def test_replicas_need_a_cluster(bus: Bus) -> None:
    """Three replicas asked of a single server are refused with what to set; by default it takes one."""
    with pytest.raises(StoreUnavailable, match=r"set nats\.replicas: 1"):
        await Bucket.open(bus, NAME, replicas=3)
    await Bucket.open(bus, NAME)


@pytest.mark.parametrize("key", ["", ".a", "a.", "a..b", "a b", "a*", ">", "ä", "a\r\nb", "a" * 513])
async def test_what_is_no_key_is_refused(bucket: Bucket, key: str) -> None:
    """Nothing that NATS would read as another subject gets there."""
    for doing in (bucket.get(key), bucket.put(key, b""), bucket.delete(key)):
        with pytest.raises(ValueError, match="not a key"):
            await doing
    with pytest.raises(ValueError, match="not a bucket"):
        Bucket(bucket._bus, key or "a.b")


async def test_all_clocks_of_a_bucket_are_nats_own(
    bus_factory: Buses, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines whose clocks are days apart agree, also after a clock jumped, and while NATS is away."""
    real = time.time
    clocks = []
    for ahead_s in (0.0, 86_400.0, -7.0):
        monkeypatch.setattr(time, "time", lambda ahead_s=ahead_s: real() + ahead_s)
        bucket = await Bucket.open(await bus_factory(), NAME)
        await bucket.clock.sync()
        clocks.append(bucket.clock)
    assert all(abs(clock.now() - real()) < 1.0 for clock in clocks)
    monkeypatch.setattr(time, "time", lambda: real() - 40 * 86_400.0)
    await nats_server.kill()
    for clock in clocks:
        clock._due = float("-inf")
        await clock.sync()
    assert all(abs(clock.now() - real()) < 1.0 for clock in clocks)


async def test_a_clock_is_measured_again_after_a_reconnect(
    bus_factory: Buses, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another server, or this machine's counting may have stood still while it slept."""
    bucket = await Bucket.open(await bus_factory(), NAME)
    await bucket.clock.sync()
    steady = clock_module.steady_s
    monkeypatch.setattr(clock_module, "steady_s", lambda: steady() - 3600.0)
    assert abs(bucket.clock.now() - time.time() + 3600.0) < 1.0
    await nats_server.restart()
    await until(lambda: bucket.clock._due == float("-inf"))
    await bucket.clock.sync()
    assert abs(bucket.clock.now() - time.time()) < 1.0
    assert await (await Bucket.open(await bus_factory(), NAME)).made() == await bucket.made()


async def test_a_clock_that_was_never_measured_says_why(bus_factory: Buses) -> None:
    """What is counted by it must wait until NATS has said which day it is."""
    bucket = Bucket(await bus_factory(), NAME)
    assert await bucket.made() is None
    with pytest.raises(StoreUnavailable, match="NATS has no bucket documents"):
        await bucket.clock.sync()
