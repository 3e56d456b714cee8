"""The cloud worker's quotas, with a provider over real sockets and the ledger in a real nats-server."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.behaviour import Answer, error_body
from fakes.faults import CutAfter, Status
from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.provider import FakeProvider
from tierfall.config import parse
from tierfall.errors import (
    BackendDown,
    InvalidRequest,
    ProviderRefused,
    QuotaExhausted,
    QuotaUnknown,
    RateLimited,
    StreamBroken,
)
from tierfall.ledger import Account, unpack_account
from tierfall.quota import plans, standing_of
from tierfall.store import QUOTA, Bucket
from tierfall.worker import Ask, Progress
from tierfall_worker_cloud.main import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.behaviour import Behaviour
    from fakes.buses import Buses
    from tierfall.bus import Bus
    from tierfall.config import Config
    from tierfall_worker_cloud import CloudBackend

CONFIG = """
tiers: {sky: {worker: cloud, provider: PROVIDER, base_url: 'URL', KEYS, quota: {TIER}}}
models:
  a: {tier: sky, backend_model: one, quota: {MODEL}}
  b: {tier: sky, backend_model: two, deadlines: {first_token: 2500ms}}
"""
ENVIRON = {"K1": "sk-1", "K2": "sk-2"}
MIDNIGHT = 86_400


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    """A nats-server with JetStream."""
    async with NatsServer(jetstream=True) as server:
        yield server


@pytest.fixture
async def bus(bus_factory: Buses) -> Bus:
    """A connected bus, with the bucket made."""
    found = await bus_factory()
    await Bucket.open(found, QUOTA)
    return found


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider that takes any key."""
    async with FakeProvider() as running:
        yield running


class Tier:
    """One cloud tier: its config, its backend, and how its quotas stand."""

    def __init__(self, bus: Bus, provider: FakeProvider) -> None:
        self._bus = bus
        self._provider = provider
        self._backends: list[CloudBackend] = []
        self.config: Config

    def open(
        self, model: str = "", tier: str = "", *, keys: str = "api_key: ${K1}", provider: str = "mine"
    ) -> CloudBackend:
        """A backend with these quotas; a second call makes another replica."""
        text = CONFIG.replace("PROVIDER", provider).replace("URL", self._provider.base_url)
        text = text.replace("KEYS", keys.replace("${", "'${").replace("}", "}'"))
        text = text.replace("{TIER}", f"{{{tier}}}").replace("{MODEL}", f"{{{model}}}")
        self.config = parse(text, ENVIRON, "test.yaml")
        backend = build("sky", self.config.tiers["sky"], self.config, self._bus)
        self._backends.append(backend)
        return backend

    async def used(self, metric: str, window: str, key: int = 0, model: str = "a") -> int:
        """What the ledger says is used of one limit."""
        plan = plans(self.config)[model]
        entry = await Bucket(self._bus, QUOTA).get(plan.scopes[key])
        account = unpack_account(entry.value) if entry else Account()
        standing = standing_of(plan, {plan.scopes[key]: account}, time.time())
        found = standing.keys[key].windows
        return next(each.used for each in found if (each.metric, each.window) == (metric, window))

    async def close(self) -> None:
        """Closes all backends."""
        for backend in self._backends:
            await backend.close()

    @property
    def keys_used(self) -> list[str]:
        """The keys of the chats that the provider has seen."""
        return [seen.headers["authorization"].removeprefix("Bearer ") for seen in self._provider.chats]


@pytest.fixture
async def tier(bus: Bus, provider: FakeProvider) -> AsyncIterator[Tier]:
    """A tier that is closed at the end."""
    found = Tier(bus, provider)
    yield found
    await found.close()


def ask(model: str = "a", **members: Any) -> Ask:
    """A request as the runtime hands it over."""
    found = {"model": model, "messages": [{"role": "user", "content": "hi there"}], **members}
    body = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in found.items()}
    return Ask(request_id="r", model=model, backend_model={"a": "one", "b": "two"}[model], body=body)


async def chat(backend: CloudBackend, model: str = "a", **members: Any) -> list[Any]:
    """All that comes of one chat."""
    return [item async for item in backend.chat(ask(model, **members))]


async def burst(backend: CloudBackend, count: int) -> list[BaseException]:
    """So many chats at once; what went wrong."""
    found = await asyncio.gather(*(chat(backend) for _ in range(count)), return_exceptions=True)
    return [each for each in found if isinstance(each, BaseException)]


