"""A worker that is frozen, asleep or cut off costs a request half a second, and no request its answer."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fakes.behaviour import Answer
from fakes.faults import Silence
from fakes.load import Load, Reading, read_chat
from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.processes import free_port, until_it_is
from fakes.provider import FakeProvider
from fakes.relay import Relay
from tierfall.protocol.presence import BEAT_STALE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.processes import Ingress, NewFleet, Worker

CONFIG = """
tiers:
  near: {{worker: vllm, base_url: '{near}', max_in_flight: 16}}
  far: {{worker: vllm, base_url: '{far}', max_in_flight: 16}}
models:
  alone: {{tier: near, backend_model: fake-model}}
  both: {{tier: near, backend_model: fake-model, fallbacks: [second]}}
  second: {{tier: far, backend_model: fake-model}}
"""
TEXT = "one two three"
CLIENTS = 4
MORE = 40
QUICK = 'ping_interval: "1s"'
ROUTES = "pool_size: -1, no_advertise: true"
BEYOND_STALE_S = BEAT_STALE_S + 1.0


def asking(model: str, *, stream: bool = False) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "Count."}], "stream": stream}


@pytest.fixture
async def near() -> AsyncIterator[FakeProvider]:
    """The backend of the first tier."""
    async with FakeProvider() as provider:
        provider.default = Answer(TEXT)
        yield provider


@pytest.fixture
async def far() -> AsyncIterator[FakeProvider]:
    """The backend of the second tier."""
    async with FakeProvider() as provider:
        provider.default = Answer(TEXT)
        yield provider


class Timed(Load):
    """Clients that ask all the time, and how long each request took."""

    def __init__(self, ingress: Ingress, model: str) -> None:
        super().__init__(self._timed, CLIENTS)
        self._ingress, self._model = ingress, model
        self.took: list[tuple[float, Reading]] = []

    async def _timed(self, number: int) -> Reading:
        began = time.perf_counter()
        body = asking(self._model, stream=bool(number % 2))
        reading = await read_chat(self._ingress.client, Reading(), body)
        self.took.append((time.perf_counter() - began, reading))
        return reading

    async def more(self, count: int = MORE) -> list[Reading]:
        """The next answers to requests that were sent from now on."""
        seen = len(self.took) + CLIENTS
        await until(lambda: len(self.took) >= seen + count, timeout_s=60)
        return [reading for _, reading in self.took[seen : seen + count]]

    def latest(self) -> set[str]:
        """The workers of the latest answers."""
        return {reading.headers["x-tierfall-worker"] for _, reading in self.took[-MORE:]}

    def tell(self, what: str) -> None:
        """Prints the slowest."""
        slowest = sorted((took for took, _ in self.took), reverse=True)[: CLIENTS + 1]
        print(f"{what}: {len(self.took)} requests, slowest {[f'{took:.2f}' for took in slowest]} s")  # noqa: T201 - a measurement


async def test_the_only_worker_of_a_tier_freezes(
    new_fleet: NewFleet, near: FakeProvider, far: FakeProvider
) -> None:
    """The next tier answers, and only the first requests are slow; thawed, it gets requests again."""
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
    ingress, doomed, spare = fleet.start_ingress(), fleet.start_worker("near"), fleet.start_worker("far")
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", doomed)
    await fleet.know(ingress, "far", spare)
    async with Timed(ingress, "both") as load:
        await load.more()
        doomed.signal(signal.SIGSTOP)
        await until(lambda: load.took[-1][1].headers.get("x-tierfall-worker") == spare.id)
        frozen = await load.more()
        doomed.signal(signal.SIGCONT)
        await until(lambda: load.took[-1][1].headers.get("x-tierfall-worker") == doomed.id)
        thawed = await load.more()
    load.tell("frozen")
    assert all(reading.whole and reading.text == TEXT for _, reading in load.took)
    assert {reading.headers["x-tierfall-attempts"] for reading in frozen} == {"near=no_workers;far=ok"}
    assert {reading.headers["x-tierfall-attempts"] for reading in thawed} == {"near=ok"}
    answered = sum(reading.headers["x-tierfall-worker"] == doomed.id for _, reading in load.took)
    assert len(near.chats) <= answered + CLIENTS, "what came late was executed"


async def freeze(worker: Worker, relay: Relay) -> None:
    """SIGSTOP."""
    del relay
    worker.signal(signal.SIGSTOP)


async def cut(worker: Worker, relay: Relay) -> None:
    """The link goes silent without an end, and new connections are let through."""
    del worker
    relay.cut()


@pytest.mark.parametrize("fall_silent", [freeze, cut])
async def test_one_of_two_workers_falls_silent(
    new_fleet: NewFleet, near: FakeProvider, far: FakeProvider, fall_silent: Any
) -> None:
    """The other one answers everything, though NATS keeps the silent one in the queue group."""
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
    async with Relay(fleet.nats.port) as relay:
        ingress, live = fleet.start_ingress(), fleet.start_worker("near")
        doomed = fleet.start_worker("near", nats_url=relay.url)
        for process in fleet.processes:
            await process.came_up()
        await fleet.know(ingress, "near", doomed, live)
        async with Timed(ingress, "alone") as load:
            await load.more()
            await fall_silent(doomed, relay)
            await fleet.know(ingress, "near", live)
            silent = await load.more()
            if fall_silent is cut:
                relay.end_clients()
                await until(lambda: relay.accepted > 1)  # the worker dials again
            else:
                doomed.signal(signal.SIGCONT)
            await fleet.know(ingress, "near", doomed, live)
            back = await load.more(2 * MORE)
        load.tell(fall_silent.__name__)
        assert all(reading.whole and reading.text == TEXT for _, reading in load.took)
        assert {reading.headers["x-tierfall-worker"] for reading in silent} == {live.id}
        assert {reading.headers["x-tierfall-worker"] for reading in back} == {live.id, doomed.id}
        assert {reading.headers["x-tierfall-attempts"] for reading in [*silent, *back]} == {"near=ok"}


async def holds_one(ingress: Ingress) -> bool:
    """Whether the first tier's worker has said that it has a request."""
    return bool((await ingress.health())["tiers"]["near"]["workers"][0]["in_flight"] == 1)


