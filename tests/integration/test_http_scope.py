"""What one caller may see and use: its own models, and no word of a backend that tells more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fakes.faults import Status
from fakes.gateway import BROKEN, KEYS, Gateway, asking
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.scripted import chunk
from fakes.stack import Stack
from tierfall.errors import BackendDown, BackendFault, ContextLengthExceeded
from tierfall.worker import Health
from tierfall_worker_cloud.main import build as build_cloud
from tierfall_worker_vllm.main import build as build_vllm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tierfall.worker.process import Build

ALL = {"Authorization": "Bearer sk-all-1234567890"}
ONE = {"Authorization": "Bearer sk-one-1234567890"}
"""May use ``first`` and ``alone``, but not ``second``, to which ``first`` falls back."""
UPSTREAM_KEY = "sk-upstream-4b1d9e7c55aa"


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A gateway with a key for all models and one for some."""
    async with Gateway(KEYS) as running:
        yield running


async def ask(gateway: Stack, headers: dict[str, str], **fields: Any) -> httpx.Response:
    """One chat request."""
    return await gateway.client.post("/v1/chat/completions", json=asking(**fields), headers=headers)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_ladder_has_only_models_that_the_key_may_use(gateway: Gateway, stream: bool) -> None:
    """A failure, a full tier, a benched one or a prompt that is too long leads to no other model."""
    for failure in (BackendDown("off"), BackendFault("no"), ContextLengthExceeded("too long")):
        gateway.one.scripts.extend([[failure]] * 2)
        answer = await ask(gateway, ONE, stream=stream)
        assert answer.status_code == failure.status
        assert "two" not in answer.headers["x-tierfall-attempts"] + answer.text
        gateway.one.scripts.clear()
        await until(lambda: gateway.state("one") == "up")
    assert not gateway.two.asks
    gateway.one.scripts.extend([[BackendFault("no")]] * 2)
    assert (await ask(gateway, ALL, stream=stream)).headers["x-tierfall-tier"] == "two"


@pytest.mark.parametrize("name", ["models", "fallbacks", "Model", "MODEL", "Model\u017f"])
async def test_a_key_asks_for_no_model_that_a_backend_knows_besides(gateway: Gateway, name: str) -> None:
    """A backend that is a router, or takes any case for the same name, would answer with another model."""
    answer = await ask(gateway, ONE, **{name: ["second"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert (await ask(gateway, ONE, **{name: None})).status_code == 200
    assert (await ask(gateway, ALL, **{name: ["second"]})).status_code == 200


async def test_a_stream_that_breaks_is_not_resumed_by_another_model(gateway: Gateway) -> None:
    """Resuming goes up the same ladder."""
    gateway.one.scripts.extend([[chunk("a"), BROKEN]] * 3)
    text = (await ask(gateway, ONE, stream=True)).text
    assert '"error"' in text
    assert not gateway.two.asks


async def test_models_and_health_show_a_key_its_own(gateway: Gateway) -> None:
    """Models, ladders, tiers: what it may use, whether that can answer, and no worker's name or address."""
    ids = [process.id for process in gateway.workers.values()]
    gateway.one.health = Health(
        "down", "one at http://10.1.2.3:8000/v1 cannot be reached: connection refused"
    )
    await until(lambda: gateway.state("one") == "down")
    listed = (await gateway.client.get("/v1/models", headers=ONE)).json()["data"]
    assert {model["id"]: (model["ladder"], model["available"]) for model in listed} == {
        "first": (["first"], False),
        "alone": (["alone"], False),
    }
    answer = await gateway.client.get("/health", headers=ONE)
    health = answer.json()
    assert set(health["models"]) == {"first", "alone"}
    assert health["models"]["first"]["ladder"] == ["first"]
    assert set(health["tiers"]) == {"one"}
    assert health["tiers"]["one"]["state"] == "down"
    assert {entry["model"] for entry in health["unhealthy_endpoints"]} == {"first", "alone"}
    for hidden in ("10.1.2.3", "8000", "two", "second", "qwen", "groq", *ids):
        assert hidden not in answer.text
    assert "connection refused" in answer.text
    full = (await gateway.client.get("/health", headers=ALL)).json()
    assert "10.1.2.3" in full["tiers"]["one"]["reason"]
    assert full["tiers"]["two"]["workers"][0]["worker"] in ids
    assert full["models"]["first"]["available"] is True


ENGINES = """
server: {{max_body: 1MiB}}
tiers:
  vllm: {{worker: vllm, base_url: '{url}', api_key: '${{KEY}}'}}
  cloud: {{worker: cloud, provider: other, base_url: '{url}', api_key: '${{KEY}}'}}
models:
  m: {{tier: vllm, backend_model: fake-model}}
  c: {{tier: cloud, backend_model: fake-model}}
"""
QUOTED = [
    f"Incorrect API key provided: {UPSTREAM_KEY}.",
    "Incorrect API key provided: sk-upst...55aa. You can find it at https://platform.openai.com/account.",
    "Incorrect API key provided: sk-up****************55aa",
    "key ending in 55aa is over its limit",
    "HTTPConnectionPool(host='127.0.0.1', port={port}): Max retries exceeded",
    "proxy http://127.0.0.1:{port}/v1/chat said no",
    "upstream 10.20.30.40:8000 and gpu7.lan:9 are gone",
]


@pytest.mark.parametrize("model", ["m", "c"])
@pytest.mark.parametrize("stream", [True, False])
async def test_no_words_of_a_backend_tell_where_it_is_or_its_key(model: str, stream: bool) -> None:
    """Whatever the status, before the first output and after it, in the ladder's last word too."""
    async with FakeProvider() as provider:
        config = ENGINES.format(url=provider.base_url)
        builds: dict[str, Build] = {"vllm": build_vllm, "cloud": build_cloud}
        port = provider.base_url.rpartition(":")[2].partition("/")[0]
        async with Stack(config, builds=builds, environ={"KEY": UPSTREAM_KEY}) as stack:
            for said in QUOTED:
                for status in (400, 401, 422, 429, 500):
                    error = {"message": said.format(port=port), "type": "x", "param": None, "code": None}
                    provider.plan(*[Status(status, body={"error": error})] * 4)
                    answer = await ask(stack, {}, model=model, stream=stream)
                    provider.forget()
                    assert answer.status_code != 200
                    for hidden in (UPSTREAM_KEY, "55aa", "sk-up", "127.0.0.1", port, "10.20.30.40", "gpu7"):
                        assert hidden not in answer.text, (said, status)