async def test_the_provider_sees_the_limit(tier: Tier, provider: FakeProvider) -> None:
    """Of ten times the limit at once, over two workers, the provider sees the limit and not one more."""
    one, two = tier.open("requests: [7/d]"), tier.open("requests: [7/d]")
    refused = [*await burst(one, 35), *await burst(two, 35)]
    assert len(provider.chats) == 7
    assert len(refused) == 63
    assert all(isinstance(error, QuotaExhausted) for error in refused)


async def test_a_spent_day_says_which_window_and_when(tier: Tier) -> None:
    """The refusal names the limit, the model and the reset, and when to come back: at midnight."""
    backend = tier.open("requests: [1/d, 30/m]")
    await chat(backend)
    with pytest.raises(
        QuotaExhausted, match=r"1 request a day for one is spent; .* midnight \(UTC\)"
    ) as spent:
        await chat(backend)
    assert spent.value.should_retry is False
    assert spent.value.retry_after is not None
    assert 0 < spent.value.retry_after <= MIDNIGHT


async def test_a_spent_minute_is_a_rate_limit(tier: Tier) -> None:
    """The minute comes back soon: the ladder may wait for it."""
    backend = tier.open("requests: [100/d, 2/m]")
    assert all(isinstance(error, RateLimited) for error in await burst(backend, 5))
    assert await tier.used("requests", "day") == 2


async def test_the_tiers_quota_is_all_models_together(tier: Tier, provider: FakeProvider) -> None:
    """What the key may use as a whole holds over its models, besides each one's own."""
    backend = tier.open("requests: [2/d]", "requests: [3/d]")
    await chat(backend, "b")
    assert len(await burst(backend, 5)) == 3
    with pytest.raises(QuotaExhausted, match="3 requests a day is spent"):
        await chat(backend, "b")
    assert len(provider.chats) == 3


async def test_tokens_are_settled_by_the_real_usage(tier: Tier, provider: FakeProvider) -> None:
    """Reserved at their most, counted as the provider counted them."""
    backend = tier.open("tokens: [5000/d]")
    provider.plan(Answer("one two three four"))
    await chat(backend, max_tokens=3000)
    await backend.close()
    assert await tier.used("tokens", "day") == 2 + 4


async def test_tokens_under_way_count_at_their_most(tier: Tier, provider: FakeProvider) -> None:
    """Two requests that together could pass the limit do not go out together."""
    backend = tier.open("tokens: [5000/d]")
    provider.plan(Answer(first_token_s=30))
    async with aclosing(backend.chat(ask(max_tokens=3000))) as first:
        await anext(first)
        with pytest.raises(QuotaExhausted, match="tokens a day"):
            await chat(backend, max_tokens=3000)
    await chat(backend, max_tokens=3000)


async def test_a_request_above_the_limit_is_not_sent(tier: Tier, provider: FakeProvider) -> None:
    """Who asks for more tokens than a minute has is told so; who leaves the length open is let go."""
    backend = tier.open("tokens: [900/m]")
    with pytest.raises(QuotaExhausted, match="tokens at once are above the limit of 900 tokens a minute"):
        await chat(backend, max_tokens=4000)
    assert provider.chats == []
    await chat(backend)


@pytest.mark.parametrize(
    ("behaviour", "error", "requests", "tokens"),
    [
        (Status(400, body=error_body("no", "invalid_request_error")), InvalidRequest, 1, range(1)),
        (Status(401), ProviderRefused, 0, range(1)),
        (Status(429), RateLimited, 1, range(1)),
        (CutAfter(3), StreamBroken, 1, range(5, 60)),
    ],
)
async def test_what_a_failure_counts(
    tier: Tier,
    provider: FakeProvider,
    *,
    behaviour: Behaviour,
    error: type[Exception],
    requests: int,
    tokens: range,
) -> None:
    """A failed attempt counts when the provider would count it; tokens as far as any can have been used."""
    backend = tier.open("requests: [9/d], tokens: [90000/d]")
    provider.plan(behaviour)
    with pytest.raises(error):
        await chat(backend)
    await backend.close()
    assert await tier.used("requests", "day") == requests
    assert await tier.used("tokens", "day") in tokens


async def test_what_was_never_sent_counts_nothing(tier: Tier, provider: FakeProvider) -> None:
    """A provider that cannot be reached has counted nothing, and neither do we."""
    backend = tier.open("requests: [9/d], tokens: [90000/d]")
    await provider.refuse()
    with pytest.raises(BackendDown):
        await chat(backend)
    await backend.close()
    assert await tier.used("requests", "day") == 0
    assert await tier.used("tokens", "day") == 0


async def test_smoothing_queues_a_burst(tier: Tier, provider: FakeProvider) -> None:
    """Requests go one by one; those that wait say so, and arrive in the order of their turns."""
    backend = tier.open("smooth: 600/m")
    loop = asyncio.get_running_loop()
    began = loop.time()
    found = await asyncio.gather(*(chat(backend) for _ in range(4)))
    assert loop.time() - began >= 0.3, "four requests, 0.1 s apart"
    assert sum(Progress("queued") in items for items in found) == 3
    assert len(provider.chats) == 4


