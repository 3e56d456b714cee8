"""What the bus promises when its connection, its server or nats-py itself breaks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.processes import free_port
from tierfall.bus import Bus, BusOptions, Message
from tierfall.bus import wire as wire_module
from tierfall.bus.outbox import KEPT_BYTES
from tierfall.errors import BusDown, BusUnfit

if TYPE_CHECKING:
    from fakes.buses import Buses
    from tierfall.bus.wire import Wire

WAIT_S = 10.0


def wire_of(bus: Bus) -> Wire:
    """The bus's present connection."""
    assert bus._wire is not None
    return bus._wire


async def works_both_ways(bus: Bus, other: Bus, subject: str = "echo") -> None:
    """Checks that ``bus``'s old subscription on ``subject`` still answers, and that ``bus`` can ask."""
    await other.flush()
    answer = await other.request(subject, b"ping", timeout_s=WAIT_S)
    assert (answer.data, answer.no_responders) == (b"ping", False)
    answer = await bus.request(subject, b"pong", timeout_s=WAIT_S)
    assert (answer.data, answer.no_responders) == (b"pong", False)


async def echoing(bus: Bus, subject: str = "echo") -> None:
    """Subscribes ``bus`` so that it answers what it gets."""
    await bus.subscribe(subject, lambda m: bus.publish(m.reply, m.data))


async def test_server_killed_and_back(nats_server: NatsServer, bus_factory: Buses) -> None:
    """After SIGKILL and restart both directions work again, with one False and one True told."""
    bus, other = await bus_factory(), await bus_factory()
    await echoing(bus)
    states: list[bool] = []
    bus.on_state(states.append)
    await nats_server.kill()
    await until(lambda: not bus.connected and not other.connected)
    with pytest.raises(BusDown):
        bus.publish("echo", b"")
    with pytest.raises(BusDown):
        await bus.flush()
    await nats_server.start()
    await until(lambda: bus.connected and other.connected)
    await works_both_ways(bus, other)
    assert states == [False, True]
    assert bus.counters.reconnects == 1


async def test_server_stopped_in_good_order(nats_server: NatsServer, bus_factory: Buses) -> None:
    """SIGTERM, as in a rolling restart of the server, heals like a kill."""
    bus, other = await bus_factory(), await bus_factory()
    await echoing(bus)
    await nats_server.stop()
    await until(lambda: not bus.connected and not other.connected)
    await nats_server.start()
    await until(lambda: bus.connected and other.connected)
    await works_both_ways(bus, other)


async def test_many_restarts(nats_server: NatsServer, bus_factory: Buses) -> None:
    """A server that comes and goes leaves neither tasks nor sockets behind."""
    bus = await bus_factory()
    await echoing(bus)
    tasks = len(asyncio.all_tasks())
    for _ in range(4):
        await nats_server.kill()
        await until(lambda: not bus.connected)
        await nats_server.start()
        await until(lambda: bus.connected)
        await bus.flush()
    assert (await bus.request("echo", b"x", timeout_s=WAIT_S)).data == b"x"
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    assert bus.counters.reconnects == 4


async def test_a_cluster_that_names_ipv6_addresses() -> None:
    """A server's word of ``[::1]:4222`` is a server to dial, and no end of dialling."""
    ports, elsewhere = [free_port(), free_port()], free_port()
    routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
    first, second = (
        f"cluster {{ name: c, host: 127.0.0.1, port: {port}, routes: [{routes}] }}\n" for port in ports
    )
    second += f'client_advertise: "[::1]:{elsewhere}"'
    async with NatsServer(first) as server, NatsServer(second):
        bus = await Bus.connect(BusOptions(servers=server.url, name="t"))
        await until(lambda: f"nats://[::1]:{elsewhere}" in wire_of(bus).discovered)
        await server.restart()
        await until(lambda: bus.connected and bus.counters.reconnects == 1)
        await bus.close()


