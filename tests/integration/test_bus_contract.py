"""What the bus promises while its connection holds, against a real nats-server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes.polling import until
from tierfall.bus import Bus, BusOptions, Message
from tierfall.errors import BusDown, PayloadTooLarge

if TYPE_CHECKING:
    from fakes.buses import Buses
    from fakes.nats_server import NatsServer

WAIT_S = 10.0


def ignore(message: Message) -> None:
    """A callback that does nothing."""


async def test_messages_arrive_whole_and_in_order(bus_factory: Buses) -> None:
    """Subject, reply and bytes arrive as they were published, in the order of publishing."""
    sender, receiver = await bus_factory(), await bus_factory()
    got: list[Message] = []
    await receiver.subscribe("t.>", got.append)
    sent = [Message(f"t.{n % 7}", f"r.{n}" if n % 2 else "", bytes([n % 256]) * n) for n in range(2000)]
    for message in sent:
        sender.publish(message.subject, message.data, reply=message.reply)
    await until(lambda: len(got) >= len(sent))
    assert got == sent


async def test_subscribe_returns_when_the_server_has_it(bus_factory: Buses) -> None:
    """A request of another connection, sent right after ``subscribe()`` returned, never meets a 503."""
    client, worker = await bus_factory(), await bus_factory()
    for n in range(50):
        await worker.subscribe(f"ready.{n}", lambda m: worker.publish(m.reply, b"yes"))
        assert (await client.request(f"ready.{n}", b"", timeout_s=WAIT_S)).data == b"yes"


async def test_request_times_out(bus_factory: Buses) -> None:
    """A subscriber that never answers gives a TimeoutError, and leaves no subscription behind."""
    bus = await bus_factory()
    await bus.subscribe("silent", ignore)
    with pytest.raises(TimeoutError):
        await bus.request("silent", b"", timeout_s=0.05)
    assert len(bus._routes) == 1


async def test_no_responders_when_every_member_left(bus_factory: Buses) -> None:
    """Once all members of a queue group have left, a request gets the server's 503 as a message."""
    client, one, two = await bus_factory(), await bus_factory(), await bus_factory()
    first = await one.subscribe("work", lambda m: one.publish(m.reply, b"1"), queue="q")
    second = await two.subscribe("work", lambda m: two.publish(m.reply, b"2"), queue="q")
    assert (await client.request("work", b"", timeout_s=WAIT_S)).data in (b"1", b"2")
    first.leave()
    await one.flush()
    assert {(await client.request("work", b"", timeout_s=WAIT_S)).data for _ in range(20)} == {b"2"}
    second.leave()
    await two.flush()
    answer = await client.request("work", b"", timeout_s=WAIT_S)
    assert answer.no_responders
    assert answer.data == b""


async def test_straggler_reaches_the_callback_after_leave(bus_factory: Buses) -> None:
    """A message that the server delivered before it saw the leave is still handled."""
    client, worker = await bus_factory(), await bus_factory()
    got: list[bytes] = []
    subscription = await worker.subscribe("work", lambda m: got.append(m.data), queue="q")
    assert worker._wire is not None
    # The server sends the message while nobody reads here, so it can only be read after leave().
    worker._wire._writer.transport.pause_reading()
    client.publish("work", b"straggler")
    await client.flush()
    subscription.leave()
    worker._wire._writer.transport.resume_reading()
    await worker.flush()
    assert got == [b"straggler"]
    assert not subscription.joined


async def test_leaving_under_load_loses_nothing(bus_factory: Buses) -> None:
    """While two members leave and join all the time, each request is handled or gets a 503."""
    client, one, two = await bus_factory(), await bus_factory(), await bus_factory()
    answers: list[Message] = []
    handled = {"1": 0, "2": 0}

    def working(bus: Bus, who: str) -> None:
        handled[who] += 1
        bus.publish("answer", who.encode())

    members = [
        await one.subscribe("work", lambda _: working(one, "1"), queue="q"),
        await two.subscribe("work", lambda _: working(two, "2"), queue="q"),
    ]
    await client.subscribe("answer", answers.append)
    sent = turn = 0
    while sent < 5000 or {message.data for message in answers} != {b"1", b"2", b""}:
        for _ in range(20):
            client.publish("work", b"x" * 100, reply="answer")
            sent += 1
        turn += 1
        for position, member in enumerate(members):
            (member.join if (turn >> position) & 1 else member.leave)()
        await asyncio.sleep(0)
    await until(lambda: len(answers) >= sent)
    await client.flush()
    refused = sum(message.no_responders for message in answers)
    assert len(answers) == sent
    assert handled["1"] + handled["2"] + refused == sent


