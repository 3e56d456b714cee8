"""A provider's quota over real processes: three ingresses, two workers, deaths, and exactly the limit."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import TYPE_CHECKING

import httpx
import pytest

from fakes.behaviour import Answer
from fakes.polling import until
from fakes.processes import until_it_is
from fakes.provider import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.processes import Fleet, Ingress, NewFleet, Worker

LIMIT = 30
INGRESSES = 3
CONFIG = """
tiers:
  sky: {worker: cloud, provider: mine, base_url: 'URL', api_key: sk-1, max_in_flight: 400, max_waiting: 0}
models:
  only: {tier: sky, backend_model: one, quota: {requests: [LIMIT/total, 1000/m], tokens: [900000/d]}}
""".replace("LIMIT", str(LIMIT))
BODY = {"model": "only", "messages": [{"role": "user", "content": "Count to ten."}]}
KILLED = 0
"""Stands for the status of a request whose ingress died with it."""


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """The provider, which takes a moment for each answer so that deaths meet requests under way."""
    async with FakeProvider() as running:
        running.default = Answer(first_token_s=0.05)
        yield running


async def running(fleet: Fleet) -> tuple[list[Ingress], list[Worker]]:
    """All processes, which know each other."""
    ingresses = [fleet.start_ingress() for _ in range(INGRESSES)]
    workers = [fleet.start_worker(kind="cloud") for _ in range(2)]
    for process in (*ingresses, *workers):
        await process.came_up()
    for ingress in ingresses:
        await fleet.know(ingress, "sky", *workers)
    return ingresses, workers


async def ask(ingress: Ingress) -> int:
    """One request's status."""
    try:
        return (await ingress.client.post("/v1/chat/completions", json=BODY)).status_code
    except httpx.HTTPError:
        return KILLED


async def burst(ingresses: list[Ingress], count: int) -> list[asyncio.Task[int]]:
    """So many requests at once, over all ingresses."""
    return [asyncio.create_task(ask(ingress)) for _, ingress in zip(range(count), itertools.cycle(ingresses))]


async def test_ten_times_the_limit_with_an_ingress_killed(
    new_fleet: NewFleet, provider: FakeProvider
) -> None:
    """Ten times the limit at once over three ingresses, one killed on the way: the limit is let through."""
    fleet = await new_fleet(CONFIG.replace("URL", provider.base_url))
    ingresses, _ = await running(fleet)
    tasks = await burst(ingresses, 10 * LIMIT)
    await until(lambda: provider.chats)
    await ingresses[0].kill()
    statuses = Counter(await asyncio.gather(*tasks))
    # Those whose ingress died stay counted: the provider has had them. What is left is used up now.
    assert len(provider.chats) == LIMIT
    assert await ask(ingresses[1]) == 429
    assert statuses.keys() <= {KILLED, 200, 429}
    assert statuses[200] <= LIMIT
    assert len(provider.chats) == LIMIT


async def test_a_worker_killed_with_requests_in_its_hands(
    new_fleet: NewFleet, provider: FakeProvider
) -> None:
    """A worker dies in the middle of the burst: what it has sent stays counted, and nothing more goes out."""
    fleet = await new_fleet(CONFIG.replace("URL", provider.base_url))
    ingresses, workers = await running(fleet)
    tasks = await burst(ingresses, 10 * LIMIT)
    await until(lambda: len(provider.chats) >= LIMIT // 3)
    await workers[0].kill()
    statuses = Counter(await asyncio.gather(*tasks))
    again = Counter(await asyncio.gather(*await burst(ingresses, LIMIT)))
    assert len(provider.chats) <= LIMIT
    assert again[200] == 0
    assert statuses[200] + again[200] <= len(provider.chats)


async def test_nats_restarted_in_the_middle(new_fleet: NewFleet, provider: FakeProvider) -> None:
    """NATS dies in the middle of the burst and comes back: what was counted stays, the rest is let go."""
    fleet = await new_fleet(CONFIG.replace("URL", provider.base_url))
    ingresses, workers = await running(fleet)
    tasks = await burst(ingresses, 10 * LIMIT)
    await until(lambda: len(provider.chats) >= 1)
    await fleet.nats.kill()
    await fleet.nats.start()
    await asyncio.gather(*tasks)
    assert len(provider.chats) <= LIMIT
    for ingress in ingresses:
        await fleet.know(ingress, "sky", *workers)

    async def spent() -> bool:
        return await ask(ingresses[0]) == 429

    await until_it_is(spent)
    assert len(provider.chats) == LIMIT


async def test_a_restart_of_everything_forgets_nothing(new_fleet: NewFleet, provider: FakeProvider) -> None:
    """Half of the limit, then every process is killed and started anew: the other half is left, no more."""
    fleet = await new_fleet(CONFIG.replace("URL", provider.base_url))
    ingresses, workers = await running(fleet)
    statuses = Counter(await asyncio.gather(*await burst(ingresses, LIMIT // 2)))
    assert statuses == {200: LIMIT // 2}
    for process in (*ingresses, *workers):
        await process.kill()
    await fleet.nats.kill()
    await fleet.nats.start()
    ingresses, _ = await running(fleet)
    statuses = Counter(await asyncio.gather(*await burst(ingresses, 3 * LIMIT)))
    assert statuses == {200: LIMIT // 2, 429: 3 * LIMIT - LIMIT // 2}
    assert len(provider.chats) == LIMIT
