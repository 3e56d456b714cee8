"""The vLLM worker's backend against a provider over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.behaviour import error_body
from fakes.faults import ErrorFrame, Silence, StallAfter, Status
from fakes.provider import FakeProvider
from tierfall.config import Config, Deadlines, Model, OllamaTier, Secret, VllmTier
from tierfall.errors import (
    BackendFault,
    ConfigError,
    ContextLengthExceeded,
    InvalidRequest,
    ProviderRefused,
    TierfallError,
)
from tierfall.worker import Ask
from tierfall_worker_vllm import VllmBackend, engine
from tierfall_worker_vllm.main import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.behaviour import Behaviour

RAW = (
    b'{"model":"vllm-qwen","messages":[{"role":"user","content":"a b c"}],'
    b'"top_k":  7,"seed":1e0,"stream":false}'
)
LOADING = error_body("Loading model", "unavailable_error", 503)


def ask(raw: bytes = RAW) -> Ask:
    """A request as the runtime hands it over."""
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return Ask(request_id="r", model="vllm-qwen", backend_model="fake-model", body=members)


def config(tier: VllmTier | OllamaTier, backend_model: str = "fake-model") -> Config:
    """A config with one tier and one model."""
    model = Model(tier="gpu", backend_model=backend_model, deadlines=Deadlines())
    return Config(tiers={"gpu": tier}, models={"vllm-qwen": model})


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """An engine of its own for each test."""
    async with FakeProvider() as running:
        yield running


@contextlib.asynccontextmanager
async def started(
    provider: FakeProvider, api_key: Secret | None = None, backend_model: str = "fake-model"
) -> AsyncIterator[VllmBackend]:
    """A started backend for that engine."""
    tier = VllmTier(base_url=provider.base_url, api_key=api_key or Secret())
    backend = build("gpu", tier, config(tier, backend_model))
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


@pytest.fixture
async def backend(provider: FakeProvider) -> AsyncIterator[VllmBackend]:
    """A started backend without a key."""
    async with started(provider) as running:
        yield running


async def chat(backend: VllmBackend, raw: bytes = RAW) -> list[Any]:
    """The decoded chunks of one chat."""
    return [json.loads(payload) async for payload in backend.chat(ask(raw))]


def text(chunks: list[Any]) -> str:
    """The text that the chunks add up to."""
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_body_is_the_clients_but_for_three_members(
    provider: FakeProvider, backend: VllmBackend
) -> None:
    """Unknown members and odd numbers reach the engine byte for byte; model, stream and usage are set."""
    chunks = await chat(backend)
    raw = provider.chats[0].raw
    assert b'"seed":1e0' in raw
    assert b'"messages":[{"role":"user","content":"a b c"}]' in raw
    sent = provider.chats[0].json
    assert (sent["model"], sent["stream"], sent["top_k"]) == ("fake-model", True, 7)
    assert sent["stream_options"] == {"include_usage": True}
    assert text(chunks) == "Hello from the fake provider."
    assert chunks[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


async def test_clients_stream_options_are_kept(provider: FakeProvider, backend: VllmBackend) -> None:
    """The engine's own stream options go on beside ours."""
    await chat(backend, b'{"stream_options":{"include_usage":false,"continuous_usage_stats":true}}')
    options = provider.chats[0].json["stream_options"]
    assert options == {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize(("tokenizer", "prompt"), [("vllm", 3), ("llama", 3), ("", 2)])
async def test_a_prompt_is_counted_as_the_engine_counts(
    provider: FakeProvider, backend: VllmBackend, tokenizer: str, prompt: int
) -> None:
    """For engines that send no usage: by their tokenizer if they have one, else by the prompt's length."""
    provider.tokenizer = tokenizer
    assert await backend.count_prompt(ask()) == prompt


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (ErrorFrame(), BackendFault),
        (ErrorFrame(2), BackendFault),
        (
            Status(400, body=error_body("maximum context length is 10", "BadRequestError", 400)),
            ContextLengthExceeded,
        ),
        (Status(400, body=error_body("bad", "BadRequestError", 400)), InvalidRequest),
        (Status(404, body=error_body("no model", "NotFoundError", 404)), ProviderRefused),
        (Status(500), BackendFault),
    ],
)
async def test_engine_errors(
    provider: FakeProvider, backend: VllmBackend, behaviour: Behaviour, expected: type[TierfallError]
) -> None:
    """Error frames before ``[DONE]`` and error statuses are the tree's errors; integer codes are mended."""
    provider.plan(behaviour)
    with pytest.raises(TierfallError) as failed:
        await chat(backend)
    assert type(failed.value) is expected
    assert failed.value.code is None or not failed.value.code.isdigit()


