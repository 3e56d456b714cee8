"""Processes that may have few files open: no client is shut out in silence, and no backend is blamed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from fakes.behaviour import Answer
from fakes.faults import StallAfter
from fakes.polling import until
from fakes.processes import until_it_is
from fakes.provider import FakeProvider
from fakes.raw_client import RawClient, get_request
from tierfall_ingress import room

if TYPE_CHECKING:
    from fakes.processes import NewFleet

CONFIG = """
tiers:
  near: {{worker: vllm, base_url: '{url}', max_in_flight: 256}}
models:
  model: {{tier: near, backend_model: fake-model}}
"""
FILES = 256
OTHER_FILES = 40
"""More than the ingress has open beside its connections."""
ASK: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "Hello."}], "stream": True}


def told(log: str, words: str) -> list[str]:
    """The messages of a log that hold these words."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if words in line["message"]]


async def test_idle_connections_shut_nobody_out(new_fleet: NewFleet) -> None:
    """More connections than there are files: idle ones go, busy ones stay, and one too many has its 503."""
    fleet = await new_fleet(CONFIG.format(url="http://127.0.0.1:1/v1"))
    ingress = fleet.start_ingress(files=FILES)
    await ingress.came_up()
    assert told(ingress.log, f"only {FILES} files")
    async with AsyncExitStack() as stack:
        for _ in range(FILES):
            await stack.enter_async_context(RawClient(ingress.url))
            client = await stack.enter_async_context(RawClient(ingress.url))
            await client.send(get_request("/health/liveliness"))
            # With its answer both have left the kernel's queue. Where that is full, connecting takes seconds.
            assert (await client.answer()).status == 200
        for _ in range(3):
            async with RawClient(ingress.url) as client:
                await client.send(get_request("/v1/models"))
                assert (await client.answer()).status == 200
    assert told(ingress.log, f"nearly all of the {FILES} files")
    await until(lambda: ingress.open_sockets < 20)

    busy = FILES - FILES // room.RESERVED_SHARE
    async with AsyncExitStack() as stack:
        for number in range(busy):
            client = await stack.enter_async_context(RawClient(ingress.url))
            with contextlib.suppress(ConnectionError):
                await client.send(b"GET /v1/mod")
            taken_in = min(number, busy - OTHER_FILES)
            await until(lambda least=taken_in: ingress.open_sockets >= least)  # type: ignore[misc]

        async def refused() -> bool:
            async with RawClient(ingress.url) as client:
                await client.send(get_request("/v1/models"))
                answer = await client.answer()
            return answer.status == 503 and answer.json["error"]["code"] == "too_many_connections"

        await until_it_is(refused)
    async with RawClient(ingress.url) as client:
        await client.send(get_request("/v1/models"))
        assert (await client.answer()).status == 200


async def test_a_worker_without_files_does_not_blame_its_backend(new_fleet: NewFleet) -> None:
    """It answers what it can; what it cannot is told with the limit, and the backend stays up."""
    async with FakeProvider() as provider:
        provider.default = StallAfter(1, Answer())
        fleet = await new_fleet(CONFIG.format(url=provider.base_url))
        ingress, worker = fleet.start_ingress(), fleet.start_worker(files=64)
        for process in fleet.processes:
            await process.came_up()
        await fleet.know(ingress, "near", worker)
        asked = [
            asyncio.create_task(ingress.client.post("/v1/chat/completions", json=ASK)) for _ in range(100)
        ]
        await until(lambda: sum(task.done() for task in asked) > 0)
        failed = [task.result() for task in asked if task.done()]
        assert {answer.status_code for answer in failed} == {503}
        assert {answer.json()["error"]["code"] for answer in failed} == {"out_of_files"}
        assert "64 files" in failed[0].json()["error"]["message"]
        assert "near=out_of_files" in failed[0].headers["x-tierfall-attempts"]
        assert not told(worker.log, "cannot be reached")

        def release() -> bool:
            for chat in provider.chats:
                chat.go_on.set()
            return all(task.done() for task in asked)

        await until(release)
        assert sum(task.result().status_code == 200 for task in asked) > 20