async def test_what_a_frozen_worker_holds_goes_elsewhere(
    new_fleet: NewFleet, near: FakeProvider, far: FakeProvider
) -> None:
    """Accepted, but not begun: its beats are missed, and the next tier does it."""
    near.default = Silence()
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
    ingress, doomed, spare = fleet.start_ingress(), fleet.start_worker("near"), fleet.start_worker("far")
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", doomed)
    await fleet.know(ingress, "far", spare)
    asked = asyncio.create_task(read_chat(ingress.client, Reading(), asking("both")))
    await until(lambda: near.chats)
    await until_it_is(partial(holds_one, ingress))
    doomed.signal(signal.SIGSTOP)
    reading = await asked
    assert reading.headers["x-tierfall-attempts"] == "near=worker_lost;near=no_workers;far=ok"
    assert reading.text == TEXT


async def test_a_frozen_ingress_takes_no_worker_for_dead(
    new_fleet: NewFleet, near: FakeProvider, far: FakeProvider
) -> None:
    """It heard no beats while it was frozen; the first request after it goes to the first tier."""
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
    ingress, first, second = fleet.start_ingress(), fleet.start_worker("near"), fleet.start_worker("far")
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", first)
    await fleet.know(ingress, "far", second)
    ingress.signal(signal.SIGSTOP)
    asked = asyncio.create_task(read_chat(ingress.client, Reading(), asking("both")))
    await asyncio.sleep(BEYOND_STALE_S)
    ingress.signal(signal.SIGCONT)
    assert (await asked).headers["x-tierfall-attempts"] == "near=ok"
    for _ in range(MORE):
        reading = await read_chat(ingress.client, Reading(), asking("both"))
        assert reading.headers["x-tierfall-attempts"] == "near=ok"
    assert "does not answer" not in ingress.log


async def test_two_sites_are_partitioned(new_fleet: NewFleet, near: FakeProvider, far: FakeProvider) -> None:
    """The link of two NATS servers goes silent: a site goes on with its own workers until it is back."""
    route = free_port()
    here = f"server_name: here\ncluster {{ name: sites, listen: '127.0.0.1:{route}', {ROUTES} }}\n{QUICK}"
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url), nats=here)
    async with Relay(route) as link:
        there = (
            f"server_name: there\n{QUICK}\ncluster {{ name: sites, listen: '127.0.0.1:-1', {ROUTES}, "
            f"routes: ['nats-route://127.0.0.1:{link.port}'] }}"
        )
        async with NatsServer(there) as other_site:
            ingress, spare = fleet.start_ingress(), fleet.start_worker("far")
            distant = fleet.start_worker("near", nats_url=other_site.url)
            for process in fleet.processes:
                await process.came_up()
            await fleet.know(ingress, "near", distant)
            await fleet.know(ingress, "far", spare)
            async with Timed(ingress, "both") as load:
                await load.more()
                link.cut(new_ones=True)
                await until(lambda: load.took[-1][1].headers.get("x-tierfall-worker") == spare.id)
                apart = await load.more()
                link.end_clients()
                await until(lambda: load.latest() == {distant.id})
            load.tell("partition")
    assert all(reading.whole and reading.text == TEXT for _, reading in load.took)
    assert {reading.headers["x-tierfall-attempts"] for reading in apart} == {"near=no_workers;far=ok"}
