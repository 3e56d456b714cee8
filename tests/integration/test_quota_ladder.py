"""Quotas as clients see them: a spent model, a spent tier inside a ladder, what is left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from fakes.behaviour import Answer, error_body
from fakes.faults import Status
from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.scrape import Page
from fakes.scripted import ScriptedBackend
from fakes.stack import Stack
from tierfall_worker_cloud.main import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIG = """
server: {KEYS}
tiers:
  sky: {worker: cloud, provider: mine, base_url: 'URL', api_key: '${K1}'}
  own: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}
models:
  first: {tier: sky, backend_model: one, quota: {requests: [2/d, 50/m]}, fallbacks: [last]}
  only: {tier: sky, backend_model: two, quota: {requests: [1/d]}, deadlines: {first_token: 20s}}
  minute: {tier: sky, backend_model: three, quota: {requests: [1/m]}, deadlines: {first_token: 5s}}
  free: {tier: sky, backend_model: four}
  last: {tier: own, backend_model: own}
"""


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    """A nats-server with JetStream."""
    async with NatsServer(jetstream=True) as server:
        yield server


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """The provider of tier ``sky``."""
    async with FakeProvider() as running:
        yield running


def stack_of(provider: FakeProvider, nats: NatsServer, keys: str = "api_keys: []") -> Stack:
    """A gateway with a cloud worker and a tier of one's own."""
    text = CONFIG.replace("URL", provider.base_url).replace("KEYS", keys)
    environ = {"K1": "sk-1"}
    return Stack(text, {"own": ScriptedBackend()}, builds={"cloud": build}, environ=environ, nats=nats)


@pytest.fixture
async def stack(provider: FakeProvider, nats_server: NatsServer) -> AsyncIterator[Stack]:
    """The gateway, running."""
    async with stack_of(provider, nats_server) as running:
        yield running


async def spend(stack: Stack, model: str, times: int = 1) -> None:
    """Uses a model's quota up, and waits until the ingress has heard."""
    for _ in range(times):
        assert (await stack.chat(model=model)).status_code == 200
    await until(lambda: stack.services.quotas.spent(model) is not None)


async def test_a_spent_model_is_a_429_that_says_all(stack: Stack, provider: FakeProvider) -> None:
    """Which window, until when, and that trying again is in vain; neither worker nor provider hear of it."""
    await spend(stack, "only")
    answer = await stack.chat(model="only")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (429, *["insufficient_quota"] * 2)
    assert "1 request a day for two is spent; it is reset at midnight (UTC), in " in error["message"]
    assert 0 < int(answer.headers["retry-after"]) <= 86_400
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-tierfall-attempts"] == "sky=quota_exhausted"
    assert len(provider.chats) == 1


async def test_the_sdk_does_not_hammer(stack: Stack) -> None:
    """The official client raises at once, instead of trying twice more."""
    await spend(stack, "only")
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", http_client=None) as client:
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(model="only", messages=[{"role": "user", "content": "x"}])
    assert limited.value.code == "insufficient_quota"
    page = await Page.get(stack.client)
    assert page("tierfall_requests_total", model="only", operation="chat", status="429") == 1


async def test_a_spent_minute_is_worth_another_try(stack: Stack) -> None:
    """A minute that has no room within the deadline is a rate limit, with the time at which it has."""
    await spend(stack, "minute")
    answer = await stack.chat(model="minute")
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert 50 < int(answer.headers["retry-after"]) <= 64
    assert "x-should-retry" not in answer.headers


async def test_a_limit_that_was_waited_out_in_vain(stack: Stack, provider: FakeProvider) -> None:
    """A 429 is waited for, and then the quota is spent: the client hears of the quota, not of the seconds."""
    spent = error_body("pay", "insufficient_quota", "insufficient_quota")
    provider.plan(Status(429, retry_after=0.3), Status(429, body=spent))
    answer = await stack.chat(model="free")
    assert answer.headers["x-tierfall-attempts"] == "sky=rate_limited;sky=quota_exhausted"
    assert answer.json()["error"]["code"] == "insufficient_quota"
    assert answer.headers["x-should-retry"] == "false"


async def test_a_spent_tier_is_skipped(stack: Stack, provider: FakeProvider) -> None:
    """Inside a ladder the next tier answers, and the story says why."""
    await spend(stack, "first", 2)
    answer = await stack.chat(model="first")
    assert answer.status_code == 200
    assert answer.json()["model"] == "last"
    assert answer.headers["x-tierfall-attempts"] == "sky=quota_exhausted;own=ok"
    assert len(provider.chats) == 2


