"""The ingress's metrics tell what happened and how the tiers stand, with bounded labels."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from fakes.polling import until
from fakes.scrape import NO_PROMTOOL, PROMTOOL, Page
from fakes.scripted import ScriptedBackend, chunk, says
from fakes.stack import Stack
from tierfall.errors import BackendFault, StreamBroken
from tierfall.worker import Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 1}
  b: {worker: ollama, base_url: http://127.0.0.1:1, max_in_flight: 2}
  c: {worker: cloud, provider: groq, api_key: key}
models:
  first: {tier: a, backend_model: model-a, fallbacks: [second], when_full: wait(20s)}
  second: {tier: b, backend_model: model-b}
  third: {tier: c, backend_model: model-c}
"""


class Tiers(Stack):
    """Two tiers with workers, one without."""

    def __init__(self) -> None:
        self.a, self.b = ScriptedBackend(), ScriptedBackend()
        super().__init__(CONFIG, {"a": self.a, "b": self.b})

    async def scrape(self) -> Page:
        """The metrics now."""
        return await Page.get(self.client)


@pytest.fixture
async def tiers() -> AsyncIterator[Tiers]:
    """Running."""
    async with Tiers() as running:
        yield running


async def test_an_escalated_request(tiers: Tiers) -> None:
    """Attempts, the escalation, latencies and tokens stand under the right tier and model."""
    tiers.a.scripts.extend([[BackendFault("500")], [BackendFault("500")]])
    await tiers.chat()
    page = await tiers.scrape()
    assert page("tierfall_requests_total", model="first", operation="chat", status="200") == 1
    assert page("tierfall_request_seconds_count", model="first") == 1
    assert page("tierfall_attempts_total", tier="a", outcome="backend_fault") == 2
    assert page("tierfall_attempts_total", tier="b", outcome="ok") == 1
    assert page("tierfall_escalations_total", tier="a", reason="backend_fault") == 1
    assert page("tierfall_first_output_seconds_count", tier="b") == 1
    assert page("tierfall_tokens_total", model="second", kind="prompt") == 3
    assert page("tierfall_tokens_total", model="second", kind="completion") == 2
    assert page("tierfall_tokens_total", model="first", kind="prompt") is None


async def test_the_names_of_litellm(tiers: Tiers) -> None:
    """Dashboards made for a LiteLLM proxy find their metrics; latencies are those of answered requests."""
    await tiers.chat()
    tiers.a.scripts.extend([[BackendFault("500")], [BackendFault("500")]])
    tiers.b.scripts.extend([[BackendFault("500")], [BackendFault("500")]])
    await tiers.chat()
    page = await tiers.scrape()
    assert page("litellm_proxy_total_requests_metric_total", requested_model="first") == 2
    assert page("litellm_proxy_failed_requests_metric_total", requested_model="first") == 1
    labels = {"requested_model": "first", "model": "first"}
    assert page("litellm_request_total_latency_metric_count", **labels) == 1
    assert page("litellm_llm_api_time_to_first_token_metric_count", **labels) == 1
    took = page("litellm_request_total_latency_metric_sum", **labels)
    first = page("litellm_llm_api_time_to_first_token_metric_sum", **labels)
    assert took is not None
    assert first is not None
    assert 0 < first <= took


async def test_the_states_of_deployments(tiers: Tiers) -> None:
    """0 is healthy, 1 partly out, 2 out, as LiteLLM has it; no address is told to whoever scrapes."""

    async def states() -> dict[str, float | None]:
        page = await tiers.scrape()
        name = "litellm_deployment_state"
        return {labels["model_id"]: page(name, **labels) for labels in page.labels(name)}

    assert await states() == {"first": 0, "second": 0, "third": 2}
    page = await tiers.scrape()
    assert {
        "litellm_model_name": "model-c",
        "model_id": "third",
        "api_base": "",
        "api_provider": "groq",
    } in page.labels("litellm_deployment_state")
    assert "127.0.0.1" not in page.text
    spare = ScriptedBackend()
    spare.health = Health("down", "away")
    await tiers.add_worker("b", spare)
    await until(lambda: len(tiers.services.roster.standing("b").workers) == 2)
    assert (await states())["second"] == 1
    tiers.b.health = Health("down", "away")
    await until(lambda: tiers.state("b") == "down")
    assert (await states())["second"] == 2


