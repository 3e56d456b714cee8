"""Client keys over three ingress processes: known everywhere, limited as one, whoever dies."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING

import openai
import pytest

from fakes.polling import POLL_S, until
from fakes.processes import until_it_is
from fakes.provider import FakeProvider
from tierfall.bus import Bus, BusOptions
from tierfall.ledger import Ledger
from tierfall.store import QUOTA, Bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from fakes.processes import Fleet, Ingress, NewFleet

CONFIG = """
tiers: {{near: {{worker: vllm, base_url: '{url}', max_in_flight: 256}}}}
models: {{model: {{tier: near, backend_model: fake-model, price: {{prompt: 100, completion: 1000}}}}}}
"""
ADMIN_KEY = "sk-the-tests-own"
SERVER = f"stored_keys: true, api_keys: [{{key: {ADMIN_KEY}, name: tests}}]"
LIMIT = 20
BODY = {"model": "model", "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 10}
COST = 3 * 100 + 5 * 1000
"""Of one answer, in millionths: the fake provider counts words."""


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """The backend, which counts what reaches it."""
    async with FakeProvider() as running:
        yield running


@pytest.fixture
async def fleet(new_fleet: NewFleet, provider: FakeProvider) -> Fleet:
    """NATS and a worker."""
    fleet = await new_fleet(CONFIG.format(url=provider.base_url), server=SERVER, key=ADMIN_KEY)
    await fleet.worker()
    return fleet


async def three(fleet: Fleet) -> list[Ingress]:
    """Three ingresses that know the worker."""
    ingresses = [fleet.start_ingress() for _ in range(3)]
    for ingress in ingresses:
        await ingress.came_up()
        await until_it_is(partial(ingress.workers, "near"))
    return ingresses


async def ask(ingress: Ingress, key: str) -> httpx.Response:
    """One request with a key."""
    headers = {"authorization": f"Bearer {key}"}
    return await ingress.client.post("/v1/chat/completions", json=BODY, headers=headers)


async def until_all_say(ingresses: list[Ingress], key: str, status: int) -> None:
    """Waits until this key is answered so everywhere."""
    for ingress in ingresses:

        async def says(ingress: Ingress = ingress) -> bool:
            headers = {"authorization": f"Bearer {key}"}
            return (await ingress.client.get("/v1/models", headers=headers)).status_code == status

        await until_it_is(says)


async def used(fleet: Fleet, name: str, metric: str) -> int:
    """What counts as used of a key's limit by this metric, whatever its window."""
    (listed,) = [
        key for key in json.loads(await fleet.command("keys", "list", "--json")) if key["name"] == name
    ]
    bus = await Bus.connect(BusOptions(servers=fleet.nats.url, name="test"))
    try:
        account = await Ledger(Bucket(bus, QUOTA)).look(f"client.{listed['id']}")
    finally:
        await bus.close()
    return sum(cell.used for key, cells in account.cells.items() if f"|{metric}/" in key for cell in cells)


async def test_a_key_counts_everywhere(fleet: Fleet) -> None:
    """A key of the command is let in by all three; revoked, by none; a later ingress knows too."""
    ingresses = await three(fleet)
    key = await fleet.command("keys", "create", "--name", "alice", "--model", "model")
    await until_all_say(ingresses, key, 200)
    assert [(await ask(ingress, key)).status_code for ingress in ingresses] == [200] * 3
    late = await fleet.ingress()
    headers = {"authorization": f"Bearer {key}"}
    assert (await late.client.get("/v1/models", headers=headers)).status_code == 200, "known from the start"
    await fleet.command("keys", "revoke", "alice")
    await until_all_say([*ingresses, late], key, 401)
    assert "alice" not in await fleet.command("keys", "list")


@pytest.mark.parametrize("killed", [False, True], ids=["all-live", "one-killed"])
async def test_a_burst_gets_the_limit_and_no_more(
    fleet: Fleet, provider: FakeProvider, *, killed: bool
) -> None:
    """Of ten times the limit at once, over three ingresses, just the limit goes through, if one dies too."""
    ingresses = await three(fleet)
    keys = {}
    for name, window in (("minute", "m"), ("day", "d")):
        rate = f"{LIMIT}/{window}"
        keys[name] = await fleet.command("keys", "create", "--name", name, "--requests", rate)
        await until_all_say(ingresses, keys[name], 200)
    names = [name for _ in range(10 * LIMIT) for name in keys]
    asked = [
        asyncio.create_task(ask(ingresses[number // 2 % 3], keys[name])) for number, name in enumerate(names)
    ]
    if killed:
        await until(lambda: provider.chats)
        await ingresses[2].kill()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    let_through = 0
    for name, code in (("minute", "rate_limit_exceeded"), ("day", "insufficient_quota")):
        answers = [end for of, end in zip(names, ended, strict=True) if of == name]
        heard = [answer for answer in answers if not isinstance(answer, BaseException)]
        good = [answer for answer in heard if answer.status_code == 200]
        refused = [answer for answer in heard if answer not in good]
        assert {answer.status_code for answer in refused} == {429}
        assert {answer.json()["error"]["code"] for answer in refused} == {code}
        assert await used(fleet, name, "requests") == LIMIT
        let_through += len(good)
        if not killed:
            assert (len(good), len(heard)) == (LIMIT, 10 * LIMIT)
        for ingress in ingresses[:2]:
            await refuses_openais_client(ingress, keys[name], code)
    assert let_through <= len(provider.chats) <= 2 * LIMIT
    if not killed:
        assert len(provider.chats) == 2 * LIMIT


async def refuses_openais_client(ingress: Ingress, key: str, code: str) -> None:
    """OpenAI's own client raises what its users expect."""
    async with openai.AsyncOpenAI(base_url=f"{ingress.url}/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(
                model="model", messages=[{"role": "user", "content": "Count to ten."}]
            )
    assert caught.value.code == code


async def test_a_budget_stops_at_its_amount(fleet: Fleet, provider: FakeProvider) -> None:
    """Clients of all three that ask until it is spent spend no more, and hardly less."""
    ingresses = await three(fleet)
    budget = 20 * COST + COST // 2
    key = await fleet.command("keys", "create", "--name", "purse", "--budget", f"{budget / 1e6:.6f}/total")
    await until_all_say(ingresses, key, 200)

    async def spend(ingress: Ingress) -> int:
        count = 0
        while True:
            answer = await ask(ingress, key)
            if answer.status_code == 429 and answer.json()["error"]["code"] == "insufficient_quota":
                return count
            if answer.status_code == 429:
                await asyncio.sleep(POLL_S)  # what requests under way hold comes back with their end
                continue
            assert answer.status_code == 200
            count += 1

    counts = await asyncio.gather(*(spend(ingress) for ingress in ingresses for _ in range(2)))
    assert len(provider.chats) == sum(counts)

    async def settled() -> bool:
        return await used(fleet, "purse", "cost") == sum(counts) * COST

    await until_it_is(settled)
    reserved_at_most = 60 * 100 + 10 * 1000
    assert budget - reserved_at_most < sum(counts) * COST <= budget
    assert {(await ask(ingress, key)).json()["error"]["code"] for ingress in ingresses} == {
        "insufficient_quota"
    }
