"""Keys with limits, at one ingress: what counts, what a client is told, what is refused."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest

from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.scripted import ScriptedBackend, chunk, says
from fakes.stack import ASK, Stack
from tierfall.errors import BackendFault
from tierfall.keys import KeyStore, ledger_limits
from tierfall.ledger import Metric

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tierfall.ledger import Limit

TEXT = """
server:
  api_keys:
    - {key: sk-free, name: free}
    - {key: sk-requests, name: requests, limits: {requests: [3/m, 100/d]}}
    - {key: sk-day, name: day, limits: {requests: [2/d], timezone: Asia/Tokyo}}
    - {key: sk-tokens, name: tokens, limits: {tokens: [60/m, 1000/d]}}
    - {key: sk-budget, name: budget, limits: {budget: [0.00035/total]}}
tiers:
  one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}
  two: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}
models:
  first: {tier: one, backend_model: tiny, price: {prompt: 10, completion: 20}, fallbacks: [second]}
  second: {tier: two, backend_model: tiny}
"""
COST = 3 * 10 + 2 * 20
"""Of one scripted answer, in millionths."""


class Limited(Stack):
    """A gateway with JetStream and two scripted tiers."""

    def __init__(self, nats: NatsServer, text: str = TEXT) -> None:
        self.one, self.two = ScriptedBackend(), ScriptedBackend()
        super().__init__(text, {"one": self.one, "two": self.two}, nats=nats)

    async def ask(self, key: str, **fields: Any) -> httpx.Response:
        """One request with a key."""
        headers = {"authorization": f"Bearer {key}"}
        return await self.client.post("/v1/chat/completions", json={**ASK, **fields}, headers=headers)

    def limit(self, name: str, metric: Metric) -> Limit:
        """The first limit of a key by this metric."""
        key = next(key for key in self.config.server.api_keys if key.name == name)
        return next(limit for limit in ledger_limits(key.limits) if limit.metric is metric)

    async def used(self, name: str, metric: Metric) -> int:
        """What counts as used by a key of the config, once nothing is left to be written."""
        ledger = self.services.cashier.ledger
        for teller in ledger._tellers.values():
            await teller.idle()
        account = await ledger.look(f"client.config.{name}")
        assert not account.open, "something is not settled"
        return sum(cell.used for cell in account.cells.get(self.limit(name, metric).key, ()))


@pytest.fixture
async def stack() -> AsyncIterator[Limited]:
    """The gateway, running."""
    nats = NatsServer(jetstream=True)
    async with nats, Limited(nats) as running:
        yield running


async def test_requests_by_the_minute(stack: Limited) -> None:
    """The fourth of three is refused with when to come back; each answer tells what is left."""
    for left in (2, 1, 0):
        answer = await stack.ask("sk-requests")
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-limit-tokens" not in answer.headers
    refused = await stack.ask("sk-requests")
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
    assert "the limit of 3 requests a minute is spent" in error["message"]
    assert 50 <= int(refused.headers["retry-after"]) <= 64
    assert "x-should-retry" not in refused.headers
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-tierfall-attempts" not in refused.headers
    assert refused.headers["x-request-id"]
    assert len(stack.one.asks) == 3
    metrics = (await stack.client.get("/metrics")).text
    assert 'tierfall_key_refusals_total{metric="requests",window="minute"} 1.0' in metrics


async def test_requests_by_the_day(stack: Limited) -> None:
    """A spent day is no matter of waiting: insufficient_quota, with the time until it is over there."""
    assert [(await stack.ask("sk-day")).status_code for _ in range(3)] == [200, 200, 429]
    refused = await stack.ask("sk-day")
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "2 requests a day is spent; it is reset at midnight (Asia/Tokyo), in " in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert 0 < int(refused.headers["retry-after"]) <= 86_400


async def test_a_key_without_limits_is_not_counted(stack: Limited) -> None:
    """It tells nothing of limits, and nothing is written for it."""
    answer = await stack.ask("sk-free")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert stack.services.cashier.ledger._tellers == {}


@pytest.mark.parametrize("streaming", [False, True])
async def test_tokens_are_counted_as_they_were(stack: Limited, *, streaming: bool) -> None:
    """However much was reserved, what counts in the end is what the backend counted."""
    for count in (1, 2, 3):
        answer = await stack.ask("sk-tokens", stream=streaming, max_tokens=20)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-tokens"] == "60"
        assert await stack.used("tokens", Metric.TOKENS) == 5 * count


async def test_an_answer_that_may_be_too_long_is_refused(stack: Limited) -> None:
    """What the client allows the answer to be has to fit; what can never fit says so."""
    never = await stack.ask("sk-tokens", max_tokens=100)
    assert never.status_code == 429
    assert never.json()["error"]["code"] == "rate_limit_exceeded"
    assert (
        "at once are above the limit of 60 tokens a minute; ask for less, or lower max_tokens"
        in (never.json()["error"]["message"])
    )
    assert never.headers["x-should-retry"] == "false"
    assert "retry-after" not in never.headers
    assert stack.one.asks == []
    assert (await stack.ask("sk-tokens", max_tokens=20)).status_code == 200


async def test_a_request_without_max_tokens_takes_what_is_left(stack: Limited) -> None:
    """An assumed length does not lock out whom the limit would do; the last one may go beyond it."""
    answers = []
    while (answer := await stack.ask("sk-tokens")).status_code == 200:
        answers.append(answer)
        await stack.used("tokens", Metric.TOKENS)
    prompt = 25  # as estimated of the body
    assert (60 - prompt) // 5 <= len(answers) <= 60 // 5
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(answer.headers["retry-after"]) > 1


async def test_what_is_under_way_is_waited_for_briefly(stack: Limited) -> None:
    """While another request holds what is left, the refusal says to come back at once, not tomorrow."""
    go_on = asyncio.Event()
    stack.one.scripts.append([chunk("Hel", role="assistant"), go_on, *says("lo")[1:]])
    first = asyncio.create_task(stack.ask("sk-tokens"))
    await until(lambda: stack.one.running)
    held = await stack.ask("sk-tokens")
    assert held.status_code == 429
    assert "held by requests under way" in held.json()["error"]["message"]
    assert (held.headers["retry-after"], "x-should-retry" in held.headers) == ("1", False)
    go_on.set()
    assert (await first).status_code == 200
    await stack.used("tokens", Metric.TOKENS)
    assert (await stack.ask("sk-tokens")).status_code == 200


async def test_a_budget_stops_at_its_amount(stack: Limited) -> None:
    """Money by the price of the model that answered; once it is spent nothing goes through any more."""
    count = 0
    while (refused := await stack.ask("sk-budget", max_tokens=2)).status_code == 200:
        count += 1
        assert await stack.used("budget", Metric.COST) == count * COST
    assert 350 - 230 < count * COST <= 350, "a request that may cost 230 is let through while it fits"
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert error["code"] == "insufficient_quota"
    assert "the limit of a cost of 0.00035 in total is spent (0.00" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert await stack.used("budget", Metric.COST) <= 350


async def test_a_fallback_costs_its_own_price(stack: Limited) -> None:
    """An answer of the free model after an escalation costs nothing."""
    stack.one.scripts.extend([[BackendFault("broken")], [BackendFault("broken")]])
    answer = await stack.ask("sk-budget", max_tokens=2)
    assert answer.headers["x-tierfall-tier"] == "two"
    assert await stack.used("budget", Metric.COST) == 0


async def test_a_failed_request_counts_as_a_request_and_no_tokens(stack: Limited) -> None:
    """Nobody could answer: the request was made, but nothing was got for it."""
    for backend in (stack.one, stack.two):
        backend.scripts.extend([[BackendFault("broken")], [BackendFault("broken")]] * 2)
    failed = await stack.ask("sk-tokens", max_tokens=5)
    assert failed.status_code == 502
    assert failed.headers["x-ratelimit-limit-tokens"] == "60"
    assert await stack.used("tokens", Metric.TOKENS) == 0
    assert (await stack.ask("sk-requests")).status_code == 502
    assert await stack.used("requests", Metric.REQUESTS) == 1


async def test_a_bad_request_does_not_count(stack: Limited) -> None:
    """What is refused before anything was tried is free."""
    bad: list[dict[str, Any]] = [{"model": "nope"}, {"messages": []}, {"n": 0}]
    for fields in bad:
        assert (await stack.ask("sk-requests", **fields)).status_code in {400, 404}
    assert (await stack.ask("sk-requests")).headers["x-ratelimit-remaining-requests"] == "2"


async def test_a_client_that_hangs_up_pays_for_what_it_got(stack: Limited) -> None:
    """Hanging up before the end is not free: the pieces that were sent are counted, and the prompt."""
    go_on = asyncio.Event()
    stack.one.scripts.append([chunk("1", role="assistant"), *map(chunk, "2345"), go_on])
    headers = {"authorization": "Bearer sk-tokens"}
    body = {**ASK, "stream": True, "max_tokens": 20}
    async with stack.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        lines = response.aiter_lines()
        seen = ""
        while '"5"' not in seen:
            seen = await anext(lines)
    await until(lambda: stack.services.meters.in_flight == 0)
    await until(lambda: not stack.services.switchboard.counts._open)
    used = await stack.used("tokens", Metric.TOKENS)
    assert 5 + 20 <= used <= 5 + 30


async def test_a_client_that_leaves_the_line_pays_nothing() -> None:
    """No worker had its request: it counts as one, and no token was generated."""
    text = TEXT.replace("/v1'}", "/v1', max_in_flight: 1}").replace(", fallbacks: [second]", "")
    nats = NatsServer(jetstream=True)
    async with nats, Limited(nats, text) as stack:
        go_on = asyncio.Event()
        stack.one.scripts.append([go_on, *says("x")])
        held = asyncio.create_task(stack.ask("sk-free"))
        await until(lambda: stack.one.running == 1)
        waiting = asyncio.create_task(stack.ask("sk-tokens", max_tokens=20))
        await until(lambda: len(stack.services.rooms["one"]) == 1)
        waiting.cancel()
        await until(lambda: stack.services.meters.in_flight == 1)
        assert await stack.used("tokens", Metric.TOKENS) == 0
        go_on.set()
        assert (await held).status_code == 200
        assert len(stack.one.asks) == 1


@pytest.mark.parametrize("path", ["embeddings", "completions"])
async def test_every_operation_counts(stack: Limited, path: str) -> None:
    """Embeddings and completions are limited as chats are, by what the backend counted."""
    body = {"model": "first", "input": "hello", "prompt": "hello"}
    headers = {"authorization": "Bearer sk-tokens"}
    answer = await stack.client.post(f"/v1/{path}", json=body, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "60"
    assert await stack.used("tokens", Metric.TOKENS) == answer.json()["usage"]["total_tokens"]
    headers = {"authorization": "Bearer sk-requests"}
    asked = [await stack.client.post(f"/v1/{path}", json=body, headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in asked] == [200, 200, 200, 429]


async def test_stored_keys_are_limited_alike(stack: Limited) -> None:
    """A key of the bucket with limits is counted under its own id."""
    stack.services.apply(stack.parse(TEXT.replace("server:", "server:\n  stored_keys: true", 1)))
    limits = stack.config.server.api_keys[1].limits
    key = await KeyStore(stack.services.bus).create("alice", None, limits)
    stored = stack.services.stored
    assert stored is not None
    await until(lambda: len(stored) == 1)
    assert [(await stack.ask(key)).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert (await stack.ask("sk-requests")).status_code == 200


async def test_a_restart_forgets_nothing(stack: Limited) -> None:
    """What was used is known after the server was killed, and to an ingress that comes later."""
    assert [(await stack.ask("sk-requests")).status_code for _ in range(2)] == [200, 200]
    await stack.nats.restart()
    await until(lambda: stack.services.bus.connected)
    await until(lambda: stack.state("one") == "up")
    async with Limited(stack.nats) as other:
        assert (await other.ask("sk-requests")).status_code == 200
        assert (await other.ask("sk-requests")).status_code == 429
        assert (await stack.ask("sk-requests")).status_code == 429


async def test_without_jetstream_a_limited_key_is_told_so() -> None:
    """Nobody can say what is left, so nothing goes: 503 with the reason; a key without limits is answered."""
    nats = NatsServer()
    async with nats, Limited(nats) as stack:
        refused = await stack.ask("sk-requests")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert "limits of this API key cannot be checked" in refused.json()["error"]["message"]
        assert "NATS has no JetStream" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        assert stack.one.asks == []
        assert (await stack.ask("sk-free")).status_code == 200


async def test_without_jetstream_the_next_request_is_refused_at_once() -> None:
    """That there is none is known for some seconds: neither this key nor another one waits for it."""
    nats = NatsServer()
    async with nats, Limited(nats) as stack:
        await stack.ask("sk-requests")
        ledger = stack.services.cashier.ledger
        tried = [teller._number for teller in ledger._tellers.values()]
        for key in ("sk-requests", "sk-day", "sk-tokens", "sk-requests"):
            ledger.outage._next_try = float("inf")
            assert (await stack.ask(key)).status_code == 503
        assert [teller._number for teller in ledger._tellers.values()][:1] == tried
        nats._jetstream = True
        await nats.restart()
        ledger.outage._next_try = 0.0  # some seconds later
        await until(lambda: stack.services.store.report()["state"] == "ok", timeout_s=15)
        await until(lambda: stack.state("one") == "up")
        assert (await stack.ask("sk-requests")).status_code == 200


async def test_a_day_is_the_one_that_nats_is_in(stack: Limited, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock jumps days ahead, and back, neither opens a spent day nor closes an open one."""
    assert [(await stack.ask("sk-day")).status_code for _ in range(3)] == [200, 200, 429]
    real = time.time
    for days in (1, 40, -1, -400, 0):
        monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86_400.0)
        assert [(await stack.ask("sk-day")).status_code for _ in range(3)] == [429, 429, 429]
        left = (await stack.ask("sk-requests")).headers["x-ratelimit-remaining-requests"]
        assert int(left) <= 2


async def test_the_official_client_sees_rate_limit_errors(stack: Limited) -> None:
    """OpenAI's own client raises RateLimitError, with the code, and does not try in vain."""
    client = openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="sk-day", max_retries=2)
    async with client:
        for _ in range(2):
            raw = await client.chat.completions.with_raw_response.create(
                model="first", messages=[{"role": "user", "content": "Hi."}]
            )
            assert raw.headers["x-ratelimit-limit-requests"] == "2"
        before = await stack.used("day", Metric.REQUESTS)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="first", messages=[{"role": "user", "content": "Hi."}])
        assert caught.value.code == "insufficient_quota"
        assert await stack.used("day", Metric.REQUESTS) == before == 2
    metrics = (await stack.client.get("/metrics")).text
    assert 'tierfall_key_refusals_total{metric="requests",window="day"} 1.0' in metrics