async def test_read_loop_killed(bus_factory: Buses) -> None:
    """A read loop that ends while the socket is fine is noticed, and the connection replaced."""
    bus, other = await bus_factory(), await bus_factory()
    await echoing(bus)
    reading = wire_of(bus)._reading_task
    assert reading is not None
    reading.cancel()
    await until(lambda: bus.counters.reconnects == 1 and bus.connected)
    await works_both_ways(bus, other)


async def test_parser_meets_nonsense(bus_factory: Buses) -> None:
    """Bytes that are no NATS protocol end the connection, not the bus."""
    bus, other = await bus_factory(), await bus_factory()
    await echoing(bus)
    wire_of(bus)._writer.transport.pause_reading()
    wire_of(bus)._transport._io_reader.feed_data(b"HTTP/1.1 400 Bad Request\r\n")  # type: ignore[union-attr] # the TCP transport's own
    await until(lambda: bus.counters.reconnects == 1 and bus.connected)
    await works_both_ways(bus, other)


async def test_nats_py_closed_for_good(bus_factory: Buses) -> None:
    """When nats-py closes itself, which it never heals from, a new client has all subscriptions."""
    bus, other = await bus_factory(), await bus_factory()
    await echoing(bus)
    await wire_of(bus).close()
    await until(lambda: bus.counters.reconnects == 1 and bus.connected)
    await works_both_ways(bus, other)


async def test_fatal_error_of_the_server(bus_factory: Buses, caplog: pytest.LogCaptureFixture) -> None:
    """An error that the server closes over (a message above its limit) is healed, counted, logged."""
    bus, other = await bus_factory(), await bus_factory()
    await echoing(bus)
    size = wire_of(bus).max_payload + 1
    bus._outbox.put(f"PUB t {size}\r\n".encode() + bytes(size) + b"\r\n")
    await until(lambda: bus.counters.rebuilds == 1 and bus.connected)
    await works_both_ways(bus, other)
    assert bus.counters.reconnects == 1
    assert any("lost the connection to NATS: maximum payload" in r.getMessage() for r in caplog.records)


async def test_raising_state_listener(nats_server: NatsServer, bus_factory: Buses) -> None:
    """A listener that raises keeps neither the bus from healing nor other listeners from hearing."""
    bus, other = await bus_factory(), await bus_factory()
    await echoing(bus)
    heard: list[bool] = []

    def broken(connected: bool) -> None:
        raise RuntimeError(f"told of {connected}")

    bus.on_state(broken)
    bus.on_state(heard.append)
    await nats_server.restart()
    await until(lambda: bus.counters.reconnects == 1 and bus.connected and other.connected)
    await works_both_ways(bus, other)
    assert heard == [False, True]
    assert bus.counters.callback_errors == 2


async def test_left_stays_left_and_joined_stays_joined(nats_server: NatsServer, bus_factory: Buses) -> None:
    """Over a server restart a left subscription stays away until it joins; one joined meanwhile is there."""
    bus, client = await bus_factory(), await bus_factory()
    left = await bus.subscribe("left", lambda m: bus.publish(m.reply, b"left"), queue="q")
    rejoined = await bus.subscribe("rejoined", lambda m: bus.publish(m.reply, b"rejoined"), queue="q")
    gone = await bus.subscribe("gone", lambda m: bus.publish(m.reply, b"gone"), queue="q")
    left.leave()
    rejoined.leave()
    await nats_server.kill()
    await until(lambda: not bus.connected and not client.connected)
    rejoined.join()
    gone.leave()
    await nats_server.start()
    await until(lambda: bus.connected and client.connected)
    await bus.flush()
    assert (await client.request("left", b"", timeout_s=WAIT_S)).no_responders
    assert (await client.request("gone", b"", timeout_s=WAIT_S)).no_responders
    assert (await client.request("rejoined", b"", timeout_s=WAIT_S)).data == b"rejoined"
    left.join()
    await bus.flush()
    assert (await client.request("left", b"", timeout_s=WAIT_S)).data == b"left"