async def test_smoothing_refuses_who_would_come_too_late(tier: Tier, provider: FakeProvider) -> None:
    """A turn after the first-token deadline is refused at once, with the time at which it would come."""
    backend = tier.open(tier="smooth: 60/m")
    await chat(backend, "b")
    with pytest.raises(RateLimited, match="apart") as late:
        await chat(backend, "b")
    assert late.value.retry_after == pytest.approx(1.0, abs=0.5)
    assert len(provider.chats) == 1


async def test_who_leaves_the_queue_gives_its_turn_back(tier: Tier, provider: FakeProvider) -> None:
    """A client that hangs up while it waits for its turn has used nothing."""
    backend = tier.open("smooth: 6/m, requests: [9/d]")
    await chat(backend)
    async with aclosing(backend.chat(ask())) as waiting:
        assert await anext(waiting) == Progress("queued")
    await backend.close()
    assert await tier.used("requests", "day") == 1
    assert len(provider.chats) == 1


async def test_keys_go_round(tier: Tier) -> None:
    """Requests are spread over the keys, and each key's quota holds by itself."""
    backend = tier.open("requests: [2/d]", keys="api_keys: [${K1}, ${K2}]")
    for _ in range(4):
        await chat(backend)
    assert tier.keys_used == ["sk-1", "sk-2", "sk-1", "sk-2"]
    with pytest.raises(QuotaExhausted):
        await chat(backend)


async def test_a_spent_key_leaves_the_other(tier: Tier) -> None:
    """A key without quota is passed over; the request does not notice."""
    backend = tier.open("requests: [3/d]", keys="api_keys: [${K1}, ${K2}]")
    assert len(await burst(backend, 20)) == 14
    assert sorted(tier.keys_used) == ["sk-1"] * 3 + ["sk-2"] * 3


@pytest.mark.parametrize("quota", ["", "requests: [100/d]"], ids=["without", "with"])
@pytest.mark.parametrize(
    "behaviour",
    [
        Status(429, retry_after=30),
        Status(429, body=error_body("pay", "insufficient_quota", "insufficient_quota")),
        Status(401),
    ],
    ids=["429", "quota", "401"],
)
async def test_a_refused_key_sends_the_request_to_the_next(
    tier: Tier, provider: FakeProvider, behaviour: Behaviour, quota: str
) -> None:
    """What one key is refused another gets at once; and the refused one is left alone."""
    backend = tier.open(quota, keys="api_keys: [${K1}, ${K2}]")
    await backend.probe()
    provider.plan(behaviour)
    for _ in range(3):
        assert await chat(backend)
    assert tier.keys_used == ["sk-1", "sk-2", "sk-2", "sk-2"]


async def test_all_keys_refused_tell_of_the_first_to_be_free(tier: Tier, provider: FakeProvider) -> None:
    """When every key is limited, the client hears when the first of them may be asked again."""
    backend = tier.open(keys="api_keys: [${K1}, ${K2}]")
    provider.plan(Status(429, retry_after=50), Status(429, retry_after=20))
    with pytest.raises(RateLimited) as limited:
        await chat(backend)
    assert limited.value.retry_after == 20
    with pytest.raises(RateLimited, match="not asked for another 20 s"):
        await chat(backend)
    assert len(provider.chats) == 2


async def test_a_429_benches_only_its_model(tier: Tier, provider: FakeProvider) -> None:
    """The other models of the key go on, on every replica; the one that it speaks of rests everywhere."""
    one, two = (tier.open("requests: [100/d]", "requests: [500/d]") for _ in range(2))
    provider.plan(Status(429, retry_after=30))
    with pytest.raises(RateLimited):
        await chat(one)
    await one._book.ledger._teller(plans(tier.config)["a"].scopes[0]).idle()  # type: ignore[union-attr]
    for backend in (one, two):
        with pytest.raises(RateLimited, match="30 s"):
            await chat(backend)
        assert await chat(backend, "b")
    assert len(provider.chats) == 3