async def test_join_reaches_the_server_before_what_is_published_next(bus_factory: Buses) -> None:
    """Who hears "slot free" and sends a request meets the member that announced it, each time."""
    client, worker = await bus_factory(), await bus_factory()
    subscription = await worker.subscribe("work", lambda m: worker.publish(m.reply, b"done"), queue="q")
    outcomes: list[Message] = []
    await client.subscribe("outcome", outcomes.append)
    await client.subscribe("free", lambda _: client.publish("work", b"", reply="outcome"))
    for n in range(100):
        subscription.leave()
        subscription.join()
        worker.publish("free", b"")
        await until(lambda n=n: len(outcomes) > n)  # type: ignore[misc] # mypy cannot infer a lambda's default
    assert not any(message.no_responders for message in outcomes)


async def test_close_loses_nothing(bus_factory: Buses) -> None:
    """``close()`` under load handles what was delivered and sends what its callbacks published."""
    client, worker = await bus_factory(), await bus_factory()
    answers: list[Message] = []
    await client.subscribe("answer", answers.append)
    handled = 0

    def work(message: Message) -> None:
        nonlocal handled
        handled += 1
        worker.publish(message.reply, b"done")

    await worker.subscribe("work", work, queue="q")
    sent = 0
    closing: asyncio.Task[None] | None = None
    while sent < 3000 or not any(message.no_responders for message in answers):
        for _ in range(20):
            client.publish("work", b"x" * 200, reply="answer")
            sent += 1
        if closing is None and handled > 1000:
            closing = asyncio.create_task(worker.close())
        await asyncio.sleep(0)
    assert closing is not None
    await closing
    await until(lambda: len(answers) >= sent)
    await client.flush()
    refused = sum(message.no_responders for message in answers)
    assert (len(answers), handled + refused) == (sent, sent)
    with pytest.raises(BusDown):
        worker.publish("late", b"")


async def test_subscription_close_handles_what_was_delivered(bus_factory: Buses) -> None:
    """``Subscription.close()`` returns after the last delivered message was handled."""
    client, worker = await bus_factory(), await bus_factory()
    got: list[bytes] = []
    subscription = await worker.subscribe("work", lambda m: got.append(m.data))
    assert worker._wire is not None
    worker._wire._writer.transport.pause_reading()
    for n in range(1000):
        client.publish("work", str(n).encode())
    await client.flush()
    worker._wire._writer.transport.resume_reading()
    await subscription.close()
    assert len(got) == 1000
    subscription.join()
    assert not subscription.joined
    assert (await client.request("work", b"", timeout_s=WAIT_S)).no_responders
    await subscription.close()


async def test_oversize_is_refused_locally(bus_factory: Buses) -> None:
    """A payload above ``max_payload`` raises, is counted, and the connection lives on; one at it passes."""
    bus = await bus_factory()
    got: list[int] = []
    await bus.subscribe("big", lambda m: got.append(len(m.data)))
    with pytest.raises(PayloadTooLarge):
        bus.publish("big", bytes(bus.max_payload + 1))
    bus.publish("big", bytes(bus.max_payload))
    await bus.flush()
    assert got == [bus.max_payload]
    assert 0 < bus.max_payload < 1024 * 1024, "the server's default is 1 MiB"
    assert bus.counters.oversize_refused == 1
    assert bus.counters.reconnects == 0