async def test_leave_cut_off_by_the_disconnect(bus_factory: Buses) -> None:
    """A leave that was still queued when the connection broke does not undo a join made after it."""
    bus, client = await bus_factory(), await bus_factory()
    subscription = await bus.subscribe("work", lambda m: bus.publish(m.reply, b"done"), queue="q")
    subscription.leave()
    abandoned = asyncio.create_task(bus.flush())
    await asyncio.sleep(0)
    subscription.join()
    subscription.leave()
    wire_of(bus).lose("broken on purpose")
    subscription.join()
    with pytest.raises(BusDown):
        await abandoned
    await until(lambda: bus.connected)
    for _ in range(3):
        await bus.flush()
        assert (await client.request("work", b"", timeout_s=WAIT_S)).data == b"done"


async def test_queued_at_the_disconnect_waits(bus_factory: Buses) -> None:
    """What was published and not handed over when the connection broke is sent on the next, once."""
    bus, other = await bus_factory(), await bus_factory()
    got: list[bytes] = []
    await other.subscribe("t", lambda m: got.append(m.data))
    for n in range(100):
        bus.publish("t", str(n).encode())
    wire_of(bus).lose("broken on purpose")
    await until(lambda: bus.connected)
    await bus.flush()
    await other.flush()
    assert got == [str(n).encode() for n in range(100)]
    assert bus.counters.dropped == 0


async def test_what_waits_is_bounded(bus_factory: Buses) -> None:
    """Above 16 MiB the newest waiting messages are given up and counted; the oldest arrive."""
    bus, other = await bus_factory(), await bus_factory()
    got: list[bytes] = []
    await other.subscribe("t", lambda m: got.append(m.data[:4]))
    size = 512 * 1024
    total = KEPT_BYTES // size + 20
    for n in range(total):
        bus.publish("t", n.to_bytes(4) + bytes(size - 4))
    wire_of(bus).lose("broken on purpose")
    await until(lambda: bus.connected)
    await bus.flush()
    await other.flush()
    assert bus.counters.dropped > 0
    assert len(got) + bus.counters.dropped == total
    assert len(got) >= KEPT_BYTES // size - 1
    assert got == [n.to_bytes(4) for n in range(len(got))]


async def test_limit_shrunk_meanwhile(nats_server: NatsServer, bus_factory: Buses) -> None:
    """A waiting message above the new server's limit is given up instead of ending each new connection."""
    bus = await bus_factory()
    await echoing(bus)
    before = bus.max_payload
    bus.publish("t", bytes(before))
    wire_of(bus).lose("broken on purpose")
    await nats_server.kill()
    nats_server.config = "max_payload: 65536"
    await nats_server.start()
    await until(lambda: bus.connected)
    assert (await bus.request("echo", b"x", timeout_s=WAIT_S)).data == b"x"
    assert bus.max_payload < 65536 < before
    assert bus.counters.dropped == 1
    assert (bus.counters.reconnects, bus.counters.rebuilds) == (1, 0)


async def test_subscribe_while_down(nats_server: NatsServer, bus_factory: Buses) -> None:
    """``subscribe()`` during an outage waits for the server; given up, it leaves nothing behind."""
    bus, other = await bus_factory(), await bus_factory()
    await nats_server.kill()
    await until(lambda: not bus.connected)
    given_up = asyncio.create_task(echoing(bus, "given.up"))
    waiting = asyncio.create_task(echoing(bus))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert not waiting.done()
    await nats_server.start()
    await waiting
    await until(lambda: other.connected)
    await works_both_ways(bus, other)
    assert (await other.request("given.up", b"", timeout_s=WAIT_S)).no_responders


async def test_flush_ends_with_the_connection(bus_factory: Buses) -> None:
    """A flush that waits when the connection breaks raises BusDown instead of waiting for ever."""
    bus = await bus_factory()
    wire = wire_of(bus)
    wire._writer.transport.pause_reading()
    flushes = [asyncio.create_task(bus.flush()) for _ in range(3)]
    await until(lambda: len(wire._pongs) >= 3)
    flushes.append(asyncio.create_task(bus.flush()))
    await asyncio.sleep(0)
    wire.lose("broken on purpose")
    results = await asyncio.gather(*flushes, return_exceptions=True)
    assert [type(result) for result in results] == [BusDown] * 4


