"""What a bucket promises where three servers keep it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes.buses import Buses
from fakes.nats_cluster import SIZE, NatsCluster
from fakes.polling import POLL_S, until
from tierfall.errors import BusError
from tierfall.store import Bucket
from tierfall.store.jetstream import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = "documents"
WAIT_S = 40.0
"""A cluster takes some seconds to choose a leader, and longer on a busy machine."""


@pytest.fixture
async def cluster() -> AsyncIterator[NatsCluster]:
    """Three servers, up and accepting."""
    async with NatsCluster() as running:
        yield running


async def put(bucket: Bucket, key: str, value: bytes) -> None:
    """Writes as soon as the cluster has a leader."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await bucket.put(key, value)
            except BusError:
                await asyncio.sleep(POLL_S)
            else:
                return


async def test_a_cluster_keeps_three_copies_and_outlives_its_leader(cluster: NatsCluster) -> None:
    """By default every server has the bucket; with its leader killed it is read, written and followed on."""
    buses = Buses(cluster.url)
    bus, other = await buses(), await buses()
    told: dict[str, bytes] = {}
    watch = Bucket(bus, NAME).watch(lambda entry: told.update({entry.key: entry.value}))
    async with asyncio.timeout(WAIT_S):
        await watch.wait_complete()
    bucket = Bucket(other, NAME)
    await put(bucket, "before", b"1")
    found = await ask(bus, f"$JS.API.STREAM.INFO.KV_{NAME}", b"")
    assert found["config"]["num_replicas"] == SIZE
    await cluster.servers[found["cluster"]["leader"]].kill()
    await put(bucket, "after", b"2")
    await until(lambda: told == {"before": b"1", "after": b"2"}, timeout_s=WAIT_S)
    entry = await bucket.get("before")
    assert entry is not None
    assert entry.value == b"1"
    await watch.close()
    await buses.close()


async def test_more_copies_are_made_when_they_are_asked_for(cluster: NatsCluster) -> None:
    """A bucket of one copy gets three at the next opening with ``replicas: 3``, and loses nothing."""
    buses = Buses(cluster.url)
    bus = await buses()

    async def opened(replicas: int) -> Bucket:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    return await Bucket.open(bus, NAME, replicas=replicas)
                except BusError:
                    await asyncio.sleep(POLL_S)

    bucket = await opened(1)
    await put(bucket, "a", b"1")
    bucket = await opened(3)
    found = await ask(bus, f"$JS.API.STREAM.INFO.KV_{NAME}", b"")
    assert found["config"]["num_replicas"] == SIZE
    entry = await bucket.get("a")
    assert entry is not None
    assert entry.value == b"1"
    await buses.close()