async def test_the_worker_decides_before_the_ingress_has_heard(stack: Stack, provider: FakeProvider) -> None:
    """An ingress whose view is late sends a request too many, and the worker turns it down."""
    stack.services.quotas._accounts = _Blind()
    for _ in range(2):
        await stack.chat(model="first")
    answer = await stack.chat(model="first")
    assert answer.headers["x-tierfall-attempts"] == "sky=quota_exhausted;own=ok"
    assert len(provider.chats) == 2


class _Blind(dict[str, Any]):
    def __setitem__(self, *_: object) -> None:
        """Takes nothing in."""


async def test_a_spent_rung_is_no_place_to_go(stack: Stack, provider: FakeProvider) -> None:
    """The last tier that has quota is not cut by its first-token deadline."""
    await spend(stack, "only")
    text = stack.text.replace("fallbacks: [last]", "fallbacks: [only], deadlines: {first_token: 100ms}")
    stack.services.apply(stack.parse(text))
    provider.plan(Answer(first_token_s=0.5))
    answer = await stack.chat(model="first")
    assert answer.headers["x-tierfall-attempts"] == "sky=ok"


async def test_quotas_are_listed(stack: Stack) -> None:
    """``GET /v1/quotas`` tells of each model with a quota what is used, what is left and when it is reset."""
    await spend(stack, "only")
    told = (await stack.client.get("/v1/quotas")).json()
    assert told["problem"] is None
    by_model = {each["model"]: each for each in told["data"]}
    assert list(by_model) == ["first", "only", "minute"]
    assert not by_model["first"]["spent"]
    only = by_model["only"]
    assert (only["tier"], only["spent"], only["keys"][0]["key"]) == ("sky", True, "K1")
    window = only["keys"][0]["windows"][0]
    assert window.pop("resets_at").endswith("T00:00:00Z")
    assert window == {
        "metric": "requests", "window": "day", "of": "two", "limit": 1, "used": 1, "left": 0
    }  # fmt: skip
    assert only["keys"][0]["retry_after"] <= 86_400
    listed = (await stack.client.get("/v1/models/only")).json()
    assert listed["available"] is False


async def test_keys_see_the_quotas_of_their_models(provider: FakeProvider, nats_server: NatsServer) -> None:
    """Who may not use a model is not told of its quota, and who has no key of nothing."""
    keys = "api_keys: [{key: sk-a, name: a, models: [only]}]"
    async with stack_of(provider, nats_server, keys) as stack:
        told = await stack.client.get("/v1/quotas", headers={"authorization": "Bearer sk-a"})
        assert [each["model"] for each in told.json()["data"]] == ["only"]
        assert (await stack.client.get("/v1/quotas")).status_code == 401


async def test_quotas_are_metrics(stack: Stack) -> None:
    """Limit, use and reset of each window of each key, for dashboards and alerts."""
    await spend(stack, "first", 2)
    page = await Page.get(stack.client)
    labels = {"tier": "sky", "key": "K1", "model": "one", "metric": "requests", "window": "day"}
    assert page("tierfall_quota_limit", **labels) == 2
    assert page("tierfall_quota_used", **labels) == 2
    assert (page("tierfall_quota_resets_at_seconds", **labels) or 1) % 86_400 == 0


async def test_a_reload_changes_the_quota(stack: Stack, provider: FakeProvider) -> None:
    """A higher limit counts on from what is used, in ingress and worker."""
    await spend(stack, "only")
    config = stack.parse(stack.text.replace("requests: [1/d]", "requests: [3/d]"))
    stack.services.apply(config)
    for process in stack.workers.values():
        await process.apply(config)
    await until(lambda: stack.state("sky") == "up")
    assert [(await stack.chat(model="only")).status_code for _ in range(3)] == [200, 200, 429]
    assert len(provider.chats) == 3


async def test_a_model_without_a_quota_asks_nobody(stack: Stack, provider: FakeProvider) -> None:
    """Not one message goes to the ledger for it, whatever the provider says."""
    provider.plan(Status(429, retry_after=0.3), Answer(headers={"x-ratelimit-remaining-requests": "0"}))
    before = await _writes(stack)
    for _ in range(3):
        assert (await stack.chat(model="free")).status_code == 200
    assert await _writes(stack) == before


async def _writes(stack: Stack) -> int:
    """How often the bucket was written."""
    found = await stack.services.bus.request("$JS.API.STREAM.INFO.KV_tierfall_quota", b"", timeout_s=5)
    return int(json.loads(found.data)["state"]["last_seq"])
