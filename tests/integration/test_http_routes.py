"""The routes beside chat: models, health, metrics, the documentation page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from openapi_spec_validator import validate

from fakes.gateway import Gateway, asking
from fakes.polling import until
from tierfall.worker import Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway."""
    async with Gateway() as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/models"])
async def test_models_are_listed(gateway: Gateway, path: str) -> None:
    """The configured names in OpenAI's form, with a slash at the end or without ``/v1`` too."""
    listed = (await gateway.client.get(path)).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == list(gateway.config.models)
    assert {model["object"] for model in listed["data"]} == {"model"}


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/chat/completions", "/chat/completions/"])
async def test_chat_has_the_paths_that_litellm_has(gateway: Gateway, path: str) -> None:
    """Base URLs without ``/v1`` and a slash at the end work, without a redirect that would lose the body."""
    assert (await gateway.client.post(path, json=asking())).status_code == 200


async def test_a_model_tells_its_ladder(gateway: Gateway) -> None:
    """Tier, ladder and whether anybody could answer, which changes with the workers."""
    first = (await gateway.client.get("/v1/models/first")).json()
    assert (first["tier"], first["ladder"], first["available"]) == ("one", ["first", "second"], True)
    for backend in (gateway.one, gateway.two):
        backend.health = Health("down", "off")
    await until(lambda: gateway.state("one") == gateway.state("two") == "down")
    assert (await gateway.client.get("/v1/models/first")).json()["available"] is False


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/models/firts", "did you mean 'first'"),
        ("/v1/models/first/", "did you mean 'first'"),
        ("/v1/models/x%00y", "GET /v1/models lists them"),
        ("/v1/models/..%2f..%2fetc%2fpasswd", "GET /v1/models lists them"),
    ],
)
async def test_an_unknown_model_is_a_404(gateway: Gateway, path: str, said: str) -> None:
    """With what was meant, if anything is near; whatever the path holds."""
    answer = await gateway.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health/liveliness", "/health/liveness", "/health/readiness", "/health"])
async def test_health_answers(gateway: Gateway, path: str) -> None:
    """Under LiteLLM's names and the right ones."""
    answer = await gateway.client.get(path)
    assert answer.status_code == 200
    assert answer.json() == "I'm alive!" or answer.json()["status"] == "healthy"


async def test_health_tells_what_is_wrong(gateway: Gateway) -> None:
    """A tier whose backend is down is told with its reason; the gateway stays ready."""
    gateway.one.health = Health("down", "engine is off")
    await until(lambda: gateway.state("one") == "down")
    health = (await gateway.client.get("/health")).json()
    assert health["tiers"]["one"]["state"] == "down"
    assert health["tiers"]["one"]["reason"] == "engine is off"
    assert {"model": "first", "error": "engine is off"} in health["unhealthy_endpoints"]
    assert health["models"]["first"]["available"] is True
    assert (await gateway.client.get("/health/readiness")).status_code == 200


async def test_readiness_follows_nats(gateway: Gateway) -> None:
    """Without NATS the process is alive and not ready; with it again, it is."""
    await gateway.nats.kill()
    await until(lambda: not gateway.services.bus.connected)
    answer = await gateway.client.get("/health/readiness")
    assert answer.status_code == 503
    assert answer.json()["nats"] == "disconnected"
    assert (await gateway.client.get("/health/liveliness")).status_code == 200
    await gateway.nats.start()
    await until(lambda: gateway.services.bus.connected)
    assert (await gateway.client.get("/health/readiness")).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
async def test_metrics_with_and_without_the_slash(gateway: Gateway, path: str) -> None:
    """Prometheus text with LiteLLM's counter by requested model; an unknown model is ``other``."""
    await gateway.chat()
    await gateway.chat(model="canary-nope")
    answer = await gateway.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'litellm_proxy_total_requests_metric_total{requested_model="first"} 1.0' in answer.text
    assert 'litellm_proxy_failed_requests_metric_total{requested_model="other"} 1.0' in answer.text
    assert "canary" not in answer.text


async def test_metrics_in_openmetrics(gateway: Gateway) -> None:
    """A Prometheus that asks for OpenMetrics gets it."""
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = await gateway.client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_the_page_needs_no_internet(gateway: Gateway) -> None:
    """Every script and style of ``/docs`` is served from here, and nothing points elsewhere."""
    page = await gateway.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)
    assert len(links) == 3
    assert "//" not in "".join(links)
    for link in links:
        asset = await gateway.client.get(link)
        assert asset.status_code == 200, link
        assert len(asset.content) > 500
    assert "http" not in page.text.partition("<body>")[2]


async def test_the_document_is_valid(gateway: Gateway) -> None:
    """``/openapi.json`` is valid OpenAPI 3.0, which the page renders, and tells our errors, not FastAPI's."""
    document = (await gateway.client.get("/openapi.json")).json()
    validate(document)
    assert document["openapi"].startswith("3.0.")
    assert {"/v1/completions", "/v1/embeddings"} <= set(document["paths"])
    assert {"/v1/chat/completions", "/v1/models", "/v1/models/{name}", "/health"} <= set(document["paths"])
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert operation["responses"]["default"]["content"]["application/json"]["schema"] == {
                "$ref": "#/components/schemas/Error"
            }
