"""The ledger of several replicas on a real nats-server: one limit for all, over deaths and restarts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes.nats_server import NatsServer
from fakes.polling import until
from tierfall.errors import BusError, StoreUnavailable
from tierfall.ledger import Grant, Ledger, Limit, Metric, Spent, Window, Wish, unpack_account
from tierfall.store import QUOTA, Bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.buses import Buses

LIMIT = 40
REPLICAS = 3
REQUESTS = Limit(Metric.REQUESTS, LIMIT, Window.TOTAL)
TOKENS = Limit(Metric.TOKENS, 10_000, Window.TOTAL)
WISH = Wish(limits=(REQUESTS,), amounts={Metric.REQUESTS: 1})


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    """A nats-server with JetStream."""
    async with NatsServer(jetstream=True) as server:
        yield server


@pytest.fixture
async def ledgers(bus_factory: Buses) -> AsyncIterator[list[Ledger]]:
    """Replicas, each with a connection of its own."""
    await Bucket.open(await bus_factory(), QUOTA)
    found = [Ledger(Bucket(await bus_factory(), QUOTA)) for _ in range(REPLICAS)]
    yield found
    for one in found:
        await one.close()


async def burst(ledgers: list[Ledger], each: int) -> tuple[int, int]:
    """So many wishes at each replica, spread over loop turns: how many were granted, and how many refused."""

    async def ask(one: Ledger, number: int) -> object:
        await asyncio.sleep(number % 10 / 1000)
        try:
            return await one.reserve("scope", WISH)
        except Spent as spent:
            return spent

    found = await asyncio.gather(*(ask(one, number) for one in ledgers for number in range(each)))
    return sum(isinstance(x, Grant) for x in found), sum(isinstance(x, Spent) for x in found)


async def test_three_replicas_let_the_limit_through(ledgers: list[Ledger]) -> None:
    """Ten times the limit over three replicas at once: exactly the limit, and the rest is told so."""
    assert await burst(ledgers, 10 * LIMIT // REPLICAS + 1) == (LIMIT, 10 * LIMIT + 2 - LIMIT)


async def test_a_new_replica_knows_what_is_spent(ledgers: list[Ledger], bus_factory: Buses) -> None:
    """Counts are NATS's, not a process's: one that starts later lets nothing more through."""
    await burst(ledgers, LIMIT)
    late = Ledger(Bucket(await bus_factory(), QUOTA))
    assert await burst([late], 5) == (0, 5)
    await late.close()


@pytest.mark.parametrize("gently", [True, False], ids=["SIGTERM", "SIGKILL"])
async def test_counts_outlive_the_server(
    ledgers: list[Ledger], nats_server: NatsServer, *, gently: bool
) -> None:
    """NATS is restarted in the middle of a burst: wishes wait, and the limit is let through, once."""
    bursting = asyncio.create_task(burst(ledgers, 10 * LIMIT // REPLICAS))
    await asyncio.sleep(0.002)
    await (nats_server.stop() if gently else nats_server.kill())
    await nats_server.start()
    granted, refused = await bursting
    assert (granted, refused) == (LIMIT, 10 * LIMIT // REPLICAS * REPLICAS - LIMIT)
    assert (await ledgers[0].look("scope")).used(REQUESTS, 0) == LIMIT


async def test_settlements_reach_the_document(ledgers: list[Ledger], bus_factory: Buses) -> None:
    """What one replica settles and refunds, the next wish of another finds free."""
    wish = Wish(limits=(TOKENS,), amounts={Metric.TOKENS: 4000})
    first, second = [await ledgers[0].reserve("scope", wish) for _ in range(2)]
    with pytest.raises(Spent):
        await ledgers[1].reserve("scope", wish)
    ledgers[0].settle(first, {Metric.TOKENS: 100})
    ledgers[0].refund(second)
    await ledgers[0].close()
    entry = await Bucket(await bus_factory(), QUOTA).get("scope")
    assert entry is not None
    assert unpack_account(entry.value).used(TOKENS, 0) == 100


async def test_without_the_server_nothing_is_granted(ledgers: list[Ledger], nats_server: NatsServer) -> None:
    """Nobody knows what is left while NATS is away for long: closed, with an error that says so."""
    await nats_server.stop()
    with pytest.raises((BusError, TimeoutError)):
        await ledgers[0].reserve("scope", WISH)


async def test_without_jetstream_nothing_is_granted(bus_factory: Buses, nats_server: NatsServer) -> None:
    """A nats-server without JetStream closes every limit, and the error says what to add to its config."""
    await nats_server.stop()
    nats_server._jetstream = False
    await nats_server.start()
    bus = await bus_factory()
    await until(lambda: bus.connected)
    one = Ledger(Bucket(bus, QUOTA))
    with pytest.raises(StoreUnavailable, match="JetStream"):
        await one.reserve("scope", WISH)
    await one.close()
