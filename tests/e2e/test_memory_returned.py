"""What a process takes for large bodies it gives back to the system, whatever small blocks came between."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from fakes.processes import until_it_is
from fakes.raw_client import RawClient, chat_request
from fakes.stack import ASK

if TYPE_CHECKING:
    from fakes.processes import NewFleet

CONFIG = """
tiers:
  near: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}
models:
  model: {tier: near, backend_model: fake-model}
"""
MB = 1_000_000
RESIDENT = "process_resident_memory_bytes"
LARGE_BYTES = 20 * MB
LARGE, SMALL = 15, 150
"""So many large bodies, and small ones that may lie between them in memory."""
LEFT_BYTES = 150 * MB
"""A process with its modules, some garbage, and what the allocator keeps for next time."""


async def test_large_bodies_leave_a_process_as_small_as_it_was(new_fleet: NewFleet) -> None:
    """Clients send most of their bodies and hang up, all at a time."""
    fleet = await new_fleet(CONFIG)
    ingress = await fleet.ingress()

    async def is_small() -> bool:
        return await ingress.metric(RESIDENT) < LEFT_BYTES

    async def holds_them() -> bool:
        return await ingress.metric(RESIDENT) > LARGE * LARGE_BYTES

    assert await is_small()
    large, small = (chat_request({**ASK, "padding": "x" * size}) for size in (LARGE_BYTES, MB // 16))
    async with RawClient(ingress.url) as client:
        await client.send(large)
        assert (await client.answer()).status == 404
    async with AsyncExitStack() as open_until:
        for request in [*[small] * (SMALL // LARGE), large] * LARGE:
            client = await open_until.enter_async_context(RawClient(ingress.url))
            await client.send(request[:-100])
        await until_it_is(holds_them)
    await until_it_is(is_small)