async def test_how_the_tiers_stand(tiers: Tiers) -> None:
    """Slots, their use, who waits and who is there are read at the moment of the scrape."""
    done = asyncio.Event()
    tiers.a.scripts.append([chunk("Hello", role="assistant"), done, *says(" world.")])
    running = [asyncio.create_task(tiers.chat()), asyncio.create_task(tiers.chat())]
    await until(lambda: len(tiers.services.rooms["a"]) == 1)
    await until(lambda: tiers.services.roster.standing("a").workers[0].in_flight == 1)
    page = await tiers.scrape()
    assert page("tierfall_in_flight") == 2
    expected = {
        "tierfall_waiting": (1, 0, 0),
        "tierfall_tier_up": (1, 1, 0),
        "tierfall_tier_benched": (0, 0, 0),
        "tierfall_tier_workers": (1, 1, 0),
        "tierfall_tier_slots": (1, 2, 0),
        "tierfall_tier_slots_used": (1, 0, 0),
    }
    for name, values in expected.items():
        assert tuple(page(name, tier=tier) for tier in "abc") == values, name
    done.set()
    await asyncio.gather(*running)
    page = await tiers.scrape()
    assert (page("tierfall_in_flight"), page("tierfall_waiting", tier="a")) == (0, 0)


async def test_a_benched_tier(tiers: Tiers) -> None:
    """A tier that never answers shows as up and benched."""
    tiers.a.scripts.extend([[BackendFault("500")]] * 4)
    for _ in range(2):
        await tiers.chat()
    page = await tiers.scrape()
    assert (page("tierfall_tier_up", tier="a"), page("tierfall_tier_benched", tier="a")) == (1, 1)


async def test_a_stream_that_breaks(tiers: Tiers) -> None:
    """A stream that was resumed is counted where it broke, and the request is a success."""
    tiers.a.scripts.append([chunk("Hello", role="assistant"), StreamBroken("reset")])
    await tiers.chat(stream=True)
    page = await tiers.scrape()
    assert page("tierfall_broken_streams_total", tier="a", reason="stream_broken") == 1
    assert page("tierfall_requests_total", model="first", operation="chat", status="200") == 1


async def test_labels_are_bounded(tiers: Tiers) -> None:
    """Names that clients make up are one series."""
    for number in range(5):
        assert (await tiers.chat(model=f"made-up-{number}")).status_code == 404
    page = await tiers.scrape()
    assert page.labels("tierfall_requests_total") == [
        {"model": "other", "operation": "chat", "status": "404"}
    ]
    assert page("litellm_proxy_failed_requests_metric_total", requested_model="other") == 5


@pytest.mark.parametrize("usage", [{"prompt_tokens": -1}, {"prompt_tokens": 10**400}, "many"], ids=str)
async def test_usage_that_is_none(tiers: Tiers, usage: object) -> None:
    """A backend that cannot count costs its answer nothing but the count."""
    tail = json.dumps({"choices": [], "usage": usage}).encode()
    tiers.a.scripts.append([chunk("Hi", role="assistant"), chunk(finish="stop"), tail])
    assert (await tiers.chat(stream=True)).text.endswith("data: [DONE]\n\n")
    page = await tiers.scrape()
    assert page("tierfall_tokens_total", model="first", kind="prompt") == 0
    assert page("tierfall_requests_total", model="first", operation="chat", status="200") == 1


async def test_the_bus_and_the_process(tiers: Tiers) -> None:
    """The connection to NATS and the process itself are there too, also under LiteLLM's address."""
    page = await Page.get(tiers.client, "/metrics/")
    assert page("tierfall_bus_connected") == 1
    assert page("tierfall_bus_reconnects_total") == 0
    assert page("process_resident_memory_bytes")


@pytest.mark.skipif(PROMTOOL is None, reason=NO_PROMTOOL)
async def test_promtool_is_content(tiers: Tiers) -> None:
    """Names, types and help texts keep Prometheus's own rules."""
    tiers.a.scripts.append([chunk("Hello", role="assistant"), StreamBroken("reset")])
    tiers.a.scripts.extend([[BackendFault("500")], [BackendFault("500")]])
    await tiers.chat(stream=True)
    await tiers.chat(model="nobody")
    assert await (await tiers.scrape()).complaints() == ""