async def test_geminis_spent_day_rests_until_midnight_in_california(
    tier: Tier, provider: FakeProvider
) -> None:
    """Google says 18 s and means tomorrow: its quota's id is believed, and only for that model."""
    backend = tier.open("requests: [1500/d]", "requests: [3000/d]", provider="gemini")
    violation = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "18s"},
    ]
    told = {"error": {"code": 429, "message": "q", "status": "RESOURCE_EXHAUSTED", "details": details}}
    provider.plan(Status(429, body=told))
    with pytest.raises(QuotaExhausted):
        await chat(backend)
    plan = plans(tier.config)["a"]
    day = plan.limits[-1]
    assert day.zone == "America/Los_Angeles"
    with pytest.raises(QuotaExhausted) as spent:
        await chat(backend)
    now = time.time()
    assert spent.value.retry_after == pytest.approx(day.counts_until(day.cell_start(now)) - now, abs=5)
    assert await chat(backend, "b")


@pytest.mark.parametrize(
    ("name", "headers", "metric", "window", "used"),
    [
        (
            "groq",
            {"x-ratelimit-limit-requests": "6000", "x-ratelimit-remaining-requests": "5000"},
            "requests",
            "day",
            1000,
        ),
        (
            "groq",
            {"x-ratelimit-remaining-tokens": "600", "x-ratelimit-reset-tokens": "52.5s"},
            "tokens",
            "minute",
            8400,
        ),
        ("openai", {"x-ratelimit-remaining-requests": "3"}, "requests", "minute", 27),
        (
            "openai",
            {"x-ratelimit-limit-requests": "6000", "x-ratelimit-remaining-requests": "9"},
            "requests",
            "day",
            5991,
        ),
        ("mistral", {"x-ratelimit-remaining-req-minute": "3"}, "requests", "minute", 27),
        ("mistral", {"x-ratelimitbysize-remaining-minute": "10"}, "tokens", "minute", 8990),
    ],
)
async def test_what_a_provider_says_is_left_corrects_the_count(
    tier: Tier,
    provider: FakeProvider,
    *,
    name: str,
    headers: dict[str, str],
    metric: str,
    window: str,
    used: int,
) -> None:
    """A key that is used elsewhere too has less left than we count; every provider says so in its own way."""
    backend = tier.open("requests: [6000/d, 30/m], tokens: [9000/m]", provider=name)
    provider.plan(Answer(headers=headers))
    await chat(backend, max_tokens=20)
    await backend.close()
    assert abs(await tier.used(metric, window) - used) < 40


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining-requests": "lots"},
        {"x-ratelimit-remaining-requests": "-1"},
        {"x-ratelimit-remaining-requests": "9" * 400},
        {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "soon"},
    ],
)
async def test_nonsense_in_headers_is_no_harm(
    tier: Tier, provider: FakeProvider, headers: dict[str, str]
) -> None:
    """Headers that make no sense change nothing and break nothing."""
    backend = tier.open("requests: [6000/d]", provider="groq")
    provider.plan(Answer(headers=headers))
    assert await chat(backend)
    await backend.close()
    assert await tier.used("requests", "day") == 1


async def test_without_jetstream_a_quota_is_closed(
    nats_server: NatsServer, bus_factory: Buses, provider: FakeProvider
) -> None:
    """Nothing is sent that nobody can count, and the error says what is missing; other models go on."""
    await nats_server.stop()
    nats_server._jetstream = False
    await nats_server.start()
    bus = await bus_factory()
    await until(lambda: bus.connected)
    tier = Tier(bus, provider)
    backend = tier.open("requests: [9/d]")
    with pytest.raises(QuotaUnknown, match=r"quota of a is not known: .*JetStream"):
        await chat(backend)
    assert await chat(backend, "b")
    assert len(provider.chats) == 1
    await tier.close()


async def test_a_model_that_the_worker_does_not_know_is_not_sent(tier: Tier, provider: FakeProvider) -> None:
    """An ingress with a newer config may ask for a model whose quota this worker has not read yet."""
    backend = tier.open("requests: [9/d]")
    stranger = msgspec.structs.replace(ask(), model="new", backend_model="three")
    with pytest.raises(QuotaUnknown, match="new is not in this worker's config"):
        await anext(backend.chat(stranger))
    assert provider.chats == []


@pytest.mark.parametrize("size", [1, 2000])
async def test_what_was_generated_counts_in_pieces_of_any_size(
    tier: Tier, provider: FakeProvider, size: int
) -> None:
    """Cut off before the provider has counted: its chunks and their bytes both bound the tokens."""
    backend = tier.open("tokens: [50000/d]")
    text = " ".join(["x" * (4 * size - 1)] * (2000 // size))
    provider.plan(Answer(text, usage=False, finish_sent=False, done=False))
    left = len(text)
    async with aclosing(backend.chat(ask())) as chunks:
        async for item in chunks:
            assert isinstance(item, bytes)
            left -= len(json.loads(item)["choices"][0]["delta"].get("content") or "")
            if not left:
                break
    await backend.close()
    assert 2000 <= await tier.used("tokens", "day") <= 2100
