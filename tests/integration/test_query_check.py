"""``deploy.checks.queries``, which a person runs against a running Prometheus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from deploy.checks import queries
from fakes.prometheus import FakePrometheus, RealPrometheus
from fakes.scripted import ScriptedBackend
from fakes.stack import Stack
from tierfall.errors import BackendFault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CONFIG: Final = """
tiers:
  vllm: {worker: vllm, base_url: http://127.0.0.1:1/v1}
  ollama: {worker: ollama, base_url: http://127.0.0.1:1}
models:
  first: {tier: vllm, backend_model: a, fallbacks: [second]}
  second: {tier: ollama, backend_model: b}
"""
ONE: Final[list[Any]] = [{"metric": {}, "value": [0, "1"]}]


async def check(url: str) -> int:
    """Runs it as a person would."""
    return await asyncio.to_thread(queries.main, ["--prometheus", url])


@pytest.fixture
async def prometheus() -> AsyncIterator[FakePrometheus]:
    """One in whose eyes all is well, and nothing has happened."""
    async with FakePrometheus() as running:
        names = {name for one in queries.written() for name in queries.NAME.findall(one.expression)}
        running.families = {queries.SUFFIX.sub("", name) for name in names}
        running.alerts = {"NoTier": "max(tierfall_tier_up) == 0"}
        scalers = [one for one in queries.written() if one.where.startswith(queries.SCALER)]
        running.answers = {one.expression: ONE for one in scalers}
        yield running


async def test_every_question_has_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real Prometheus that scrapes a real ingress answers the dashboard, the alerts and the scalers."""
    if not RealPrometheus.installed():
        pytest.skip("prometheus is not installed (on Debian: apt install prometheus)")
    first = ScriptedBackend([[BackendFault("500")], [BackendFault("500")]])
    async with Stack(CONFIG, {"vllm": first, "ollama": ScriptedBackend()}) as stack:
        await stack.chat()
        async with RealPrometheus(tmp_path, stack.url.removeprefix("http://")) as real:
            await stack.chat()  # a rate is of what happens between two scrapes
            await real.until("sum(rate(tierfall_requests_total[1m])) > 0")
            status = await check(real.url)
    printed = capsys.readouterr().out
    assert (status, "WRONG" in printed) == (0, False), printed
    told = dict(line.removeprefix("ok").strip().split(": ", 1) for line in printed.splitlines())
    assert told["panel Which tiers are up?"] == "ollama=1, vllm=1"
    assert told["panel Is it answering?"] == "1"
    assert told["scaler vllm"] == told["scaler ingress"] == "0"
    assert told["panel What broke?"].endswith("there was no tierfall_broken_streams_total")


async def test_what_has_not_happened_is_no_fault(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has no series yet, or none with such labels, leaves its question empty, and that is right."""
    prometheus.answers["count(tierfall_quota_limit offset 1m)"] = ONE
    assert await check(prometheus.url) == 0
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    assert (
        'Used within the minute: nothing, as a minute ago there was no tierfall_quota_used{window="minute"}\n'
        in printed
    )


async def test_what_scales_needs_a_number(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scaler without an answer does not scale, whatever the reason."""
    del prometheus.answers["sum(tierfall_in_flight)"]
    assert await check(prometheus.url) == 1
    assert "WRONG  scaler ingress: nothing comes of it" in capsys.readouterr().out


async def test_a_metric_that_nobody_exports(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    """A panel that asks for a metric which no target has is named."""
    prometheus.families.remove("tierfall_waiting")
    assert await check(prometheus.url) == 1
    assert "WRONG  scaler vllm: no target exports tierfall_waiting" in capsys.readouterr().out


async def test_a_question_that_finds_nothing(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    """All its series are there, it compares nothing, and nothing comes of it: its labels do not match."""
    prometheus.answers["count(tierfall_tier_up offset 1m)"] = ONE
    assert await check(prometheus.url) == 1
    printed = capsys.readouterr().out
    assert "WRONG  panel Which tiers are up?: the series are there, and nothing" in printed
    assert "ok     alert NoTier: nothing, as it is not so\n" in printed
    prometheus.answers["max by (tier) (tierfall_tier_up)"] = ONE
    assert await check(prometheus.url) == 0
    assert "ok     panel Which tiers are up?: 1\n" in capsys.readouterr().out


async def test_a_question_that_is_not_understood(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip in an expression is told in Prometheus's words."""
    prometheus.refused.add("max(tierfall_tier_up) == 0")
    assert await check(prometheus.url) == 1
    assert "WRONG  alert NoTier: parse error: max(" in capsys.readouterr().out


async def test_no_rules(prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]) -> None:
    """A Prometheus that was not given the rules would wake nobody."""
    prometheus.alerts.clear()
    assert await check(prometheus.url) == 1
    assert "WRONG  it has no alert rules" in capsys.readouterr().out


async def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A Prometheus that does not listen is named, with another exit status than a fault."""
    assert await check("http://127.0.0.1:1") == 2
    assert "nobody to ask: http://127.0.0.1:1/api/v1/rules" in capsys.readouterr().err
