"""What an ingress, the doctor and `/health` say of a store that cannot be written, or is another one."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

import tierfall_ingress.store as checks
from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.scripted import ScriptedBackend
from fakes.stack import ASK, Stack
from tierfall.cli.doctor import Request, run
from tierfall.ledger import outage, teller
from tierfall.store import jetstream
from tierfall_ingress.store import StoreMemory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

CONFIG = """
server: {stored_keys: true, api_keys: [{key: sk-day, name: day, limits: {requests: [2/d]}}]}
tiers: {one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}}
models: {first: {tier: one, backend_model: tiny}}
"""


class Gateway(Stack):
    """A gateway whose one key has a limit."""

    async def ask(self) -> httpx.Response:
        """One request with that key."""
        headers = {"authorization": "Bearer sk-day"}
        return await self.client.post("/v1/chat/completions", json=ASK, headers=headers)

    async def store(self) -> dict[str, Any]:
        """What `/health` says of the store."""
        answer = await self.client.get("/health", headers={"authorization": "Bearer sk-day"})
        found: dict[str, Any] = answer.json()["store"]
        return found

    async def metric(self, name: str) -> float:
        """One gauge."""
        text = (await self.client.get("/metrics")).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that a test need not sit out."""
    monkeypatch.setattr(checks, "CHECK_EVERY_S", 0.1)
    monkeypatch.setattr(checks, "AGAIN_S", 0.1)
    monkeypatch.setattr(jetstream, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(teller, "STORE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(outage, "PATIENCE_S", 0.2)
    monkeypatch.setattr(outage, "REMEMBERED_S", 0.2)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """The gateway and a NATS with JetStream that can be told to fail its writes."""
    # Without this the signal of a file that is too large would end nats-server, instead of an error.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXFSZ})
    try:
        nats = NatsServer(jetstream=True)
        async with nats, Gateway(CONFIG, {"one": ScriptedBackend()}, nats=nats) as running:
            yield running
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXFSZ})


async def diagnose(folder: Path, gateway: Gateway) -> list[tuple[str, str]]:
    """What the doctor finds about the store."""
    path = folder / "tierfall.yaml"
    path.write_text(f"nats: {{url: '{gateway.nats.url}'}}\n{CONFIG}")
    out = io.StringIO()
    await asyncio.to_thread(run, Request(config=path, url=gateway.url, json=True, trial=False), {}, out)
    found = json.loads(out.getvalue())["findings"]
    return [(one["level"], one["text"]) for one in found if one["subject"] == "store"]


def limit_files(nats: NatsServer, most_bytes: int) -> None:
    """Lets every write of a running nats-server beyond so many bytes of a file fail, as a full disk does."""
    assert nats._process is not None
    resource.prlimit(nats._process.pid, resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit(2)")
async def test_a_store_that_cannot_be_written_is_named_and_comes_back(
    gateway: Gateway, tmp_path: Path
) -> None:
    """NATS answers reads meanwhile. Room alone does not help it, a restart does; no count is lost."""
    assert (await gateway.ask()).status_code == 200
    assert await gateway.store() == {"state": "ok", "reason": ""}
    assert await gateway.metric("tierfall_store_up") == 1.0
    assert [level for level, _ in await diagnose(tmp_path, gateway)] == ["ok"]
    limit_files(gateway.nats, 1)
    await until(lambda: gateway.services.store.problem, timeout_s=15)
    found = await gateway.store()
    assert found["state"] == "unavailable"
    assert "NATS cannot write its store" in found["reason"]
    assert await gateway.metric("tierfall_store_up") == 0.0
    refused = await gateway.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    diagnosed = await diagnose(tmp_path, gateway)
    assert [level for level, _ in diagnosed] == ["fail", "fail"]
    assert all("NATS cannot write its store" in text for _, text in diagnosed)
    await gateway.nats.restart()
    await until(lambda: not gateway.services.store.problem and gateway.state("one") == "up", timeout_s=15)
    assert [(await gateway.ask()).status_code for _ in range(2)] == [200, 429]


async def test_a_store_that_was_lost_is_loud(
    gateway: Gateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """NATS comes back with an empty folder: keys and counters are gone, which an operator must hear of."""
    assert [(await gateway.ask()).status_code for _ in range(3)] == [200, 200, 429]
    await gateway.nats.kill()
    shutil.rmtree(gateway.nats._path / "jetstream")
    assert await gateway.metric("tierfall_store_lost") == 0.0
    await gateway.nats.start()
    await until(lambda: gateway.services.store.lost.startswith("counters and client keys"), timeout_s=15)
    found = await gateway.store()
    assert found["state"] == "lost"
    assert "counters and client keys were lost" in found["reason"]
    assert await gateway.metric("tierfall_store_lost") == 1.0
    assert "were lost: the store is new" in caplog.text
    assert any("were lost: the store is new" in text for _, text in await diagnose(tmp_path, gateway))


def test_a_first_start_is_no_loss_and_a_later_one_is(tmp_path: Path) -> None:
    """What an ingress has seen outlasts it; without a file there is nothing to compare with at its start."""
    path = tmp_path / "stores.json"
    first = StoreMemory(path)
    assert not first.is_another("keys", "at noon")
    assert not first.is_another("quota", "at one")
    assert not StoreMemory(path).is_another("keys", "at noon")
    later = StoreMemory(path)
    assert later.is_another("keys", "at two")
    assert not later.is_another("keys", "at two")
    assert not StoreMemory(path).is_another("quota", "at one")
    assert not StoreMemory().is_another("keys", "at three")
    path.write_text("[")
    assert not StoreMemory(path).is_another("keys", "at four")


async def test_a_store_that_is_new_at_the_first_look_is_worth_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is no error, as it may be the first start."""
    async with NatsServer(jetstream=True) as nats:
        async with Gateway(CONFIG, {"one": ScriptedBackend()}, nats=nats) as first:
            assert await first.store() == {"state": "ok", "reason": ""}
        assert caplog.text.count("is new and empty; unless this is a first start") == 2
