"""A new version everywhere, one process after the other, while clients ask: nobody notices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fakes.behaviour import Answer
from fakes.load import Load, Reading, RoundRobin
from fakes.polling import until
from fakes.provider import FakeProvider

if TYPE_CHECKING:
    from fakes.processes import NewFleet

CONFIG = """
tiers:
  near: {{worker: vllm, base_url: '{near}', max_in_flight: 8}}
  far: {{worker: vllm, base_url: '{far}', max_in_flight: 8}}
models:
  first: {{tier: near, backend_model: fake-model, fallbacks: [second], when_full: wait(5s)}}
  second: {{tier: far, backend_model: fake-model}}
"""
TEXT = "one two three four five six seven eight nine ten"
CLIENTS = 10


def asking(number: int) -> dict[str, Any]:
    """A chat request: to either tier, streaming or not."""
    return {
        "model": ("first", "second")[number // 2 % 2],
        "messages": [{"role": "user", "content": "Count to ten."}],
        "stream": bool(number % 2),
    }


async def test_a_rolling_restart_costs_no_request(new_fleet: NewFleet) -> None:
    """Two ingresses and two workers per tier are replaced in turn under load: every request is answered."""
    async with FakeProvider() as near, FakeProvider() as far:
        near.default = far.default = Answer(TEXT, tokens_per_s=40)
        fleet = await new_fleet(CONFIG.format(near=near.base_url, far=far.base_url))
        ingresses = [fleet.start_ingress(), fleet.start_ingress()]
        workers = [(tier, fleet.start_worker(tier)) for tier in ("near", "near", "far", "far")]
        for process in fleet.processes:
            await process.came_up()
        for ingress in ingresses:
            for tier in ("near", "far"):
                await fleet.know(ingress, tier, *(each for name, each in workers if name == tier))

        async with RoundRobin([ingress.url for ingress in ingresses]) as balancer:

            async def ask(number: int) -> Reading:
                return await balancer.chat(asking(number))

            async with Load(ask, CLIENTS) as load:
                await until(lambda: len(load.readings) >= CLIENTS)
                for tier, worker in workers:
                    replacement = fleet.start_worker(tier)
                    assert await worker.stop() == 0
                    await replacement.came_up()
                for ingress in ingresses:
                    assert await ingress.stop() == 0
                    await fleet.ingress(ingress.port)
                seen = len(load.readings)
                await until(lambda: len(load.readings) >= seen + 2 * CLIENTS)
        attempts = {reading.headers.get("x-tierfall-attempts", reading.broken) for reading in load.readings}
        print(f"{len(load.readings)} requests, {balancer.refused} refused connections, {attempts}")  # noqa: T201 - a measurement
        for number, reading in enumerate(load.readings):
            assert reading.whole, (number, reading)
            assert reading.text == TEXT
        assert balancer.refused, "an ingress was away for a moment"
        assert attempts == {"near=ok", "far=ok"}
