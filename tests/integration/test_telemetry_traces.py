"""One trace tells one request's story, over processes and tiers, and holds no word of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from fakes.collector import FakeCollector
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.scripted import ScriptedBackend, chunk, says
from fakes.stack import Stack
from tierfall.errors import BackendFault, StreamBroken
from tierfall.telemetry import tracer_from
from tierfall_worker_vllm.main import build as build_vllm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tierfall.telemetry import Tracer

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 2}
  b: {worker: ollama, base_url: http://127.0.0.1:1, max_in_flight: 2}
models:
  first:
    tier: a
    backend_model: model-a
    deadlines: {first_token: 300ms, idle: 2s, total: 8s}
    fallbacks: [second]
  second: {tier: b, backend_model: model-b}
"""
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
HTTP = "POST /v1/chat/completions"
SAMPLING: dict[str, Any] = {
    "temperature": 1,
    "max_tokens": 7,
    "seed": 10**30,
    "presence_penalty": 0.5,
    "top_k": 40,
    "n": 1,
    "reasoning_effort": "low",
}
SECRET = "what nobody may read in a trace"


class Traced(Stack):
    """Two scripted tiers and a collector."""

    def __init__(self, collector: FakeCollector, tracers: list[Tracer]) -> None:
        def tracer_of(name: str) -> Tracer:
            tracers.append(tracer_from(os.environ, f"tierfall-{name}"))
            return tracers[-1]

        self.a, self.b = ScriptedBackend(), ScriptedBackend()
        self.collector = collector
        super().__init__(CONFIG, {"a": self.a, "b": self.b}, tracer_of=tracer_of)

    async def ask(self, flags: str = "01", **fields: Any) -> str:
        """One chat request of a caller that traces; the answer's text."""
        response = await self.client.post(
            "/v1/chat/completions",
            json={"model": "first", "messages": [{"role": "user", "content": SECRET}], **fields},
            headers={"traceparent": f"00-{TRACE_ID}-{CALLER}-{flags}"},
        )
        return response.text

    async def expect(self, *lines: str) -> None:
        """Waits until the whole trace has arrived and has this shape."""
        expected = [re.sub(r"^( *)", r"\1tierfall-", line) for line in lines]
        try:
            await until(lambda: self.collector.tree() == expected, timeout_s=10)
        except TimeoutError:
            assert self.collector.tree() == expected


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeCollector]:
    """A collector that the environment names."""
    async with FakeCollector() as listening:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", listening.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield listening


@pytest.fixture
async def tracers(collector: FakeCollector) -> AsyncIterator[list[Tracer]]:
    """Where tracers are put to be closed while there is still a collector."""
    del collector
    made: list[Tracer] = []
    yield made
    await asyncio.gather(*(asyncio.to_thread(tracer.close, 5.0) for tracer in made))


@pytest.fixture
async def traced(collector: FakeCollector, tracers: list[Tracer]) -> AsyncIterator[Traced]:
    """Two tiers, traced."""
    async with Traced(collector, tracers) as stack:
        yield stack


async def test_an_escalation_is_a_sibling_attempt(traced: Traced) -> None:
    """One trace below the caller's span: an attempt for each try, what its worker did below it, and why."""
    traced.a.scripts.extend([[BackendFault("500")], [BackendFault("500")]])
    await traced.ask()
    await traced.expect(
        f"ingress server {HTTP}",
        "  ingress client chat a backend_fault",
        "    worker-vllm server chat model-a backend_fault",
        "      worker-vllm client POST backend_fault",
        "  ingress client chat a backend_fault",
        "    worker-vllm server chat model-a backend_fault",
        "      worker-vllm client POST backend_fault",
        "  ingress client chat b ok",
        "    worker-ollama server chat model-b ok",
        "      worker-ollama client POST",
    )
    (root,) = traced.collector.roots()
    assert (root.trace_id, root.parent_id) == (TRACE_ID, CALLER)
    assert {span.trace_id for span in traced.collector.spans} == {TRACE_ID}
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["tierfall.attempts"] == "a=backend_fault;a=backend_fault;b=ok"
    first, _, last = traced.collector.children(root)
    assert (first.failed, first.attributes["error.type"]) == (True, "backend_fault")
    assert (last.failed, last.events) == (False, ["accepted", "first_output"])
    assert [span.attributes["tierfall.attempt"] for span in (first, last)] == [1, 3]
    assert last.attributes["tierfall.worker"] == root.attributes["tierfall.worker"]


