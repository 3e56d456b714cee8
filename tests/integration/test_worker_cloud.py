"""The cloud worker's backend against a provider over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.behaviour import TEXT, Answer
from fakes.faults import CutAfter, Events, Silence, StallAfter, Status
from fakes.provider import FakeProvider
from tierfall.config import CloudTier, Config, Model, Secret, VllmTier
from tierfall.errors import (
    BackendDown,
    ConfigError,
    ProviderRefused,
    QuotaExhausted,
    RateLimited,
    StreamBroken,
    TierfallError,
    UnsupportedByTier,
)
from tierfall.upstream import KEY_REFUSED
from tierfall.worker import Ask
from tierfall_worker_cloud import CloudBackend, account
from tierfall_worker_cloud.main import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.behaviour import Behaviour

KEY = Secret("sk-very-secret", "OPENAI_API_KEY")
NO_BUS: Any = None
"""A tier without a quota does not come near it."""


def ask(**members: Any) -> Ask:
    """A request as the runtime hands it over."""
    found = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}
    body = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in found.items()}
    return Ask(request_id="r", model="openai-gpt4o", backend_model="gpt-4o-mini", body=body)


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider that takes one key."""
    async with FakeProvider(api_key=KEY.value) as running:
        yield running


@contextlib.asynccontextmanager
async def started(
    provider: FakeProvider, name: str = "openai", key: Secret = KEY
) -> AsyncIterator[CloudBackend]:
    """A started backend for one of the known providers, at the fake's address."""
    tier = CloudTier(provider=name, base_url=provider.base_url, api_key=key)
    config = Config(tiers={"cloud": tier}, models={"m": Model(tier="cloud", backend_model="gpt-4o-mini")})
    backend = build("cloud", tier, config, NO_BUS)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


@pytest.fixture
async def backend(provider: FakeProvider) -> AsyncIterator[CloudBackend]:
    """A started OpenAI backend with the right key."""
    async with started(provider) as running:
        yield running


async def chat(backend: CloudBackend, **members: Any) -> list[Any]:
    """The decoded chunks of one chat."""
    items = [item async for item in backend.chat(ask(**members))]
    return [json.loads(item) for item in items if isinstance(item, bytes)]


def text(chunks: list[Any]) -> str:
    """The text that the chunks add up to."""
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def model_lists(provider: FakeProvider) -> int:
    """How often the provider was asked for its models."""
    return sum(request.path == "/v1/models" for request in provider.requests)


@pytest.mark.parametrize("name", ["openai", "groq", "gemini", "mistral", "somebody"])
async def test_answers_of_every_provider(provider: FakeProvider, name: str) -> None:
    """An ordinary chat works with every provider's rules, with the tier's key and nobody else's."""
    provider.plan(Answer())
    async with started(provider, name) as backend:
        assert text(await chat(backend, temperature=0.1)) == TEXT
    sent = provider.chats[0]
    assert sent.headers["authorization"] == f"Bearer {KEY.value}"
    assert (sent.json["model"], sent.json["stream"]) == ("gpt-4o-mini", True)


async def test_refused_field_costs_the_provider_nothing(provider: FakeProvider) -> None:
    """What the provider cannot honour is refused before a request is sent."""
    async with started(provider, "groq") as backend:
        with pytest.raises(UnsupportedByTier) as refused:
            await chat(backend, logprobs=True)
    assert refused.value.param == "logprobs"
    assert provider.chats == []


async def test_mistral_stream_is_mended(provider: FakeProvider) -> None:
    """Reasoning that comes as content parts leaves as ``reasoning_content``."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "yes"},
    ]
    provider.plan(Events(({"choices": [{"index": 0, "delta": {"content": parts}, "finish_reason": None}]},)))
    async with started(provider, "mistral") as backend:
        delta = (await chat(backend))[0]["choices"][0]["delta"]
    assert delta == {"content": "yes", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("behaviour", "expected", "retry_after"),
    [
        (Status(429, retry_after=2), RateLimited, 2),
        (Status(429, body={"error": {"message": "x", "code": "insufficient_quota"}}), QuotaExhausted, None),
        (Status(404), ProviderRefused, None),
        (CutAfter(2), StreamBroken, None),
    ],
)
async def test_failures(
    provider: FakeProvider,
    backend: CloudBackend,
    behaviour: Behaviour,
    expected: type[TierfallError],
    retry_after: float | None,
) -> None:
    """A provider's failure is the tree's error; one request's failure does not take the tier down."""
    provider.plan(behaviour)
    with pytest.raises(TierfallError) as failed:
        await chat(backend)
    assert (type(failed.value), failed.value.retry_after) == (expected, retry_after)
    assert (await backend.probe()).state == "up"


