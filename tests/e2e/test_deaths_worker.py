"""A worker that dies or is told to go takes no answer with it."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from fakes.behaviour import Answer
from fakes.faults import StallAfter
from fakes.load import Load, Reading, read_chat
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.raw_client import RawClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.processes import NewFleet

CONFIG = """
tiers:
  near: {{worker: vllm, base_url: '{near}', max_in_flight: 16}}
  far: {{worker: vllm, base_url: '{far}', max_in_flight: 16}}
models:
  alone: {{tier: near, backend_model: fake-model}}
  both: {{tier: near, backend_model: fake-model, fallbacks: [second]}}
  second: {{tier: far, backend_model: fake-model}}
"""
TEXT = "one two three four five six seven eight nine ten"
LONG_TEXT = " ".join(["x" * 8000] * 2000)
"""More than all buffers between a backend and a client hold."""
STREAMING = pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
NOTICED_S = 5.0
"""How late a death may be noticed by a busy machine; a quiet one takes about a second at most."""


def asking(model: str, *, stream: bool) -> dict[str, Any]:
    """A chat request."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Count to ten."}]}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


def expect_whole(reading: Reading, text: str = TEXT) -> None:
    """One seamless answer."""
    assert reading.whole, reading
    assert reading.text == text
    assert (len(reading.ids), reading.roles, reading.finishes) == (1, ["assistant"], ["stop"])
    assert len(reading.usage) == 1


@pytest.fixture
async def near() -> AsyncIterator[FakeProvider]:
    """The backend of the first tier."""
    async with FakeProvider() as provider:
        yield provider


@pytest.fixture
async def far() -> AsyncIterator[FakeProvider]:
    """The backend of the second tier."""
    async with FakeProvider() as provider:
        provider.default = Answer(TEXT)
        yield provider


@STREAMING
@pytest.mark.parametrize("model", ["alone", "both"], ids=["same tier", "next tier"])
async def test_a_killed_worker_is_replaced(
    new_fleet: NewFleet, near: FakeProvider, far: FakeProvider, model: str, stream: bool
) -> None:
    """The request that a killed worker held goes on elsewhere, and its client sees one whole answer."""
    near.plan(StallAfter(4, Answer(TEXT)))
    near.default = Answer(TEXT)
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
    ingress, doomed = fleet.start_ingress(), fleet.start_worker("near")
    spare = fleet.start_worker("far") if model == "both" else None
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", doomed)
    if spare is not None:
        await fleet.know(ingress, "far", spare)

    reading = Reading()
    asked = asyncio.create_task(read_chat(ingress.client, reading, asking(model, stream=stream)))
    await until(lambda: reading.outputs == 4 if stream else near.chats)
    if spare is None:
        spare = await fleet.worker("near")
        await fleet.know(ingress, "near", doomed, spare)
    began = time.perf_counter()
    await doomed.kill()
    next_one = near if model == "alone" else far
    before = 1 if model == "alone" else 0
    await until(lambda: len(next_one.chats) > before, timeout_s=NOTICED_S)
    print(f"asked the next worker {time.perf_counter() - began:.2f} s after the kill")  # noqa: T201 - a measurement
    expect_whole(await asked)
    if stream:
        assert reading.models == (["alone"] if model == "alone" else ["both", "second"])
        assert await ingress.metric("tierfall_broken_streams_total", tier="near", reason="worker_lost") == 1
    else:
        assert reading.headers["x-tierfall-worker"] == spare.id
        told = "near=worker_lost;near=ok" if model == "alone" else None
        assert reading.headers["x-tierfall-attempts"] == (told or "near=worker_lost;near=no_workers;far=ok")


async def test_a_worker_killed_under_load_costs_no_request(
    new_fleet: NewFleet, near: FakeProvider, far: FakeProvider
) -> None:
    """With many requests in flight, streaming and not, one of two workers vanishes: all are answered."""
    near.default = Answer(TEXT, tokens_per_s=30)
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
    ingress, doomed, other = fleet.start_ingress(), fleet.start_worker("near"), fleet.start_worker("near")
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", doomed, other)

    async def ask(number: int) -> Reading:
        return await read_chat(ingress.client, Reading(), asking("alone", stream=bool(number % 2)))

    async with Load(ask, 12) as load:
        await until(lambda: len(load.readings) >= 12)
        await doomed.kill()
        seen = len(load.readings)
        await until(lambda: len(load.readings) >= seen + 24)
    for reading in load.readings:
        expect_whole(reading)
    assert await ingress.metric("tierfall_attempts_total", outcome="worker_lost") > 0


async def test_a_worker_told_to_go_drains(new_fleet: NewFleet, near: FakeProvider, far: FakeProvider) -> None:
    """SIGTERM under load: what it holds it finishes, nothing new comes to it, nobody notices, it exits 0."""
    near.default = Answer(TEXT, tokens_per_s=30)
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
    ingress, leaving, other = fleet.start_ingress(), fleet.start_worker("near"), fleet.start_worker("near")
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", leaving, other)

    async def ask(number: int) -> Reading:
        return await read_chat(ingress.client, Reading(), asking("alone", stream=bool(number % 2)))

    async with Load(ask, 12) as load:
        await until(lambda: len(load.readings) >= 12)
        assert await leaving.stop() == 0
        seen = len(load.readings)
        await until(lambda: len(load.readings) >= seen + 12)
    for reading in load.readings:
        expect_whole(reading)
        assert reading.headers["x-tierfall-attempts"] == "near=ok"
    assert {reading.headers["x-tierfall-worker"] for reading in load.readings} == {leaving.id, other.id}


async def test_a_slow_client_gets_all_from_a_leaving_worker(
    new_fleet: NewFleet, near: FakeProvider, far: FakeProvider
) -> None:
    """What a worker has still to send when its backend is done is part of what it finishes first."""
    near.default = Answer(LONG_TEXT)
    fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
    ingress, worker = fleet.start_ingress(), fleet.start_worker("near")
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", worker)
    async with RawClient(ingress.url) as client:
        await client.chat(asking("alone", stream=True))
        await client.head()
        pieces = client.pieces()
        data = await anext(pieces)
        assert not near.chats[0].answered, "the backend is not read faster than the client reads"
        worker.signal(signal.SIGTERM)
        await until(lambda: "draining" in worker.log)
        data += b"".join([piece async for piece in pieces])
    reading = Reading(status=200)
    for event in data.decode().split("\n\n"):
        if event:
            reading.take_event(event.removeprefix("data: "))
    assert reading.whole, reading.errors
    assert reading.text == LONG_TEXT
    assert await worker.ended() == 0