async def test_half_open_connection(
    nats_server: NatsServer, bus_factory: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that keeps the socket open and answers nothing is found by the pings."""
    monkeypatch.setattr(wire_module, "PING_EVERY_S", 0.2)
    bus, other = await bus_factory(), await bus_factory()
    await echoing(bus)
    nats_server.pause()
    try:
        await until(lambda: not bus.connected)
    finally:
        nats_server.resume()
    await until(lambda: bus.connected and other.connected)
    await works_both_ways(bus, other)


async def test_stalled_server_loses_nothing(nats_server: NatsServer, bus_factory: Buses) -> None:
    """While the server reads nothing, ``publish()`` neither waits nor drops; all arrives in order after."""
    bus, other = await bus_factory(), await bus_factory()
    got: list[int] = []
    await other.subscribe("t", lambda m: got.append(int.from_bytes(m.data[:4])))
    nats_server.pause()
    try:
        for n in range(600):
            bus.publish("t", n.to_bytes(4) + bytes(32 * 1024))
            if n % 100 == 0:
                await asyncio.sleep(0)
        await until(lambda: bus._outbox._draining is not None)
        barrier = asyncio.create_task(bus.flush())
        await asyncio.sleep(0)
        assert not barrier.done()
    finally:
        nats_server.resume()
    await barrier
    await other.flush()
    assert got == list(range(600))
    assert bus.counters.dropped == 0
    assert bus.counters.reconnects == 0


async def test_a_server_that_never_reads_is_given_up(
    nats_server: NatsServer, bus_factory: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for a connected server is bounded too: above the bound the connection counts as lost."""
    monkeypatch.setattr("tierfall.bus.outbox.STALLED_BYTES", 8 * 1024 * 1024)
    bus = await bus_factory()
    await echoing(bus)
    nats_server.pause()
    try:
        for _ in range(1000):
            if not bus.connected:
                break
            bus.publish("t", bytes(256 * 1024))
            await asyncio.sleep(0)
        assert not bus.connected
    finally:
        nats_server.resume()
    await until(lambda: bus.connected)
    assert (await bus.request("echo", b"x", timeout_s=WAIT_S)).data == b"x"


@pytest.mark.parametrize(
    "limit",
    ["max_pending: 1MB\nwrite_deadline: 10s", "max_pending: 100MB\nwrite_deadline: 100ms"],
    ids=["max_pending", "write_deadline"],
)
async def test_cut_by_the_server_as_a_slow_consumer(limit: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bus that did not read for long is cut by the server, counts it and says so; others never noticed."""
    async with NatsServer(limit) as server:
        slow = await Bus.connect(BusOptions(servers=server.url, name="slow"))
        other = await Bus.connect(BusOptions(servers=server.url, name="other"))
        await slow.subscribe("flood", lambda _: None)
        await echoing(slow)
        wire_of(slow)._writer.transport.pause_reading()
        connection = wire_of(slow)
        while "Slow Consumer" not in server.log:
            for _ in range(20):
                other.publish("flood", bytes(64 * 1024))
            await other.flush()
        connection._writer.transport.resume_reading()
        await until(lambda: slow.counters.reconnects >= 1 and slow.connected)
        await works_both_ways(slow, other)
        assert (slow.counters.slow_consumer, slow.counters.reconnects) == (1, 1)
        assert f"NATS at 127.0.0.1:{server.port} cut the connection off" in caplog.text
        assert (other.counters.slow_consumer, other.counters.reconnects) == (0, 0)
        await slow.close()
        await other.close()


@pytest.mark.parametrize("name", ["", "server_name: named"])
async def test_a_killed_server_made_no_slow_consumer(
    nats_server: NatsServer, bus_factory: Buses, name: str
) -> None:
    """A server that is killed with messages on their way, and comes back, has not cut anybody off."""
    await nats_server.kill()
    nats_server.config = name
    await nats_server.start()
    bus, other = await bus_factory(), await bus_factory()
    await bus.subscribe("flood", lambda _: None)
    wire = wire_of(bus)
    wire._writer.transport.pause_reading()
    for _ in range(200):
        other.publish("flood", bytes(64 * 1024))
    await other.flush()
    await nats_server.kill()
    wire._writer.transport.resume_reading()
    await until(lambda: not bus.connected)
    assert wire.cut_short
    await nats_server.start()
    await until(lambda: bus.connected)
    assert (bus.counters.slow_consumer, bus.counters.reconnects) == (0, 1)


@pytest.mark.parametrize("limit", [4096, 8192, 65535])
async def test_a_limit_that_is_too_small_is_refused(limit: int) -> None:
    """A ``max_payload`` that no envelope would fit into is refused at the connect, with what to change."""
    async with NatsServer(f"max_payload: {limit}\nmax_pending: 1MB") as server:
        with pytest.raises(BusUnfit) as caught:
            await Bus.connect(BusOptions(servers=server.url, name="t", connect_timeout_s=0.5))
    assert f"its max_payload is {limit} bytes, and at least 65536 are needed" in caught.value.message
    assert "set max_payload: 8MB in nats-server's config" in caught.value.message


async def test_a_limit_that_shrank_too_far(
    nats_server: NatsServer, bus_factory: Buses, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that comes back with too small a limit is refused, logged, and tried until it is mended."""
    bus = await bus_factory()
    await echoing(bus)
    await nats_server.kill()
    nats_server.config = "max_payload: 8192"
    await nats_server.start()
    await until(lambda: "its max_payload is 8192 bytes" in caplog.text)
    assert not bus.connected
    await nats_server.kill()
    nats_server.config = "max_payload: 65536"
    await nats_server.start()
    await until(lambda: bus.connected)
    assert (await bus.request("echo", b"x", timeout_s=WAIT_S)).data == b"x"


async def test_close_while_the_server_is_gone(nats_server: NatsServer, bus_factory: Buses) -> None:
    """``close()`` during an outage returns, counts what could not be sent, and stops reconnecting."""
    bus = await bus_factory()
    bus.publish("t", b"never sent")
    wire_of(bus).lose("broken on purpose")
    await nats_server.kill()
    await bus.close()
    assert bus.counters.dropped == 1
    assert not any(task.get_name() == "bus-keeper" for task in asyncio.all_tasks())


async def test_close_while_the_server_is_frozen(
    nats_server: NatsServer, bus_factory: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``close()`` towards a server that answers nothing ends after its time limit, with the socket closed."""
    monkeypatch.setattr("tierfall.bus.bus.CLOSE_TIMEOUT_S", 0.2)
    bus = await bus_factory()
    wire = wire_of(bus)
    nats_server.pause()
    try:
        await bus.close()
    finally:
        nats_server.resume()
    assert wire._writer.transport.is_closing()


async def test_messages_before_the_disconnect_are_handled(
    nats_server: NatsServer, bus_factory: Buses
) -> None:
    """Stress: over several kills under load, what arrives is in order and never twice."""
    bus, other = await bus_factory(), await bus_factory()
    got: list[int] = []

    def take(message: Message) -> None:
        got.append(int(message.data))

    await other.subscribe("n", take)
    sent = 0
    for _ in range(3):
        for _ in range(500):
            if bus.connected:
                bus.publish("n", str(sent).encode())
                sent += 1
            if sent % 10 == 0:
                await asyncio.sleep(0)
        await nats_server.restart()
        await until(lambda: bus.connected and other.connected)
        await other.flush()
    bus.publish("n", str(sent).encode())
    await until(lambda: got and got[-1] == sent)
    assert got == sorted(set(got))
