"""Clients that vanish, by the hundred, leave nothing behind in any process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakes.behaviour import Answer
from fakes.faults import Silence, StallAfter
from fakes.load import Reading, read_chat
from fakes.polling import until
from fakes.processes import until_it_is
from fakes.provider import FakeProvider
from fakes.raw_client import chat_request

if TYPE_CHECKING:
    from fakes.behaviour import Behaviour
    from fakes.processes import Ingress, NewFleet

CONFIG = """
tiers:
  near: {{worker: vllm, base_url: '{url}', max_in_flight: 160}}
models:
  model: {{tier: near, backend_model: fake-model}}
"""
CLIENTS = 200
SLOTS = 160
PROBES = 1
"""The worker keeps one connection for its health probes; others that are idle go after a few seconds."""
BODY = {"model": "model", "messages": [{"role": "user", "content": "Count."}], "stream": True}


async def in_flight(ingress: Ingress) -> tuple[float, int, int]:
    """Requests in the ingress, requests that wait for a slot, requests in the worker."""
    tier = (await ingress.health())["tiers"]["near"]
    return (
        await ingress.metric("tierfall_in_flight"),
        tier["waiting"],
        sum(worker["in_flight"] for worker in tier["workers"]),
    )


async def settle(ingress: Ingress, wanted: tuple[float, int, int]) -> None:
    """Waits until the counts are these."""

    async def settled() -> bool:
        return await in_flight(ingress) == wanted

    try:
        await until_it_is(settled)
    except TimeoutError:
        raise AssertionError(f"{await in_flight(ingress)} instead of {wanted}") from None


async def test_two_hundred_clients_vanish(new_fleet: NewFleet) -> None:
    """Some in mid-stream, some before the first token, some in line: no slot, socket or request is left."""
    async with FakeProvider() as provider:
        fleet = await new_fleet(CONFIG.format(url=provider.base_url))
        ingress, worker = fleet.start_ingress(), fleet.start_worker()
        for process in fleet.processes:
            await process.came_up()
        await fleet.know(ingress, "near", worker)
        assert (await read_chat(ingress.client, Reading(), BODY)).whole
        await settle(ingress, (0, 0, 0))
        await until(lambda: provider.open_connections == PROBES)
        before = (ingress.open_sockets, worker.open_sockets)

        plays: list[Behaviour] = [StallAfter(3, Answer()), Silence()]
        provider.plan(*plays * (SLOTS // 2))
        writers = []
        for _ in range(CLIENTS):
            _, writer = await asyncio.open_connection("127.0.0.1", ingress.port)
            writer.write(chat_request(BODY))
            writers.append(writer)
        await settle(ingress, (CLIENTS, CLIENTS - SLOTS, SLOTS))
        await until(lambda: provider.open_connections >= SLOTS)
        for number, writer in enumerate(writers):
            if number % 2:
                writer.transport.abort()  # a reset
            else:
                writer.close()
        await settle(ingress, (0, 0, 0))
        await until(lambda: provider.open_connections == PROBES)
        assert all(chat.closed.is_set() or chat.answered for chat in provider.chats[1:])
        await until(lambda: (ingress.open_sockets, worker.open_sockets) == before)
        assert (await read_chat(ingress.client, Reading(), BODY)).whole, "it serves on"