async def test_raising_callback_is_counted_and_nothing_dies(
    bus_factory: Buses, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises, even CancelledError, loses its own message only, and does not flood the log."""
    bus = await bus_factory()
    got: list[bytes] = []

    def fragile(message: Message) -> None:
        if message.data == b"cancel":
            raise asyncio.CancelledError
        if message.data == b"raise":
            raise RuntimeError("broken callback")
        got.append(message.data)

    await bus.subscribe("t", fragile)
    for data in [b"raise", b"cancel"] * 50 + [b"fine"]:
        bus.publish("t", data)
    await bus.flush()
    assert got == [b"fine"]
    assert bus.counters.callback_errors == 100
    assert bus.counters.reconnects == 0
    assert sum("callback failed" in record.message for record in caplog.records) == 1


async def test_cancelled_and_timed_out_flushes_do_no_harm(bus_factory: Buses) -> None:
    """Any number of abandoned flushes leave the connection as it is, and later ones still are barriers."""
    bus = await bus_factory()
    got: list[bytes] = []
    await bus.subscribe("t", lambda m: got.append(m.data))
    for n in range(50):
        task = asyncio.create_task(bus.flush())
        for _ in range(n % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bus.flush(), 0)
    bus.publish("t", b"after")
    await bus.flush()
    assert got == [b"after"]
    assert bus.counters.reconnects == 0


async def test_publish_from_a_cancelled_task(bus_factory: Buses) -> None:
    """A task that is being cancelled can still publish, and its cancellation is not swallowed."""
    bus = await bus_factory()
    got: list[bytes] = []
    await bus.subscribe("t", lambda m: got.append(m.data))
    began = asyncio.Event()

    async def handler() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            bus.publish("t", b"cancelled")

    task = asyncio.create_task(handler())
    await began.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await bus.flush()
    assert got == [b"cancelled"]


async def test_a_flooded_subscription_does_not_stall_another(bus_factory: Buses) -> None:
    """Tens of thousands of messages on one subscription lose nothing, and answers on another keep coming."""
    client, worker = await bus_factory(), await bus_factory()
    total = 40_000
    flood = 0

    def count(_: Message) -> None:
        nonlocal flood
        flood += 1

    await worker.subscribe("flood", count)
    await worker.subscribe("echo", lambda m: worker.publish(m.reply, str(flood).encode()))
    seen_during: list[int] = []
    for n in range(total):
        client.publish("flood", b"x" * 100)
        if n % 4000 == 0:
            seen_during.append(int((await client.request("echo", b"", timeout_s=WAIT_S)).data))
    await until(lambda: flood >= total)
    assert len(seen_during) == 10
    assert seen_during == sorted(seen_during)
    assert (worker.counters.reconnects, worker.counters.slow_consumer) == (0, 0)


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0\r\n", "a\tb", "x" * 5000])
async def test_subjects_that_would_break_the_protocol_are_refused(bus_factory: Buses, subject: str) -> None:
    """Nothing that ends a protocol line gets into one, be it as subject, reply or queue group."""
    bus = await bus_factory()
    with pytest.raises(ValueError, match=r"subject|long"):
        bus.publish(subject, b"")
    if subject:
        with pytest.raises(ValueError, match=r"subject|long"):
            bus.publish("fine", b"", reply=subject)
        with pytest.raises(ValueError, match="queue group"):
            await bus.subscribe("fine", ignore, queue=subject)
    with pytest.raises(ValueError, match="queue group"):
        await bus.subscribe(subject, ignore)
    await bus.flush()
    assert bus.counters.reconnects == 0


@pytest.mark.parametrize("subject", ["a..b", ".a", "a.", "a.>.b"])
async def test_subscriptions_that_the_server_refuses_are_refused_here(
    bus_factory: Buses, subject: str
) -> None:
    """A malformed wildcard or an empty token raises at once; the server would only say "Invalid Subject"."""
    bus = await bus_factory()
    with pytest.raises(ValueError, match="subscribe"):
        await bus.subscribe(subject, ignore)


async def test_inboxes_are_fresh_and_under_the_prefix(bus_factory: Buses) -> None:
    """Each inbox is new, and stands under the configured prefix, which permissions are written for."""
    bus = await bus_factory(inbox_prefix="_INBOX_ing")
    inboxes = {bus.inbox() for _ in range(100)}
    assert len(inboxes) == 100
    assert all(inbox.startswith("_INBOX_ing.") for inbox in inboxes)
    await bus.subscribe("echo", lambda m: bus.publish(m.reply, m.reply.encode()))
    assert (await bus.request("echo", b"", timeout_s=WAIT_S)).data.startswith(b"_INBOX_ing.")


async def test_close_twice_and_without_use(bus_factory: Buses) -> None:
    """Closing is idempotent, and a closed bus refuses everything with BusDown."""
    bus = await bus_factory()
    await bus.close()
    await bus.close()
    assert not bus.connected
    with pytest.raises(BusDown):
        await bus.subscribe("t", ignore)
    with pytest.raises(BusDown):
        await bus.flush()
    with pytest.raises(BusDown):
        await bus.request("t", b"", timeout_s=WAIT_S)
    assert bus.counters.dropped == 0


async def test_no_server_is_a_clear_error(nats_server: NatsServer) -> None:
    """With nobody listening, connect gives up after its timeout and names the server, not the password."""
    await nats_server.kill()
    options = BusOptions(
        servers=f"nats://me:hunter2@127.0.0.1:{nats_server.port}", name="t", connect_timeout_s=0.5
    )
    with pytest.raises(BusDown) as caught:
        await Bus.connect(options)
    assert f"127.0.0.1:{nats_server.port}" in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("servers", ["", " , ", "http://127.0.0.1:1", "nats://127.0.0.1:99999", "nats://"])
async def test_a_wrong_url_is_a_clear_error(servers: str) -> None:
    """What is no NATS URL is refused at once, with the config key to mend."""
    with pytest.raises(BusDown, match=r"nats\.url"):
        await Bus.connect(BusOptions(servers=servers, name="t"))


async def test_connect_waits_for_a_server_that_comes_later(nats_server: NatsServer) -> None:
    """A service that starts before its nats-server connects as soon as that is there."""
    await nats_server.kill()
    connecting = asyncio.create_task(Bus.connect(BusOptions(servers=nats_server.url, name="early")))
    await asyncio.sleep(0)
    assert not connecting.done()
    await nats_server.start()
    bus = await connecting
    assert bus.connected
    await bus.close()
