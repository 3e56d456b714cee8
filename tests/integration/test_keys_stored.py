"""Keys that NATS keeps, at one ingress: who is let in, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.scripted import ScriptedBackend
from fakes.stack import ASK, Stack
from tierfall.config import Limits
from tierfall.keys import KeyStore
from tierfall.store import KEYS, Bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TEXT = """
server: {stored_keys: true, api_keys: [{key: sk-static, name: static, models: [first]}]}
tiers: {one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}}
models:
  first: {tier: one, backend_model: tiny}
  second: {tier: one, backend_model: tiny}
"""


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    """A gateway with JetStream and a static key."""
    nats = NatsServer(jetstream=True)
    async with nats, Stack(TEXT, {"one": ScriptedBackend()}, nats=nats) as running:
        yield running


async def status(stack: Stack, key: str, model: str = "first") -> int:
    """How a request with this key ends."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    response = await stack.client.post("/v1/chat/completions", json={**ASK, "model": model}, headers=headers)
    return response.status_code


def keys_of(stack: Stack) -> KeyStore:
    """The stored keys, over the ingress's own connection."""
    return KeyStore(stack.services.bus)


def known(stack: Stack) -> int:
    """How many keys the ingress knows."""
    assert stack.services.stored is not None
    return len(stack.services.stored)


async def test_a_key_works_until_it_is_revoked(stack: Stack) -> None:
    """Made, it is let in for its models; revoked, it is not; the static one always is."""
    key = await keys_of(stack).create("alice", ["first"], Limits())
    await until(lambda: known(stack) == 1)
    assert await status(stack, key) == 200
    assert await status(stack, key, "second") == 403
    assert await status(stack, key[:-1]) == 401
    assert await status(stack, "") == 401
    listed = await stack.client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert [model["id"] for model in listed.json()["data"]] == ["first"]
    assert await keys_of(stack).revoke("alice")
    await until(lambda: known(stack) == 0)
    assert await status(stack, key) == 401
    assert await status(stack, "sk-static") == 200


async def test_stored_keys_close_an_open_gateway() -> None:
    """Without a key in the config nobody gets in without one of the stored ones."""
    nats = NatsServer(jetstream=True)
    text = TEXT.replace("api_keys: [{key: sk-static, name: static, models: [first]}]", "")
    async with nats, Stack(text, {"one": ScriptedBackend()}, nats=nats) as stack:
        assert await status(stack, "") == 401
        key = await keys_of(stack).create("alice", None, Limits())
        await until(lambda: known(stack) == 1)
        assert await status(stack, key) == 200


async def test_static_keys_need_no_jetstream() -> None:
    """Without JetStream the static key works; another is not called wrong but not known yet, and why."""
    async with Stack(TEXT, {"one": ScriptedBackend()}) as stack:
        assert await status(stack, "sk-static") == 200
        stored = stack.services.stored
        assert stored is not None
        await until(lambda: stored.problem)
        response = await stack.client.post(
            "/v1/chat/completions", json=ASK, headers={"authorization": "Bearer sk-tf-other"}
        )
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "store_unavailable"
        assert "NATS has no JetStream" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "1"
        headers = {"authorization": "Bearer sk-static"}
        told = (await stack.client.get("/health", headers=headers)).json()["stored_keys"]
        assert (told["state"], told["count"]) == ("lost", 0)
        assert "NATS has no JetStream" in told["reason"]


async def test_keys_outlive_nats(stack: Stack) -> None:
    """After NATS was killed a key that was made before works, and one that is revoked does not."""
    first = await keys_of(stack).create("alice", None, Limits())
    second = await keys_of(stack).create("bob", None, Limits())
    await until(lambda: known(stack) == 2)
    await stack.nats.restart()
    await until(lambda: stack.services.bus.connected)
    assert await keys_of(stack).revoke("bob")
    await until(lambda: known(stack) == 1)
    assert await status(stack, first) == 200
    assert await status(stack, second) == 401


async def test_an_unreadable_record_lets_nobody_in(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    """A record that became unreadable takes its key away, and is logged by name."""
    key = await keys_of(stack).create("alice", None, Limits())
    await until(lambda: known(stack) == 1)
    await Bucket(stack.services.bus, KEYS).put("alice", b'{"id": "x", "future": 1}')
    await until(lambda: known(stack) == 0)
    assert await status(stack, key) == 401
    assert any("the stored key alice cannot be read" in line for line in caplog.messages)


async def test_the_switch_is_read_from_a_changed_config(stack: Stack) -> None:
    """Turned off, stored keys are refused; turned on again, they are let in."""
    key = await keys_of(stack).create("alice", None, Limits())
    await until(lambda: known(stack) == 1)
    stack.services.apply(stack.parse(TEXT.replace("stored_keys: true", "stored_keys: false")))
    assert await status(stack, key) == 401
    stack.services.apply(stack.parse(TEXT))
    assert await status(stack, key) == 200
