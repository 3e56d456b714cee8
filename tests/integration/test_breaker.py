"""A tier that looks healthy and never answers is passed by, and comes back soon after it recovers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes.polling import until
from fakes.scripted import ScriptedBackend, says
from fakes.stack import Stack
from tierfall.errors import BackendFault, InvalidRequest, TierfallError, Undelivered, WorkerLost
from tierfall_ingress import breaker as circuit
from tierfall_ingress.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1}
  b: {worker: ollama, base_url: http://127.0.0.1:1}
models:
  first: {tier: a, backend_model: x, deadlines: {first_token: 100ms}, fallbacks: [second]}
  second: {tier: b, backend_model: y}
  alone: {tier: a, backend_model: x}
"""
FAULT: TierfallError = BackendFault("500")


class Tiers(Stack):
    """Two tiers of one slot pool each."""

    def __init__(self) -> None:
        self.a, self.b = ScriptedBackend(), ScriptedBackend()
        super().__init__(CONFIG, {"a": self.a, "b": self.b})

    async def attempts(self, model: str = "first") -> str:
        """One request's story."""
        return (await self.chat(model=model)).headers["x-tierfall-attempts"]


@pytest.fixture
async def tiers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tiers]:
    """Both tiers up, with a circuit that stays open until a test says otherwise."""
    monkeypatch.setattr(circuit, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(circuit, "LONGEST_PAUSE_S", 3600.0)
    async with Tiers() as running:
        yield running


def let_probe(tiers: Tiers) -> None:
    """Time for a probe."""
    tiers.services.breakers["a"]._probe_at = 0.0


async def bench(tiers: Tiers) -> None:
    """Three silences in a row."""
    for _ in range(3):
        tiers.a.scripts.append([asyncio.Event()])
        assert await tiers.attempts() == "a=first_token_deadline;b=ok"


async def test_a_silent_tier_is_benched(tiers: Tiers) -> None:
    """After three misses in a row requests go past the tier without asking it, and it says so."""
    await bench(tiers)
    asked = len(tiers.a.asks)
    assert await tiers.attempts() == "a=benched;b=ok"
    assert len(tiers.a.asks) == asked
    assert (await tiers.client.get("/health")).json()["tiers"]["a"]["benched"] is True


async def test_it_comes_back(tiers: Tiers) -> None:
    """One answered probe, and everything goes there again."""
    await bench(tiers)
    let_probe(tiers)
    assert await tiers.attempts() == "a=ok"
    assert await tiers.attempts() == "a=ok"


async def test_a_failed_probe_is_one_attempt(tiers: Tiers) -> None:
    """A probe that fails is not retried, and the tier stays benched."""
    await bench(tiers)
    let_probe(tiers)
    tiers.a.scripts.extend([[FAULT], [FAULT]])
    assert await tiers.attempts() == "a=backend_fault;b=ok"
    assert await tiers.attempts() == "a=benched;b=ok"


async def test_one_probe_at_a_time(tiers: Tiers) -> None:
    """While one request tries the tier out, the others go past it."""
    await bench(tiers)
    let_probe(tiers)
    release = asyncio.Event()
    tiers.a.scripts.append([release, *says("back")])
    probe = asyncio.create_task(tiers.attempts())
    await until(lambda: tiers.a.running == 1)
    assert await tiers.attempts() == "a=benched;b=ok"
    release.set()
    assert await probe in {"a=ok", "a=first_token_deadline;b=ok"}


async def test_the_only_tier_left_is_never_benched(tiers: Tiers) -> None:
    """Where there is nobody else, a tier is asked however often it failed."""
    await bench(tiers)
    assert await tiers.attempts("alone") == "a=ok"
    await bench(tiers)
    await tiers.stop_worker("b-1")
    assert await tiers.attempts() == "a=ok"


async def test_all_benched_means_none(tiers: Tiers) -> None:
    """When every tier of a ladder has failed lately, the last one is asked all the same."""
    await bench(tiers)
    for _ in range(3):
        tiers.services.breakers["b"].failed(FAULT, 0.0)
    assert await tiers.attempts() == "a=ok"


async def test_the_clients_faults_do_not_count(tiers: Tiers) -> None:
    """Requests that are refused for what they are say nothing of the tier."""
    for _ in range(5):
        tiers.a.scripts.append([InvalidRequest("no")])
        assert (await tiers.chat()).status_code == 400
    assert not tiers.services.breakers["a"].is_open


def test_lost_workers_count() -> None:
    """A tier whose workers die of each request is benched; what one worker held when it died is one miss."""
    breaker = Breaker()
    for now in (0.0, 0.0, 0.1, 5.0):
        breaker.failed(WorkerLost("gone"), now)
    assert not breaker.is_open
    breaker.failed(Undelivered("NATS is away"), 10.0)
    assert not breaker.is_open
    breaker.failed(WorkerLost("gone"), 10.0)
    assert breaker.is_open


def test_pauses_double_and_end() -> None:
    """A tier that stays broken is tried ever more seldom, but at least every five seconds."""
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(FAULT, 0.0)
    now, pauses = 0.0, []
    for _ in range(5):
        began = now
        while not breaker.try_probe(now):
            now += 0.25
        pauses.append(now - began)
        breaker.failed(FAULT, now)
        breaker.probed()
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_probe_that_was_given_up_frees_the_way() -> None:
    """A client that hangs up during its probe leaves the next request free to probe."""
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(FAULT, 0.0)
    assert breaker.try_probe(10.0)
    assert not breaker.try_probe(10.0)
    breaker.failed(FAULT, 0.0)  # a request from before the tier was benched
    assert not breaker.try_probe(20.0)
    breaker.probed()
    assert breaker.try_probe(10.0)
