"""``deploy.checks.trace``, which a person runs against a running stack, and what it finds in Jaeger."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final

import pytest

from deploy.checks import trace
from fakes.jaeger import FakeJaeger, RealJaeger
from fakes.scripted import ScriptedBackend
from fakes.stack import Stack
from tierfall.telemetry import tracer_from

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tierfall.telemetry import Tracer

CONFIG: Final = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1}
  b: {worker: ollama, base_url: http://127.0.0.1:1}
models:
  first:
    tier: a
    backend_model: model-a
    deadlines: {first_token: 200ms, idle: 2s, total: 8s}
    fallbacks: [second]
  second: {tier: b, backend_model: model-b}
"""
Jaeger = FakeJaeger | RealJaeger


@pytest.fixture(params=["fake", "real"])
async def jaeger(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Jaeger]:
    """A Jaeger to which the environment sends spans; the real one where it is installed."""
    if request.param == "real" and not RealJaeger.installed():
        pytest.skip("jaeger is not installed (go build its cmd/jaeger, or take it out of its image)")
    async with FakeJaeger() if request.param == "fake" else RealJaeger(tmp_path) as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.otlp)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield running


@contextlib.asynccontextmanager
async def traced(first: ScriptedBackend) -> AsyncIterator[Stack]:
    """Two tiers whose processes trace."""
    tracers: list[Tracer] = []

    def tracer_of(name: str) -> Tracer:
        tracers.append(tracer_from(os.environ, f"tierfall-{name}"))
        return tracers[-1]

    async with Stack(CONFIG, {"a": first, "b": ScriptedBackend()}, tracer_of=tracer_of) as stack:
        yield stack
    for tracer in tracers:
        await asyncio.to_thread(tracer.close, 5.0)


async def check(stack: Stack, jaeger: Jaeger, *more: str) -> int:
    """Runs it as a person would."""
    options = ["--gateway", stack.url, "--jaeger", jaeger.query, "--model", "first", *more]
    return await asyncio.to_thread(trace.main, options)


async def test_an_escalated_request(jaeger: Jaeger, capsys: pytest.CaptureFixture[str]) -> None:
    """The trace of a request that went past a silent tier is whole, and is printed as a tree."""
    silent = ScriptedBackend()
    silent.scripts.append([asyncio.Event()])
    async with traced(silent) as stack:
        status = await check(stack, jaeger)
    printed = capsys.readouterr().out
    assert (status, "WRONG" in printed) == (0, False), printed
    lines = [line.split("  ")[0] if line[0] != " " else line for line in printed.splitlines()]
    assert lines[0].startswith("first: 200, a=first_token_deadline;b=ok, trace ")
    assert [line.split(" ms")[0].rsplit("  ", 1)[0] for line in lines[1:]] == [
        "tierfall-ingress [server] POST /v1/chat/completions",
        "  tierfall-ingress [client] chat a",
        "    tierfall-worker-vllm [server] chat model-a",
        "      tierfall-worker-vllm [client] POST",
        "  tierfall-ingress [client] chat b",
        "    tierfall-worker-ollama [server] chat model-b",
        "      tierfall-worker-ollama [client] POST",
    ]


async def test_a_request_that_did_not_escalate(jaeger: Jaeger, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer of the first tier proves nothing about escalations, unless one is content with any."""
    async with traced(ScriptedBackend()) as stack:
        assert await check(stack, jaeger) == 1
        assert "WRONG: nothing escalated" in capsys.readouterr().out
        assert await check(stack, jaeger, "--any") == 0


async def test_a_gateway_that_does_not_trace(
    jaeger: Jaeger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sampler drops everything: the check says that nothing has come, and where to look."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with traced(ScriptedBackend()) as stack:
        assert await check(stack, jaeger, "--any", "--wait", "0.5") == 1
    assert "WRONG: Jaeger has no such trace" in capsys.readouterr().out


async def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A gateway that does not listen is named, with another exit status than a bad trace."""
    assert await asyncio.to_thread(trace.main, ["--gateway", "http://127.0.0.1:1"]) == 2
    assert "nobody to ask: http://127.0.0.1:1/v1/chat/completions" in capsys.readouterr().err
