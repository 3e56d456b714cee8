"""What a worker says of its free slots: enough for every request that waits, nothing where nobody does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakes.polling import until
from fakes.scripted import ScriptedBackend, Step, says
from fakes.stack import Stack
from tierfall.bus import Bus, BusOptions
from tierfall.protocol import subjects

if TYPE_CHECKING:
    from tierfall.bus import Message

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 3}
models:
  first: {tier: a, backend_model: model-a}
"""


async def test_a_worker_that_was_full_announces_each_free_slot() -> None:
    """Also those that free together; one that was never full says nothing."""
    backend, release = ScriptedBackend(), asyncio.Event()
    async with Stack(CONFIG, {"a": backend}) as stack:
        bus = await Bus.connect(BusOptions(servers=stack.nats.url, name="listener"))
        announced: list[Message] = []
        await bus.subscribe(subjects.slot("a"), announced.append)
        for _ in range(4):
            assert (await stack.chat()).status_code == 200
        script: list[Step] = [release, *says("x")]
        backend.scripts.extend([script] * 3)
        held = [asyncio.create_task(stack.chat()) for _ in range(3)]
        await until(lambda: backend.running == 3)
        await bus.flush()
        assert not announced
        release.set()
        await asyncio.gather(*held)
        await until(lambda: len(announced) == 3)
        await bus.close()


async def test_slots_that_free_together_all_serve_the_line() -> None:
    """Of those who wait, as many get in as there are slots, though nothing else happens."""
    backend, first, second = ScriptedBackend(), asyncio.Event(), asyncio.Event()
    async with Stack(CONFIG, {"a": backend}) as stack:
        backend.scripts.extend([[first, *says("x")]] * 3 + [[second, *says("x")]] * 3)
        asked = [asyncio.create_task(stack.chat()) for _ in range(3)]
        await until(lambda: backend.running == 3)
        asked += [asyncio.create_task(stack.chat()) for _ in range(4)]
        await until(lambda: len(stack.services.rooms["a"]) == 4)
        first.set()
        await until(lambda: backend.running == 3 and len(backend.asks) == 6)
        await until(lambda: len(stack.services.rooms["a"]) == 1)
        second.set()
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 7
