"""An ingress that is told to go loses nothing, and one that dies leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fakes.behaviour import Answer
from fakes.faults import StallAfter
from fakes.load import Reading, read_chat
from fakes.polling import until
from fakes.processes import until_it_is
from fakes.provider import FakeProvider
from fakes.raw_client import RawClient, chat_request
from tierfall.worker.process import LEASE_LAPSES_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.processes import Fleet, Ingress, NewFleet

CONFIG = """
tiers:
  near: {{worker: vllm, base_url: '{url}', max_in_flight: 256}}
  narrow: {{worker: vllm, base_url: '{url}', max_in_flight: 1}}
models:
  model: {{tier: near, backend_model: fake-model}}
  single: {{tier: narrow, backend_model: fake-model, fallbacks: [model], when_full: wait(20s)}}
"""
STREAMS = 6
LAPSED_S = LEASE_LAPSES_S + 10
"""The lease, a sweep each second, and a busy machine."""


def asking(model: str = "model", *, stream: bool = True) -> dict[str, Any]:
    """A chat request."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Count to ten."}],
        "stream": stream,
    }


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """The backend, which stops in the middle of each answer until it is told to go on."""
    async with FakeProvider() as running:
        running.default = StallAfter(3, Answer())
        yield running


async def under_way(fleet: Fleet, ingress: Ingress, provider: FakeProvider) -> list[asyncio.Task[Reading]]:
    """Starts a worker and as many streams; returns once each has its first words."""
    worker = await fleet.worker()
    await ingress.came_up()
    await fleet.know(ingress, "near", worker)
    readings = [Reading() for _ in range(STREAMS)]
    tasks = [asyncio.create_task(read_chat(ingress.client, reading, asking())) for reading in readings]
    await until(lambda: all(reading.outputs == 3 for reading in readings))
    assert len(provider.chats) == STREAMS
    return tasks


async def test_an_ingress_told_to_go_finishes_its_streams(
    new_fleet: NewFleet, provider: FakeProvider
) -> None:
    """SIGTERM with streams in flight: nobody new gets in, the streams come to their end, it exits 0."""
    fleet = await new_fleet(CONFIG.format(url=provider.base_url))
    ingress = fleet.start_ingress()
    tasks = await under_way(fleet, ingress, provider)
    leaving = asyncio.create_task(ingress.stop())
    await until(lambda: not ingress.listens())
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient(trust_env=False) as stranger:
            await stranger.get(f"{ingress.url}/health/readiness")
    assert not any(task.done() for task in tasks)
    for chat in provider.chats:
        chat.go_on.set()
    for reading in await asyncio.gather(*tasks):
        assert reading.whole, reading
        assert reading.text == Answer.text
    assert await leaving == 0


async def test_an_ingress_told_twice_says_so_to_each_client(
    new_fleet: NewFleet, provider: FakeProvider
) -> None:
    """The second SIGTERM ends what is under way with an error: an event in a stream, a 503 before one."""
    fleet = await new_fleet(CONFIG.format(url=provider.base_url))
    ingress = fleet.start_ingress()
    tasks = await under_way(fleet, ingress, provider)
    async with RawClient(ingress.url) as unary, RawClient(ingress.url) as halfway:
        await unary.chat(asking(stream=False))
        await until(lambda: len(provider.chats) == STREAMS + 1)
        await halfway.send(chat_request(asking())[:-10])
        ingress.signal(signal.SIGTERM)
        await until(lambda: not ingress.listens())
        leaving = asyncio.create_task(ingress.stop())
        for client in (unary, halfway):
            answer = await client.answer()
            assert (answer.status, answer.header("connection")) == (503, "close")
            assert answer.json["error"]["code"] == "gateway_stopped"
            assert answer.header("retry-after")
        for reading in await asyncio.gather(*tasks):
            assert [error["code"] for error in reading.errors] == ["gateway_stopped"]
            assert (reading.broken, reading.done) == ("", 0)
    assert await leaving == 0
    await until(lambda: all(chat.closed.is_set() for chat in provider.chats))


async def test_a_new_ingress_knows_nobody_and_says_so_to_nobody(
    new_fleet: NewFleet, provider: FakeProvider
) -> None:
    """Before it has heard the first beat it does not take a full tier for a dead one."""
    fleet = await new_fleet(CONFIG.format(url=provider.base_url))
    old, worker = fleet.start_ingress(), fleet.start_worker()
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(old, "narrow", worker)
    holder, late = Reading(), Reading()
    held = asyncio.create_task(read_chat(old.client, holder, asking("single")))
    await until(lambda: holder.outputs == 3)
    new = await fleet.ingress()
    waiting = asyncio.create_task(read_chat(new.client, late, asking("single")))

    async def in_line() -> bool:
        return (await new.health())["tiers"]["narrow"]["waiting"] == 1 or waiting.done()

    await until_it_is(in_line)
    await fleet.know(new, "narrow", worker)
    provider.default = Answer()
    provider.chats[0].go_on.set()
    for reading in await asyncio.gather(held, waiting):
        assert reading.whole, reading
        assert reading.headers["x-tierfall-attempts"] == "narrow=ok"


async def test_what_is_on_its_way_to_a_leaving_ingress_is_answered(
    new_fleet: NewFleet, provider: FakeProvider
) -> None:
    """A connection made before SIGTERM, used or not, takes one more request, and its answer is the last."""
    provider.default = Answer()
    fleet = await new_fleet(CONFIG.format(url=provider.base_url))
    ingress, worker = fleet.start_ingress(), fleet.start_worker()
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", worker)
    async with RawClient(ingress.url) as used, RawClient(ingress.url) as fresh:
        await used.chat(asking(stream=False))
        assert (await used.answer()).header("connection") is None
        leaving = asyncio.create_task(ingress.stop())
        await until(lambda: not ingress.listens())
        for client in (used, fresh):
            await client.chat(asking(stream=client is used))
        for client in (used, fresh):
            answer = await client.answer()
            assert (answer.status, answer.header("connection")) == (httpx.codes.OK, "close")
            assert await client.closed() == b""
    assert await leaving == 0


async def test_a_killed_ingress_leaves_no_work_behind(new_fleet: NewFleet, provider: FakeProvider) -> None:
    """Its clients see a broken connection; its workers hear nothing more of it and stop the backend."""
    fleet = await new_fleet(CONFIG.format(url=provider.base_url))
    ingress = fleet.start_ingress()
    tasks = await under_way(fleet, ingress, provider)
    began = time.perf_counter()
    await ingress.kill()
    for reading in await asyncio.gather(*tasks):
        assert reading.broken
        assert reading.done == 0
    await until(lambda: all(chat.closed.is_set() for chat in provider.chats), timeout_s=LAPSED_S)
    print(f"the backend was let go {time.perf_counter() - began:.2f} s after the kill")  # noqa: T201 - a measurement
    provider.default = Answer()
    again = await fleet.ingress(ingress.port)
    reading = await read_chat(again.client, Reading(), asking())
    assert reading.whole, "the worker serves on"