async def test_the_worker_speaks_the_genai_conventions(traced: Traced) -> None:
    """The worker's span has the conventions' attributes, and its backend's call is below it."""
    answer = json.loads(await traced.ask(**SAMPLING))
    await until(lambda: traced.collector.named("chat model-a"))
    (span,) = traced.collector.named("chat model-a")
    told = span.attributes
    assert {name: value for name, value in told.items() if name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "model-a",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.presence_penalty": 0.5,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.reasoning.level": "low",
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.model": "engine",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": told["gen_ai.response.time_to_first_chunk"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
    }
    assert isinstance(told["gen_ai.request.temperature"], float)
    assert 0 < told["gen_ai.response.time_to_first_chunk"] <= span.took_s
    (call,) = traced.collector.children(span)
    assert (call.attributes["server.address"], call.attributes["server.port"]) == ("127.0.0.1", 1)
    assert traced.a.asks[0].traceparent == f"00-{TRACE_ID}-{call.span_id}-01"


async def test_a_resumed_stream_shows_its_seam(traced: Traced) -> None:
    """The attempt that broke says how, and the one that goes on says that it does."""
    traced.a.scripts.append([chunk("Hello", role="assistant"), StreamBroken("reset")])
    traced.a.scripts.append([BackendFault("500")])
    traced.a.scripts.append([BackendFault("500")])
    traced.b.scripts.append(says("Hello", " world."))
    assert " world." in await traced.ask(stream=True)
    await traced.expect(
        f"ingress server {HTTP}",
        "  ingress client chat a stream_broken",
        "    worker-vllm server chat model-a stream_broken",
        "      worker-vllm client POST stream_broken",
        "  ingress client chat a backend_fault",
        "    worker-vllm server chat model-a backend_fault",
        "      worker-vllm client POST backend_fault",
        "  ingress client chat a backend_fault",
        "    worker-vllm server chat model-a backend_fault",
        "      worker-vllm client POST backend_fault",
        "  ingress client chat b ok",
        "    worker-ollama server chat model-b ok",
        "      worker-ollama client POST",
    )
    (root,) = traced.collector.roots()
    broken, *_, last = traced.collector.children(root)
    assert broken.events == ["accepted", "first_output"]
    assert "tierfall.resumes" not in broken.attributes
    assert last.attributes["tierfall.resumes"] is True
    assert last.events == ["accepted", "first_output", "resumed"]
    assert not root.failed


async def test_a_missed_deadline_cancels_the_worker(traced: Traced) -> None:
    """The attempt ends with the deadline, and the worker's span says that it was told to stop, and why."""
    traced.a.scripts.append([asyncio.Event()])
    await traced.ask()
    await traced.expect(
        f"ingress server {HTTP}",
        "  ingress client chat a first_token_deadline",
        "    worker-vllm server chat model-a cancelled",
        "      worker-vllm client POST",
        "  ingress client chat b ok",
        "    worker-ollama server chat model-b ok",
        "      worker-ollama client POST",
    )
    (held,) = traced.collector.named("chat model-a")
    assert held.attributes["tierfall.cancelled_because"] == "first_token_deadline"
    assert not held.failed


async def test_a_tier_that_nobody_serves(traced: Traced) -> None:
    """An attempt that no worker took has nothing below it and says why."""
    await traced.stop_worker("a-0")
    await traced.ask()
    await traced.expect(
        f"ingress server {HTTP}",
        "  ingress client chat a no_workers",
        "  ingress client chat b ok",
        "    worker-ollama server chat model-b ok",
        "      worker-ollama client POST",
    )


async def test_a_request_of_nobodys_model(traced: Traced) -> None:
    """What never reaches a tier is one span, with the client's error, which is none of the span's."""
    await traced.ask(model="no-such-model")
    await traced.expect(f"ingress server {HTTP} model_not_found")
    (root,) = traced.collector.roots()
    assert (root.failed, root.attributes["tierfall.model"]) == (False, "other")


async def test_a_client_that_hangs_up(traced: Traced) -> None:
    """The attempt ends as the client's, not as a failure of the tier's."""
    traced.a.scripts.append([chunk("Hello", role="assistant"), asyncio.Event()])
    async with traced.stream() as response:
        events = response.aiter_raw()
        await anext(events)
        await events.aclose()
    await traced.expect(
        f"ingress server {HTTP} client_gone",
        "  ingress client chat a client_gone",
        "    worker-vllm server chat model-a cancelled",
        "      worker-vllm client POST",
    )
    assert not any(span.failed for span in traced.collector.spans)


async def test_no_text_leaves(traced: Traced) -> None:
    """Neither the prompt nor the answer nor a backend's words about them are in what the collector gets."""
    words = "The answer to it."
    traced.a.scripts.append([BackendFault(f"cannot answer {SECRET!r}")])
    traced.a.scripts.append(says(words))
    assert words in await traced.ask(stream=True)
    await until(lambda: len(traced.collector.spans) == 7)
    sent = b"".join(traced.collector.raw)
    assert SECRET.encode() not in sent
    assert words.encode() not in sent


async def test_an_unsampled_trace_goes_through(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    """A caller that does not record is believed: nothing is sent, and the backend hears of the same trace."""
    with caplog.at_level(logging.INFO, "tierfall.ingress"):
        await traced.ask(flags="00")
        await traced.ask(flags="01")
    await until(lambda: len(traced.collector.spans) == 4)
    unrecorded, recorded = (record.fields for record in caplog.records if record.message == "chat")  # type: ignore[attr-defined]  # ours
    assert "trace_id" not in unrecorded
    assert recorded["trace_id"] == TRACE_ID
    version, trace_id, _, flags = traced.a.asks[0].traceparent.split("-")
    assert (version, trace_id, flags) == ("00", TRACE_ID, "00")


async def test_sampling_is_the_environments(
    collector: FakeCollector, tracers: list[Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``OTEL_TRACES_SAMPLER`` decides on what has no caller's word; what it refuses is refused everywhere."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with Traced(collector, tracers) as stack:
        await stack.chat()
        await stack.ask()
        await until(lambda: len(collector.spans) == 4)
    assert {span.trace_id for span in collector.spans} == {TRACE_ID}


async def test_the_engine_joins_the_trace(collector: FakeCollector, tracers: list[Tracer]) -> None:
    """The HTTP request to the engine carries the traceparent of the span that stands for it."""

    def tracer_of(name: str) -> Tracer:
        tracers.append(tracer_from(os.environ, f"tierfall-{name}"))
        return tracers[-1]

    async with FakeProvider(models=("model-a",)) as provider:
        config = f"""
tiers: {{a: {{worker: vllm, base_url: '{provider.base_url}'}}}}
models: {{first: {{tier: a, backend_model: model-a}}}}
"""
        async with Stack(config, builds={"vllm": build_vllm}, tracer_of=tracer_of) as stack:
            await until(lambda: stack.state("a") == "up")
            assert (await stack.chat()).status_code == 200
            await until(lambda: collector.named("POST"))
        (call,) = collector.named("POST")
        assert provider.chats[0].headers["traceparent"].startswith(f"00-{call.trace_id}-{call.span_id}-")


async def test_the_last_spans_are_sent_at_the_end(
    collector: FakeCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends sends what it has not sent yet."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    made: list[Tracer] = []
    async with Traced(collector, made) as stack:
        await stack.ask()
    assert not collector.spans
    await asyncio.gather(*(asyncio.to_thread(tracer.close, 5.0) for tracer in made))
    assert len(collector.spans) == 4


async def test_tracing_off_passes_the_callers_trace_on() -> None:
    """Without a collector the gateway is transparent: the backend hears the caller's own traceparent."""
    backend = ScriptedBackend()
    async with Stack(CONFIG, {"a": backend, "b": ScriptedBackend()}) as stack:
        for given in (f"00-{TRACE_ID}-{CALLER}-01", "garbage"):
            await stack.client.post(
                "/v1/chat/completions",
                json={"model": "first", "messages": [{"role": "user", "content": "Hello."}]},
                headers={"traceparent": given},
            )
    assert [ask.traceparent for ask in backend.asks] == [f"00-{TRACE_ID}-{CALLER}-01", ""]


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("completions", {"prompt": "x", "max_tokens": 7}, "text_completion"),
        ("embeddings", {"input": "x", "dimensions": 3}, "embeddings"),
    ],
)
async def test_the_other_operations(traced: Traced, path: str, fields: dict[str, Any], name: str) -> None:
    """The same tree; the worker's span has the conventions' name of the operation."""
    answer = await traced.client.post(f"/v1/{path}", json={"model": "first", **fields})
    assert answer.status_code == 200
    await until(lambda: traced.collector.named(f"{name} model-a"))
    (span,) = traced.collector.named(f"{name} model-a")
    told = span.attributes
    assert told["gen_ai.operation.name"] == name
    assert told["gen_ai.usage.input_tokens"] == 3
    if name == "embeddings":
        assert told["gen_ai.embeddings.dimension.count"] == 3
        assert "gen_ai.request.stream" not in told
    await until(lambda: traced.collector.named(f"{path} a"))
