"""Tracing is off, costs nothing and imports nothing unless the environment asks for it."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from fakes.polling import until
from tierfall.config import parse
from tierfall.telemetry import NO_SPAN, OFF, Kind, tracer_from
from tierfall.telemetry.span import own_traceparent
from tierfall.worker.tracing import provider_name, server_of
from tierfall_worker_cloud.main import build as build_cloud
from tierfall_worker_ollama.backend import OllamaBackend
from tierfall_worker_vllm.main import build as build_vllm

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
GOOD = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        (GOOD, GOOD),
        (GOOD[:-2] + "00", GOOD[:-2] + "00"),
        (GOOD[:-2] + "ff", GOOD[:-2] + "03"),
        (f"01-{GOOD[3:]}", GOOD),
        (f"fe-{GOOD[3:]}-what-comes-later", GOOD),
        (f"cc-{GOOD[3:]}-{'x' * 60_000}", GOOD),
        (f"cc-{GOOD[3:]}-a\n\xff-b", GOOD),
    ],
)
def test_traceparents(value: str, ours: str) -> None:
    """The known version, and later ones, of which the first four fields are read and nothing else travels."""
    assert own_traceparent(value) == ours
    assert OFF.start("name", Kind.SERVER, {}, traceparent=value).traceparent == ours


@pytest.mark.parametrize(
    "value",
    [
        "",
        "garbage",
        GOOD.upper(),
        GOOD + "-more",
        f"ff-{GOOD[3:]}",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        GOOD[:-1],
        f"01-{GOOD[3:]}x",
        f"01-{GOOD[3:]}.more",
        GOOD + "\n",
    ],
)
def test_what_is_no_traceparent(value: str) -> None:
    """What is malformed is not passed on: it could be anything, of any length."""
    assert not own_traceparent(value)
    assert OFF.start("name", Kind.SERVER, {}, traceparent=value) is NO_SPAN


def test_nothing_is_recorded_when_off() -> None:
    """Everything that is said to a span goes nowhere; there is one span object for all of them."""
    span = OFF.start("name", Kind.SERVER, {})
    assert span is NO_SPAN
    assert span.child("name", Kind.CLIENT, {}) is span
    assert (span.recording, span.trace_id, span.traceparent) == (False, "", "")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=str,
)
def test_when_it_is_off(environ: dict[str, str]) -> None:
    """No endpoint, or OpenTelemetry's own switches."""
    assert tracer_from(environ, "tierfall-test") is OFF


@pytest.mark.parametrize("module", ["tierfall_ingress.main", "tierfall_worker_vllm.main"])
def test_off_imports_no_sdk(module: str) -> None:
    """A process that does not trace does not load OpenTelemetry's SDK, nor the HTTP library of other uses."""
    code = (
        f"import sys, {module}\n"
        "from tierfall.telemetry import OFF, tracer_from\n"
        "assert tracer_from({}, 'x') is OFF\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'aiohttp'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "[]"


def test_asked_for_but_not_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process whose environment asks for traces that it cannot make says what to install, and runs."""
    monkeypatch.setitem(sys.modules, "tierfall.telemetry.otel", None)
    assert tracer_from({ENDPOINT: "http://127.0.0.1:1"}, "tierfall-test") is OFF
    assert "pip install 'tierfall[otel]'" in caplog.text


async def test_a_collector_that_hangs_delays_no_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process ends in time though its collector takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as collector:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{collector.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # so that its thread ends with the test
        tracer = tracer_from({ENDPOINT: "set"}, "tierfall-test")
        tracer.start("name", Kind.SERVER, {}).end()
        with caplog.at_level(logging.WARNING):
            tracer.close(0.2)
        assert "could not be sent within 0.2 s" in caplog.text
        collector.accept()[0].close()
    await until(lambda: not any("traces" in thread.name for thread in threading.enumerate()))


TIERS = """
tiers:
  here: {worker: vllm, base_url: 'http://gpu.lan/v1'}
  near: {worker: ollama, base_url: 'http://[::1]:11434'}
  far: {worker: cloud, provider: gemini, api_key: key}
  own: {worker: cloud, provider: mine, base_url: 'https://example.org/v1', api_key: key}
models: {first: {tier: here, backend_model: m}}
"""


@pytest.mark.parametrize(
    ("tier", "provider"), [("here", "vllm"), ("near", "ollama"), ("far", "gcp.gemini"), ("own", "mine")]
)
def test_what_a_tier_is_called(tier: str, provider: str) -> None:
    """The conventions' own names where they have one."""
    config = parse(f"nats: {{url: 'nats://127.0.0.1:4222'}}\n{TIERS}", {}, "test.yaml")
    assert provider_name(config.tiers[tier]) == provider


BUILDS: dict[str, Any] = {"vllm": build_vllm, "ollama": OllamaBackend.from_tier, "cloud": build_cloud}


@pytest.mark.parametrize(
    ("tier", "address", "port"),
    [
        ("here", "gpu.lan", 80),
        ("near", "::1", 11434),
        ("far", "generativelanguage.googleapis.com", 443),
        ("own", "example.org", 443),
    ],
)
def test_where_a_backend_is(tier: str, address: str, port: int) -> None:
    """Each kind of backend says where its requests go; a provider's address need not stand in the config."""
    config = parse(f"nats: {{url: 'nats://127.0.0.1:4222'}}\n{TIERS}", {}, "test.yaml")
    no_bus: Any = None  # which only quotas would need
    backend = BUILDS[config.tiers[tier].kind](tier, config.tiers[tier], config, no_bus)
    assert server_of(backend.base_url) == {"server.address": address, "server.port": port}
    assert server_of("") == {}
