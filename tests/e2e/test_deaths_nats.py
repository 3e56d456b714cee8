"""The bus dies and comes back: nothing false is passed on, and all is well again a moment later."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import httpx

from fakes.behaviour import Answer
from fakes.load import Load, Reading, read_chat
from fakes.polling import until
from fakes.processes import until_it_is
from fakes.provider import FakeProvider

if TYPE_CHECKING:
    from fakes.processes import Fleet, Ingress, NewFleet

CONFIG = """
tiers:
  near: {{worker: vllm, base_url: '{url}', max_in_flight: 64}}
models:
  model: {{tier: near, backend_model: fake-model}}
"""
TEXT = " ".join(f"word{number}" for number in range(40))
CLIENTS = 8
ROUNDS = 2
BACK_S = 10.0
"""How long a busy machine may take until requests work again; a quiet one takes about a second."""


def asking(*, stream: bool = True) -> dict[str, Any]:
    """A chat request."""
    return {"model": "model", "messages": [{"role": "user", "content": "Count."}], "stream": stream}


async def started(fleet: Fleet) -> Ingress:
    """An ingress and two workers that it knows."""
    ingress, one, two = fleet.start_ingress(), fleet.start_worker(), fleet.start_worker()
    for process in fleet.processes:
        await process.came_up()
    await fleet.know(ingress, "near", one, two)
    return ingress


async def test_requests_work_again_once_it_is_back(new_fleet: NewFleet) -> None:
    """While it is away a request waits a little or is told when to come back; then it works as before."""
    async with FakeProvider() as provider:
        provider.default = Answer(TEXT)
        fleet = await new_fleet(CONFIG.format(url=provider.base_url))
        ingress = await started(fleet)

        await fleet.nats.kill()
        refused = await read_chat(ingress.client, Reading(), asking())
        assert refused.status == httpx.codes.SERVICE_UNAVAILABLE
        assert float(refused.headers["retry-after"]) > 0
        assert refused.errors[0]["code"] == "bus_down"
        waiting = asyncio.create_task(read_chat(ingress.client, Reading(), asking()))

        async def under_way() -> bool:
            return await ingress.metric("tierfall_in_flight") == 1

        await until_it_is(under_way)

        await fleet.nats.start()
        back = time.perf_counter()
        assert (await waiting).whole, "it was asked for while NATS was away"
        while not (await read_chat(ingress.client, Reading(), asking())).whole:
            assert time.perf_counter() < back + BACK_S
        print(f"requests work {time.perf_counter() - back:.2f} s after nats-server is back")  # noqa: T201 - a measurement
        assert not provider.chats[0].closed.is_set()


async def test_streams_survive_it_or_say_so(new_fleet: NewFleet) -> None:
    """Killed and restarted under load, several times: every text is the right one up to where it ends."""
    async with FakeProvider() as provider:
        provider.default = Answer(TEXT, tokens_per_s=50)
        fleet = await new_fleet(CONFIG.format(url=provider.base_url))
        ingress = await started(fleet)

        async def ask(number: int) -> Reading:
            return await read_chat(ingress.client, Reading(), asking(stream=number % 4 != 0))

        readings: list[Reading] = []
        for _ in range(ROUNDS):
            async with Load(ask, CLIENTS) as load:
                await until(lambda: len(load.readings) >= CLIENTS)
                await fleet.nats.restart()
            readings += load.readings
        for reading in readings:
            assert TEXT.startswith(reading.text.rstrip()), reading
            assert not reading.broken, reading
            if reading.done:
                assert (reading.whole, reading.text) == (True, TEXT), reading
            else:
                assert reading.errors, reading
        whole = sum(reading.whole for reading in readings)
        print(f"{whole} of {len(readings)} answers were whole")  # noqa: T201 - a measurement
        failed = [reading for reading in readings if not reading.whole]
        assert not failed, "a restart that short costs no answer"
        await until(lambda: all(chat.answered or chat.closed.is_set() for chat in provider.chats))
