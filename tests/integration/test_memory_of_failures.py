"""A request that fails leaves nothing in memory, though the garbage collector never runs.

``test_faults.py`` holds the same for every fault of a provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from fakes.kept import PADDING, no_collector, nothing_kept
from fakes.polling import until
from fakes.raw_client import RawClient, chat_request
from fakes.scripted import ScriptedBackend, Step, chunk
from fakes.stack import ASK, Stack
from tierfall.errors import BackendFault, InvalidRequest, ProviderRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tierfall.errors import TierfallError

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 1, max_waiting: 0}
  gone: {worker: vllm, base_url: http://127.0.0.1:1/v1}
models:
  first: {tier: a, backend_model: a, when_full: wait(100ms)}
  hasty: {tier: a, backend_model: a, deadlines: {first_token: 300ms, total: 300ms}}
  pressed: {tier: a, backend_model: a, deadlines: {first_token: 300ms, budget: 300ms}}
  absent: {tier: gone, backend_model: a}
server: {api_keys: [{key: sk-one, name: one, models: [first, hasty, pressed, absent]}], max_body: 1MiB}
"""
KEY = "Authorization: Bearer sk-one"
BROKEN = b'{"model": "first", "messages": [' + b" " * len(PADDING)
REFUSED = {
    "an unknown model": ({**ASK, "model": "unknown"}, 404),
    "a model that the key may not use": ({**ASK, "model": "other"}, 404),
    "no JSON": (BROKEN, 400),
    "no messages": ({**ASK, "messages": []}, 400),
    "a wrong type": ({**ASK, "n": "two"}, 400),
    "too large": (BROKEN + b" " * 1024 * 1024, 413),
    "no worker": ({**ASK, "model": "absent"}, 503),
}


class Gateway(Stack):
    """The stack and its one backend."""

    def __init__(self) -> None:
        self.backend = ScriptedBackend()
        super().__init__(CONFIG, {"a": self.backend})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[Gateway]:
    """The gateway of this file."""
    with no_collector():
        async with Gateway() as running:
            yield running


async def send(gateway: Gateway, body: Any, *headers: str) -> int:
    """One request with a large body; returns the status."""
    if isinstance(body, dict):
        body = {**body, "padding": PADDING}
    async with RawClient(gateway.url) as client:
        await client.send(chat_request(body, KEY, *headers))
        answer = await client.answer()
        gateway.backend.asks.clear()
        return answer.status


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("what", REFUSED)
async def test_a_refused_request_is_not_kept(gateway: Gateway, what: str, stream: bool) -> None:
    """Whatever the client did wrong."""
    body, status = REFUSED[what]
    async with nothing_kept():
        whole = {**body, "stream": stream} if isinstance(body, dict) else body
        assert await send(gateway, whole) == status


async def test_a_request_with_a_wrong_key_is_not_kept(gateway: Gateway) -> None:
    """It is refused before its body is read."""
    async with nothing_kept(), RawClient(gateway.url) as client:
        await client.send(chat_request({**ASK, "padding": PADDING}, "Authorization: Bearer sk-two"))
        assert (await client.answer()).status == 401


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error", [BackendFault, InvalidRequest, ProviderRefused])
async def test_a_request_that_the_backend_refuses_is_not_kept(
    gateway: Gateway, error: type[TierfallError], stream: bool
) -> None:
    """In the ingress and in the worker."""
    gateway.backend.scripts.extend([[error("no")], [error("no")]])
    async with nothing_kept():
        assert await send(gateway, {**ASK, "stream": stream}) == error.status
        gateway.backend.scripts.clear()


@pytest.mark.parametrize("model", ["hasty", "pressed"])
async def test_a_request_that_is_too_late_is_not_kept(gateway: Gateway, model: str) -> None:
    """Its deadline or its budget is over."""
    gateway.backend.scripts.append([60.0])
    async with nothing_kept():
        assert await send(gateway, {**ASK, "model": model}) == 504
        await until(lambda: not gateway.backend.running)


async def test_a_request_that_finds_the_tier_full_is_not_kept(gateway: Gateway) -> None:
    """Nor one that may not wait in line."""
    gateway.backend.scripts.append([60.0])
    async with RawClient(gateway.url) as first:
        await first.send(chat_request(ASK, KEY))
        await until(lambda: gateway.backend.running)
        async with nothing_kept(), RawClient(gateway.url) as client:
            await client.send(chat_request({**ASK, "padding": PADDING}, KEY))
            assert (await client.answer()).status == 429
    await until(lambda: not gateway.backend.running)


@pytest.mark.parametrize("after", ["half a body", "a body", "some output"])
async def test_a_request_whose_client_hangs_up_is_not_kept(gateway: Gateway, after: str) -> None:
    """In whatever phase."""
    script: list[Step] = [*([chunk("a")] if after == "some output" else []), 60.0]
    gateway.backend.scripts.append(script)
    request = chat_request({**ASK, "stream": True, "padding": PADDING}, KEY)
    async with nothing_kept():
        async with RawClient(gateway.url) as client:
            await client.send(request[: len(request) // 2] if after == "half a body" else request)
            if after == "half a body":
                await until(lambda: gateway.services.meters.in_flight)
            else:
                await until(lambda: gateway.backend.running)
            if after == "some output":
                await client.head()
        await until(lambda: not gateway.services.meters.in_flight and not gateway.backend.running)
        gateway.backend.asks.clear()
    gateway.backend.scripts.clear()
