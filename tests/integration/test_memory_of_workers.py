"""A request that fails leaves nothing in the memory of the cloud's and Ollama's workers.

The garbage collector never runs here. ``test_faults.py`` holds the same for an engine of kind ``vllm``, and
``test_memory_of_failures.py`` for the ingress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from fakes.behaviour import Answer
from fakes.faults import CutAfter, ResetBeforeHeaders, Status
from fakes.kept import PADDING, no_collector, nothing_kept
from fakes.nats_server import NatsServer
from fakes.ollama import FakeOllama
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.raw_client import RawClient, chat_request
from fakes.stack import ASK, Stack
from tierfall_worker_cloud.main import build
from tierfall_worker_ollama import OllamaBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.behaviour import Behaviour

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
tiers:
  sky: {worker: cloud, provider: mine, base_url: 'PROVIDER', api_keys: ['${K1}', '${K2}']}
  calm: {worker: cloud, provider: mine, base_url: 'PROVIDER', api_key: '${K1}'}
  home: {worker: ollama, base_url: 'OLLAMA'}
models:
  plain: {tier: sky, backend_model: plain}
  first: {tier: sky, backend_model: first, quota: {requests: [100000/d]}}
  spent: {tier: calm, backend_model: spent, quota: {requests: [1/d]}}
  large: {tier: calm, backend_model: large, quota: {tokens: [100/d]}}
  home: {tier: home, backend_model: 'fake:1b'}
"""
FAULTS: dict[str, Behaviour] = {
    "400": Status(400),
    "401": Status(401),
    "404": Status(404),
    "429": Status(429),
    "500": Status(500),
    "reset": ResetBeforeHeaders(),
    "cut": CutAfter(2, Answer()),
}


class Gateway(Stack):
    """The stack with one tier of each kind."""

    def __init__(self, provider: FakeProvider, ollama: FakeOllama, nats: NatsServer) -> None:
        self.provider, self.ollama = provider, ollama
        text = CONFIG.replace("PROVIDER", provider.base_url).replace("OLLAMA", ollama.base_url)
        super().__init__(
            text,
            builds={"cloud": build, "ollama": OllamaBackend.from_tier},
            environ={"K1": "sk-1", "K2": "sk-2"},
            nats=nats,
        )

    async def send(self, model: str, *, stream: bool = False, **fields: Any) -> int:
        """One request with a large body, which the fakes forget; returns the status."""
        async with RawClient(self.url) as client:
            await client.send(
                chat_request({**ASK, "model": model, "stream": stream, "padding": PADDING, **fields})
            )
            answer = await client.answer()
        await until(lambda: not self.services.meters.in_flight)
        for request in (*self.provider.requests, *self.ollama.requests):
            request.raw = b""
        return answer.status


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[Gateway]:
    """The gateway of this file."""
    with no_collector():
        async with (
            NatsServer(jetstream=True) as nats,
            FakeProvider() as provider,
            FakeOllama() as ollama,
            Gateway(provider, ollama, nats) as running,
        ):
            yield running


@pytest.mark.parametrize(("model", "stream"), [("plain", True), ("first", False)])
@pytest.mark.parametrize("what", FAULTS)
async def test_a_request_that_a_provider_fails_is_not_kept(
    gateway: Gateway, what: str, model: str, stream: bool
) -> None:
    """With a quota and without, whichever keys were tried."""
    gateway.provider.defaults[model] = FAULTS[what]
    async with nothing_kept():
        await gateway.send(model, stream=stream)
    gateway.provider.defaults.clear()


@pytest.mark.parametrize("model", ["spent", "large"])
async def test_a_request_without_quota_is_not_kept(gateway: Gateway, model: str) -> None:
    """It is refused before a provider is asked."""
    while await gateway.send(model) == 200:
        pass
    async with nothing_kept():
        assert await gateway.send(model) == 429


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_request_that_ollama_fails_is_not_kept(gateway: Gateway, status: int, stream: bool) -> None:
    """Whether it is the request's fault or not."""
    async with nothing_kept():
        for _ in range(2):
            gateway.ollama.refuse(status, "no")
        assert await gateway.send("home", stream=stream) >= 400


async def test_a_request_that_ollama_cannot_honour_is_not_kept(gateway: Gateway) -> None:
    """It is refused before Ollama is asked."""
    async with nothing_kept():
        assert await gateway.send("home", options={"num_ctx": 1}) == 400
