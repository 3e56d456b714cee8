"""A worker's own HTTP side: what it counts, and whether it should be sent requests."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from fakes.polling import until
from fakes.scrape import NO_PROMTOOL, PROMTOOL, Page
from fakes.scripted import ScriptedBackend, chunk, says
from fakes.stack import Stack
from tierfall.errors import BackendFault, ConfigError
from tierfall.worker import Health
from tierfall.worker.http import WorkerHttp, split_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.nats_server import NatsServer

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 2}
models:
  first: {tier: a, backend_model: model-a, deadlines: {first_token: 20s}}
"""
WORKER = Path(sys.executable).with_name("tierfall-worker-vllm")


class Served(Stack):
    """One tier whose worker has an HTTP side."""

    def __init__(self) -> None:
        self.a = ScriptedBackend()
        super().__init__(CONFIG, {"a": self.a})


@pytest.fixture
async def stack() -> AsyncIterator[Served]:
    """Running."""
    async with Served() as running:
        yield running


@pytest.fixture
async def worker(stack: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the worker's HTTP side."""
    async with (
        WorkerHttp(stack.workers["a-0"], "127.0.0.1:0") as http,
        httpx.AsyncClient(base_url=http.url, trust_env=False) as client,
    ):
        yield client


async def test_what_a_worker_counts(stack: Served, worker: httpx.AsyncClient) -> None:
    """Requests by outcome, the backend's first output, tokens, slots and the backend's state, by tier."""
    stack.a.scripts.extend([[BackendFault("500")], says("Hello.")])
    await stack.chat()
    page = await Page.get(worker)
    assert page("tierfall_worker_requests_total", tier="a", outcome="backend_fault") == 1
    assert page("tierfall_worker_requests_total", tier="a", outcome="ok") == 1
    assert page("tierfall_worker_first_output_seconds_count", tier="a") == 1
    assert page("tierfall_worker_tokens_total", tier="a", kind="prompt") == 3
    assert page("tierfall_worker_tokens_total", tier="a", kind="completion") == 2
    assert page("tierfall_worker_slots", tier="a") == 2
    assert page("tierfall_worker_in_flight", tier="a") == 0
    assert page("tierfall_worker_backend_up", tier="a") == 1
    assert page("tierfall_bus_connected") == 1


async def test_a_cancelled_request(stack: Served, worker: httpx.AsyncClient) -> None:
    """What its client left is counted as cancelled, not as a failure of the backend's; it held a slot."""
    stack.a.scripts.append([chunk("Hello", role="assistant"), asyncio.Event()])
    async with stack.stream() as response:
        events = response.aiter_raw()
        await anext(events)
        assert (await Page.get(worker))("tierfall_worker_in_flight", tier="a") == 1
        await events.aclose()
    await until(lambda: stack.a.cancelled == 1)
    page = await Page.get(worker)
    assert page("tierfall_worker_requests_total", tier="a", outcome="cancelled") == 1


async def test_a_backend_that_is_down(stack: Served, worker: httpx.AsyncClient) -> None:
    """The worker itself is ready; its backend's state is a metric and stands in the answer."""
    stack.a.health = Health("down", "away")
    await until(lambda: stack.state("a") == "down")
    assert (await Page.get(worker))("tierfall_worker_backend_up", tier="a") == 0
    ready = await worker.get("/health/readiness")
    assert (ready.status_code, ready.json()["backends"]) == (200, {"a": "down"})


async def test_a_draining_worker_is_not_ready(stack: Served, worker: httpx.AsyncClient) -> None:
    """While it finishes what it has, a worker lives and is not ready."""
    done = asyncio.Event()
    stack.a.scripts.append([chunk("Hello", role="assistant"), done, *says(" world.")])
    chat = asyncio.create_task(stack.chat())
    await until(lambda: stack.a.running == 1)
    assert (await worker.get("/health/readiness")).status_code == 200
    drain = asyncio.create_task(stack.workers["a-0"].drain())
    await until(stack.workers["a-0"].unready_because)
    assert (await worker.get("/health/readiness")).status_code == 503
    for path in ("/health/liveness", "/health/liveliness"):
        assert (await worker.get(path)).status_code == 200
    done.set()
    await drain
    assert (await chat).status_code == 200


async def test_a_worker_without_nats_is_not_ready(stack: Served, worker: httpx.AsyncClient) -> None:
    """A worker that has lost NATS says so, and is ready again when NATS is back."""
    await stack.nats.kill()
    await until(lambda: not stack.workers["a-0"]._bus.connected)
    lost = await worker.get("/health/readiness")
    assert (lost.status_code, lost.json()["reason"]) == (503, "no connection to NATS")
    await stack.nats.start()
    await until(lambda: stack.workers["a-0"]._bus.connected)
    assert (await worker.get("/health/readiness")).status_code == 200


@pytest.mark.skipif(PROMTOOL is None, reason=NO_PROMTOOL)
async def test_promtool_is_content(stack: Served, worker: httpx.AsyncClient) -> None:
    """Names, types and help texts keep Prometheus's own rules."""
    await stack.chat()
    assert await (await Page.get(worker)).complaints() == ""


@pytest.mark.parametrize(
    "address", ["9100", "host", "host:", "host:port", "host:70000", "user@host:1", "h:1/x"]
)
def test_an_address_that_is_none(address: str) -> None:
    """What cannot be listened on is refused with an example of what can."""
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        split_address(address)


def test_addresses() -> None:
    """A name, every interface, IPv6."""
    assert split_address("127.0.0.1:9100") == ("127.0.0.1", 9100)
    assert split_address(":9100") == ("0.0.0.0", 9100)
    assert split_address("[::1]:9100") == ("::1", 9100)


async def test_a_port_that_is_taken(stack: Served, worker: httpx.AsyncClient) -> None:
    """Two cannot listen on one port; the second says so."""
    taken = f"127.0.0.1:{worker.base_url.port}"
    with pytest.raises(ConfigError, match=taken):
        await WorkerHttp(stack.workers["a-0"], taken).__aenter__()


async def test_the_option_of_a_real_worker(nats_server: NatsServer, tmp_path: Path) -> None:
    """``--http`` on the command line listens while the process runs, and keeps it from nothing at its end."""
    config = tmp_path / "config.yaml"
    config.write_text(f"nats: {{url: '{nats_server.url}'}}\n{CONFIG}")
    process = await asyncio.create_subprocess_exec(
        str(WORKER),
        *("--config", str(config), "--http", "127.0.0.1:0"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TIERFALL_LOG": "human"},
    )
    assert process.stderr is not None
    try:
        while "metrics and health on " not in (line := (await process.stderr.readline()).decode()):
            assert line, "the worker ended without listening"
        url = line.partition("metrics and health on ")[2].strip()
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            while (await client.get("/health/readiness")).status_code != 200:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
            page = await Page.get(client)
        assert page("tierfall_worker_slots", tier="a") == 2
    finally:
        process.send_signal(signal.SIGTERM)
        await process.stderr.read()
        assert await process.wait() == 0


async def test_a_real_worker_stops_without_nats(nats_server: NatsServer, tmp_path: Path) -> None:
    """Whatever of a start or a reload waits for NATS: SIGTERM ends it."""
    config = tmp_path / "config.yaml"
    text = f"nats: {{url: '{nats_server.url}'}}\n{CONFIG}"
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(
        str(WORKER),
        *("--config", str(config)),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TIERFALL_LOG": "human"},
    )
    assert process.stderr is not None
    try:
        while b"is ready" not in await process.stderr.readline():
            assert process.returncode is None
        await nats_server.kill()
        while b"lost the connection" not in await process.stderr.readline():
            assert process.returncode is None
        config.write_text(text.replace("max_in_flight: 2", "max_in_flight: 3"))
        process.send_signal(signal.SIGHUP)
        while b"config changed: applied" not in await process.stderr.readline():
            assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert b"without a connection to NATS" in await process.stderr.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
