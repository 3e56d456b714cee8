"""What a key with a limit of tokens is charged when its client tries to pay less."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.scripted import ScriptedBackend, chunk
from fakes.stack import ASK, Stack
from tierfall.keys import ledger_limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

DAY = 100
"""Tokens that the key may use."""
MORE = 100_000
"""Tokens that the other key may use."""
PROMPT_LIMIT = 40
"""More than the prompt here is taken for."""
TEXT = f"""
server:
  api_keys:
    - {{key: sk-day, name: day, limits: {{tokens: [{DAY}/d]}}}}
    - {{key: sk-free, name: free}}
    - {{key: sk-more, name: more, limits: {{tokens: [{MORE}/d]}}}}
tiers:
  one: {{worker: vllm, base_url: 'http://127.0.0.1:1/v1'}}
models:
  first: {{tier: one, backend_model: tiny}}
  brisk: {{tier: one, backend_model: tiny, deadlines: {{idle: 500ms}}}}
"""


class Till(Stack):
    """A gateway with JetStream and one scripted tier."""

    def __init__(self, nats: NatsServer) -> None:
        self.one = ScriptedBackend()
        super().__init__(TEXT, {"one": self.one}, nats=nats)

    async def ask(self, key: str = "sk-day", path: str = "chat/completions", **fields: Any) -> httpx.Response:
        """One request with a key."""
        headers = {"authorization": f"Bearer {key}"}
        body = {**ASK, **fields} if path.startswith("chat") else {"model": "first", "prompt": "x", **fields}
        return await self.client.post(f"/v1/{path}", json=body, headers=headers)

    async def used(self, key: int = 0) -> int:
        """The tokens that are counted for a key, once nothing is left to be written."""
        ledger = self.services.cashier.ledger
        for teller in ledger._tellers.values():
            await teller.idle()
        found = self.config.server.api_keys[key]
        account = await ledger.look(f"client.config.{found.name}")
        assert not account.open, "something is not settled"
        limit = ledger_limits(found.limits)[0]
        return sum(cell.used for cell in account.cells.get(limit.key, ()))

    async def hang_up(self, until_seen: str, **fields: Any) -> None:
        """One streamed request with the other key, whose client reads until it sees this, and is gone."""
        headers = {"authorization": "Bearer sk-more"}
        body = {**ASK, "stream": True, **fields}
        async with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            lines = response.aiter_lines()
            while until_seen not in await anext(lines):
                pass
        await until(lambda: self.services.meters.in_flight == 0)

    async def settled(self) -> int:
        """What the other key is charged, once nothing is reserved."""
        ledger = self.services.cashier.ledger
        scope = "client.config.more"
        while True:
            for teller in ledger._tellers.values():
                await teller.idle()
            if not (await ledger.look(scope)).open:
                return await self.used(2)
            await asyncio.sleep(0.02)


@pytest.fixture
async def till() -> AsyncIterator[Till]:
    """The gateway, running."""
    nats = NatsServer(jetstream=True)
    async with nats, Till(nats) as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 3000}, "max_tokens"),
        ({"max_tokens": 1, "n_predict": 3000}, "max_tokens"),
        ({"max_tokens": 1, "options": {"num_predict": 3000}}, "max_tokens"),
        ({"max_tokens": "3000"}, "max_tokens"),
        ({"max_tokens": 1, "max_length": 3000}, "max_length"),
        ({"max_tokens": 1, "n_cmpl": 100}, "n_cmpl"),
        ({"max_tokens": 1, "Max_Tokens": 3000}, "Max_Tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
    ],
    ids=range(8),
)
async def test_a_second_limit_gets_nothing_past_the_first(
    till: Till, fields: dict[str, Any], param: str
) -> None:
    """Twenty at once: each is a 400 that names the field, no backend hears of one, nothing is counted."""
    for answer in await asyncio.gather(*(till.ask(**fields) for _ in range(20))):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    assert till.one.asks == []
    assert await till.used() == 0


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"max_completion_tokens": 3000}),
        ("chat/completions", {"n_predict": 3000}),
        ("chat/completions", {"options": {"num_predict": 3000}}),
        ("chat/completions", {"max_tokens": 3000.0}),
        ("chat/completions", {"max_tokens": 3, "n": 100}),
        ("completions", {"max_tokens": 3, "best_of": 100, "n": 1}),
        ("completions", {"max_tokens": 3, "prompt": ["x"] * 50}),
    ],
    ids=range(7),
)
async def test_every_name_of_the_limit_counts(till: Till, path: str, fields: dict[str, Any]) -> None:
    """What an engine would make of it does not fit the key: 429."""
    answer = await till.ask(path=path, **fields)
    assert answer.status_code == 429, answer.text
    assert "at once are above the limit of 100 tokens a day" in answer.json()["error"]["message"]
    assert till.one.asks == []


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"max_tokens": 7, "max_completion_tokens": 7}, {"max_tokens": b"7"}),
        ({"max_completion_tokens": 7.0}, {"max_completion_tokens": b"7"}),
        ({"n_predict": 7}, {"max_tokens": b"7"}),
        ({"max_tokens": -1}, {}),
    ],
    ids=range(4),
)
async def test_one_limit_reaches_the_backend(
    till: Till, fields: dict[str, Any], sent: dict[str, bytes]
) -> None:
    """As an integer, under one name; so for keys without limits, too."""
    for key in ("sk-day", "sk-free"):
        assert (await till.ask(key, **fields)).status_code == 200
        body = till.one.asks[-1].body
        names = ("max_tokens", "max_completion_tokens", "n_predict")
        assert {name: bytes(body[name]) for name in names if name in body} == sent


async def test_a_hostile_body_is_refused_the_same_with_limits_and_without(till: Till) -> None:
    """Millions of values are a 400 that names the bound; nothing of them reaches a backend or the ledger."""
    body = json.dumps(ASK).encode()[:-1] + b', "x": [' + b'{"":1},' * 1_500_000 + b"1]}"
    for key in ("sk-day", "sk-free"):
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        answer = await till.client.post("/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code == 400
        assert "1000000 commas and brackets" in answer.json()["error"]["message"]
    assert till.one.asks == []
    assert await till.used() == 0


TOKENS = 2000
USAGE = {"prompt_tokens": 11, "completion_tokens": TOKENS, "total_tokens": 11 + TOKENS}


def pieces(size: int) -> list[bytes]:
    """An answer of :data:`TOKENS` tokens, so many a chunk."""
    return [chunk("", role="assistant"), *[chunk("four" * size)] * (TOKENS // size)]


@pytest.mark.parametrize("size", [1, 20, 200, 2000])
async def test_hanging_up_at_the_end_saves_nothing(till: Till, size: int) -> None:
    """The usage is waited for, although the client is gone: it pays exactly what the backend counted."""
    tell = asyncio.Event()
    usage = json.dumps({"choices": [], "usage": USAGE}).encode()
    till.one.scripts.append([*pieces(size), chunk(finish="stop"), tell, usage])
    await till.hang_up('"stop"')
    assert till.one.running == 1
    tell.set()
    assert await till.settled() == 11 + TOKENS
    await until(lambda: till.one.running == 0)


@pytest.mark.parametrize("size", [1, 20, 200, 2000])
async def test_usage_that_never_comes_saves_nothing(till: Till, size: int) -> None:
    """Then the answer is counted by its chunks and its bytes, whatever the size of its pieces."""
    till.one.scripts.append([*pieces(size), chunk(finish="stop"), asyncio.Event()])
    await till.hang_up('"stop"', model="brisk")
    assert TOKENS <= await till.settled() <= TOKENS * 1.01 + PROMPT_LIMIT
    await until(lambda: till.one.running == 0)


@pytest.mark.parametrize("size", [1, 20, 200, 2000])
async def test_hanging_up_in_the_middle_costs_what_was_generated(till: Till, size: int) -> None:
    """The backend stops at once, and the worker says how far it came."""
    till.one.scripts.append([*pieces(size), chunk("THE LAST"), asyncio.Event()])
    await till.hang_up("THE LAST")
    assert TOKENS <= await till.settled() <= TOKENS * 1.01 + PROMPT_LIMIT
    await until(lambda: till.one.running == 0)


async def test_a_client_that_leaves_a_whole_answer_pays_for_what_there_is_of_it(till: Till) -> None:
    """Nothing of it was sent: only the worker knows how much there is."""
    headers = {"authorization": "Bearer sk-more"}
    till.one.scripts.append([*pieces(200), asyncio.Event()])
    asking = asyncio.create_task(
        till.client.post("/v1/chat/completions", json={**ASK, "max_tokens": 60_000}, headers=headers)
    )
    lines = till.services.switchboard._lines
    await until(lambda: any(line.first_output_at for line in lines.values()))
    asking.cancel()
    assert TOKENS <= await till.settled() <= TOKENS * 1.01 + PROMPT_LIMIT
    await until(lambda: till.one.running == 0)


async def test_a_worker_that_dies_with_its_count_leaves_the_estimate(till: Till) -> None:
    """What the client got is counted, once, and nothing stays reserved."""
    till.one.scripts.append([*pieces(20), chunk("THE LAST"), asyncio.Event()])
    headers = {"authorization": "Bearer sk-more"}
    body = {**ASK, "stream": True}
    async with till.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        lines = response.aiter_lines()
        while "THE LAST" not in await anext(lines):
            pass
        await till.kill_worker("one-0")
    assert TOKENS <= await till.settled() <= TOKENS * 1.01 + PROMPT_LIMIT