async def test_closing_the_chat_stops_the_engine(provider: FakeProvider, backend: VllmBackend) -> None:
    """The engine's connection is closed within a second of the generator, in mid-answer."""
    provider.plan(StallAfter(2))
    async with aclosing(backend.chat(ask())) as chunks:
        await anext(chunks)
    async with asyncio.timeout(1):
        await provider.chats[0].closed.wait()


async def test_probe_up(provider: FakeProvider, backend: VllmBackend) -> None:
    """A healthy engine is up with its models; they are not asked for each second."""
    for _ in range(3):
        health = await backend.probe()
    assert (health.state, health.reason, health.models) == ("up", "", ("fake-model",))
    assert sum(request.path == "/v1/models" for request in provider.requests) == 1


async def test_probe_tells_of_a_model_that_is_not_served(provider: FakeProvider) -> None:
    """A configured name that the engine does not list keeps it up, with a hint at what it serves."""
    async with started(provider, backend_model="Qwen/other") as backend:
        health = await backend.probe()
    assert health.state == "up"
    assert "serves fake-model, not Qwen/other: check backend_model" in health.reason


async def test_probe_loading_then_up_then_dead(provider: FakeProvider, backend: VllmBackend) -> None:
    """llama.cpp's 503 while it loads is ``loading``; vLLM's empty 503 after it was up is ``down``."""
    provider.health = Status(503, body=LOADING)
    health = await backend.probe()
    assert (health.state, "loading" in health.reason) == ("loading", True)
    provider.health = Status(200, body=b"")
    assert (await backend.probe()).state == "up"
    provider.health = Status(503, body=b"")
    for _ in range(2):
        health = await backend.probe()
        assert health.state == "down"
        assert "/health answers 503" in health.reason


async def test_probe_without_health_path(provider: FakeProvider, backend: VllmBackend) -> None:
    """An engine that has no ``/health`` is judged by its model list."""
    provider.health = None
    assert (await backend.probe()).state == "up"
    provider.model_list = Status(500)
    assert (await backend.probe()).state == "down"
    provider.model_list = None
    assert (await backend.probe()).state == "up"


async def test_probe_of_a_refused_connection(provider: FakeProvider, backend: VllmBackend) -> None:
    """Nobody listening is down with the address, and up again as soon as somebody does."""
    await provider.refuse()
    health = await backend.probe()
    assert health.state == "down"
    assert provider.base_url in health.reason
    await provider.resume()
    assert (await backend.probe()).state == "up"


async def test_probe_tolerates_a_busy_engine(
    provider: FakeProvider, backend: VllmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that was up is not given up for one late answer, but for a series of them."""
    monkeypatch.setattr(engine, "PROBE_TIMEOUT_S", 0.05)
    assert (await backend.probe()).state == "up"
    provider.health = Silence()
    states = [(await backend.probe()).state for _ in range(engine.TOLERATED_TIMEOUTS + 1)]
    assert states == ["up"] * engine.TOLERATED_TIMEOUTS + ["down"]


async def test_key(provider: FakeProvider) -> None:
    """The tier's key is sent with chats; a wrong one is down with the variable to check."""
    provider.api_key = "right"
    async with started(provider, Secret("right", "VLLM_KEY")) as backend:
        assert (await backend.probe()).state == "up"
        assert text(await chat(backend))
    async with started(provider, Secret("wrong", "VLLM_KEY")) as backend:
        health = await backend.probe()
        assert health.state == "down"
        assert "check VLLM_KEY" in health.reason
        assert "wrong" not in health.reason


@pytest.mark.parametrize(
    ("owned_by", "version", "named", "path"),
    [
        ("vllm", "0.11.0", "vLLM 0.11.0", "/version"),
        ("llamacpp", "b11549-abcdef", "llama.cpp b11549-abcdef", "/props"),
        ("vllm", None, "", "/version"),
        ("fake", "0.11.0", "", ""),
    ],
)
async def test_the_version_is_asked_for_seldom(
    owned_by: str, version: str | None, named: str, path: str
) -> None:
    """With the models, and again when the engine was away; an unknown one changes nothing."""
    async with FakeProvider(owned_by=owned_by) as provider, started(provider) as backend:
        provider.version = version
        for _ in range(3):
            health = await backend.probe()
            assert (health.state, health.engine) == ("up", named)
        asked = [request.path for request in provider.requests if request.path in {"/version", "/props"}]
        assert asked == ([path] if path else [])
        await provider.refuse()
        assert (await backend.probe()).engine == ""
        await provider.resume()
        provider.version = version and "9.9.9"
        assert (await backend.probe()).engine == (named and f"{named.rpartition(' ')[0]} 9.9.9")


def test_build_refuses_other_kinds() -> None:
    """A tier of another kind is a config error that names it."""
    tier = OllamaTier(base_url="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"tiers\.gpu"):
        build("gpu", tier, config(tier))
