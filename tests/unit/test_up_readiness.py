"""What ``tierfall up`` waits for before it says what is up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tierfall.cli.up import readiness
from tierfall.config import parse

if TYPE_CHECKING:
    import pytest

CONFIG = parse(
    """
tiers:
  engine: {worker: vllm, base_url: http://127.0.0.1:1/v1, run: [engine]}
  plain: {worker: vllm, base_url: http://127.0.0.1:2/v1}
models:
  first: {tier: engine, backend_model: a}
  second: {tier: plain, backend_model: a}
""",
    {},
    "test.yaml",
)


def health(engine: str, plain: str) -> dict[str, Any]:
    """What the ingress answers."""
    return {"tiers": {"engine": {"state": engine}, "plain": {"state": plain}}}


async def test_it_waits_for_a_worker_of_each_tier_and_for_engines_that_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tier whose backend is down is reported so, and not as one without workers."""
    answers = [
        None,
        health("no_workers", "no_workers"),
        health("up", "no_workers"),
        health("loading", "down"),
        health("up", "down"),
    ]
    monkeypatch.setattr(readiness, "POLL_EVERY_S", 0)
    monkeypatch.setattr(readiness, "_get", lambda *_: answers.pop(0))
    assert await readiness.wait_for_engines(CONFIG) == health("up", "down")
    assert not answers


async def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not start is reported as missing."""
    monkeypatch.setattr(readiness, "_get", lambda *_: health("up", "no_workers"))
    assert await readiness.wait_for_engines(CONFIG, timeout_s=0) == health("up", "no_workers")
