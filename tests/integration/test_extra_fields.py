"""``extra_fields: refuse`` in the whole gateway: the next tier answers, or a 400 names the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fakes.scripted import ScriptedBackend
from fakes.stack import Stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIG = """
tiers:
  vllm: {worker: vllm, base_url: 'http://127.0.0.1:1/v1', extra_fields: refuse}
  ollama: {worker: ollama, base_url: 'http://127.0.0.1:1', extra_fields: refuse}
  cloud: {worker: cloud, provider: openai, api_key: sk, extra_fields: refuse}
  open: {worker: vllm, base_url: 'http://127.0.0.1:1/v1', extra_fields: pass}
models:
  on-vllm: {tier: vllm, backend_model: m}
  on-ollama: {tier: ollama, backend_model: m}
  on-cloud: {tier: cloud, backend_model: m}
  laddered: {tier: vllm, backend_model: m, fallbacks: [on-ollama, behind]}
  behind: {tier: open, backend_model: m}
"""
CHAT: Any = {"messages": [{"role": "user", "content": "Hi"}]}
PATHS: Any = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
}


class Tiers(Stack):
    """One scripted backend a tier."""

    def __init__(self) -> None:
        self.backends = {name: ScriptedBackend() for name in ("vllm", "ollama", "cloud", "open")}
        super().__init__(CONFIG, self.backends)


@pytest.fixture
async def tiers() -> AsyncIterator[Tiers]:
    """The gateway of this file."""
    async with Tiers() as running:
        yield running


@pytest.mark.parametrize("kind", ["vllm", "ollama", "cloud"])
@pytest.mark.parametrize("path", PATHS)
async def test_every_kind_of_tier_refuses(tiers: Tiers, kind: str, path: str) -> None:
    """A 400 that names the field, and the backend is not asked; what OpenAI knows is answered."""
    body = {"model": f"on-{kind}", **PATHS[path]}
    refused = await tiers.client.post(path, json={**body, "mm_processor_kwargs": {"a": 1}})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "mm_processor_kwargs")
    assert refused.headers["x-tierfall-attempts"] == f"{kind}=unsupported_by_tier"
    assert tiers.backends[kind].asks == []
    answered = await tiers.client.post(path, json={**body, "user": "u", "top_k": None})
    assert answered.status_code == 200
    (ask,) = tiers.backends[kind].asks
    assert ask.body.keys() == {*body, "user"}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_next_tier_that_takes_it_answers(tiers: Tiers, stream: bool) -> None:
    """The ladder goes past the tiers that refuse, and the field arrives as it was."""
    body = {"model": "laddered", "stream": stream, "top_k": 7, **CHAT}
    answered = await tiers.client.post("/v1/chat/completions", json=body)
    assert answered.status_code == 200
    tried = answered.headers["x-tierfall-attempts"]
    assert tried == "vllm=unsupported_by_tier;ollama=unsupported_by_tier;open=ok"
    assert bytes(tiers.backends["open"].asks[0].body["top_k"]) == b"7"