async def test_closing_the_chat_closes_the_connection(provider: FakeProvider, backend: CloudBackend) -> None:
    """The provider's connection is closed within a second of the generator, in mid-answer."""
    provider.plan(StallAfter(2))
    async with aclosing(backend.chat(ask())) as chunks:
        await anext(chunks)
    async with asyncio.timeout(1):
        await provider.chats[0].closed.wait()


async def test_probe_is_cached(provider: FakeProvider, backend: CloudBackend) -> None:
    """The provider is asked once, however often the runtime probes; model names lose Google's prefix."""
    provider.models = ("models/gemini-x", "gpt-4o-mini")
    for _ in range(5):
        health = await backend.probe()
    assert (health.state, health.models) == ("up", ("gemini-x", "gpt-4o-mini"))
    assert model_lists(provider) == 1


async def test_missing_key(provider: FakeProvider) -> None:
    """A variable that is not set keeps the tier down and is named; the provider is not asked."""
    async with started(provider, key=Secret("", "OPENAI_API_KEY")) as backend:
        health = await backend.probe()
    assert (health.state, health.reason) == ("down", "OPENAI_API_KEY is not set")
    assert provider.requests == []


async def test_wrong_key_is_found_by_the_probe(
    provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that the provider refuses is down with the variable to check; the key itself is told nobody."""
    caplog.set_level(logging.DEBUG)
    async with started(provider, key=Secret("sk-wrong", "OPENAI_API_KEY")) as backend:
        health = await backend.probe()
        assert (health.state, health.reason) == (
            "down",
            "openai refused the key (401): check OPENAI_API_KEY",
        )
        with pytest.raises(ProviderRefused) as refused:
            await chat(backend)
    assert refused.value.code == KEY_REFUSED
    assert "sk-wrong" not in refused.value.message + health.reason + caplog.text


async def test_wrong_key_is_found_by_a_chat(provider: FakeProvider, backend: CloudBackend) -> None:
    """A key that is refused later, where the model list is open to anybody, takes the tier down as well."""
    assert (await backend.probe()).state == "up"
    provider.plan(Status(401))
    with pytest.raises(ProviderRefused):
        await chat(backend)
    health = await backend.probe()
    assert (health.state, health.reason) == ("down", "openai refused the key (401): check OPENAI_API_KEY")
    assert model_lists(provider) == 1


async def test_unreachable_provider_backs_off_and_comes_back(
    provider: FakeProvider, backend: CloudBackend
) -> None:
    """Down with the address while nobody listens, asked after ever longer waits, up at the next answer."""
    await provider.refuse()
    with pytest.raises(BackendDown):
        await chat(backend)
    health = await backend.probe()
    assert health.state == "down"
    assert provider.base_url in health.reason
    await provider.resume()
    keeper = backend._accesses[0].account
    waits = []
    for _ in range(8):
        waits.append(keeper._retry_s)
        keeper.note(BackendDown("x"))
    assert waits == sorted(waits)
    assert waits[-1] == account.LAST_RETRY_S
    assert (await backend.probe()).state == "down"
    keeper._due = 0.0
    assert (await backend.probe()).state == "up"
    assert keeper._retry_s == account.FIRST_RETRY_S


@pytest.mark.parametrize(
    ("behaviour", "state"),
    [(Status(429), "up"), (Status(404), "up"), (Status(500), "down"), (Silence(), "down")],
)
async def test_probe_statuses(
    provider: FakeProvider,
    backend: CloudBackend,
    behaviour: Behaviour,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A provider that limits or lacks its model list is there; one that fails or is silent is not."""
    monkeypatch.setattr(account, "CHECK_TIMEOUT_S", 0.05)
    provider.model_list = behaviour
    assert (await backend.probe()).state == state


def test_build_refuses_other_kinds() -> None:
    """A tier of another kind is a config error that names it."""
    tier = VllmTier(base_url="http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match=r"tiers\.x"):
        build("x", tier, Config(tiers={"x": tier}, models={}), NO_BUS)
