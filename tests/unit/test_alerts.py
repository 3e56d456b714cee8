"""The alert rules, the dashboard and what scales on metrics: all ask for metrics that the ingress has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from fakes.manifests import ROOT, named, read
from fakes.scripted import ScriptedBackend
from fakes.stack import Stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CONFIG: Final = """
tiers: {one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}}
models: {first: {tier: one, backend_model: a}}
"""
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
NAME: Final = re.compile(r"\b(?:tierfall|litellm)_[a-z0-9_]+")
SUFFIXES: Final = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "gauge": [""]}


def promtool(*arguments: str) -> None:
    """Runs promtool, which must be content; skips where there is none."""
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("promtool is not installed (on Debian: apt install prometheus)")
    ran = subprocess.run(  # noqa: S603 - promtool, with files of ours
        [command, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=30
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture
async def exported() -> AsyncIterator[set[str]]:
    """The names of the series of a real ingress."""
    async with Stack(CONFIG, {"one": ScriptedBackend()}) as stack:
        text = (await stack.client.get("/metrics")).text
        types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
        # The text format has a counter's _total in its name already.
        yield {name.removesuffix("_total") + end for name, kind in types for end in SUFFIXES.get(kind, [""])}


def expressions() -> Iterator[str]:
    """Every PromQL expression in the repository."""
    for group in read("deploy/prometheus/alerts.yaml")["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for scaled in named("ScaledObject").values():
        yield from (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])


def dashboard() -> dict[str, Any]:
    """Grafana's."""
    found: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/tierfall.json").read_text())
    return found


def test_rules_are_well_formed() -> None:
    """The tool understands the rules and Prometheus's config."""
    promtool("check", "rules", "alerts.yaml")
    promtool("check", "config", "prometheus.yaml")


def test_rules_fire_when_they_should() -> None:
    """The tool plays alerts_test.yaml: each alert's case, and a quiet one for all."""
    promtool("test", "rules", "alerts_test.yaml")


def test_every_alert_is_played() -> None:
    """Each alert has a case in which it fires and one in which it stays silent."""
    alerts = {
        rule["alert"] for group in read("deploy/prometheus/alerts.yaml")["groups"] for rule in group["rules"]
    }
    cases = [
        case
        for test in read("deploy/prometheus/alerts_test.yaml")["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_every_alert_is_explained() -> None:
    """docs/observability.md says of each alert what it means and what to do, and of no other."""
    alerts = [
        rule["alert"] for group in read("deploy/prometheus/alerts.yaml")["groups"] for rule in group["rules"]
    ]
    explained = re.findall(
        r"^\| `(Tierfall\w+)` \|", (ROOT / "docs/observability.md").read_text(), re.MULTILINE
    )
    assert sorted(explained) == sorted(alerts)


def test_kubernetes_has_the_same_rules() -> None:
    """The PrometheusRule holds the groups of alerts.yaml."""
    (rule,) = named("PrometheusRule").values()
    assert rule["spec"]["groups"] == read("deploy/prometheus/alerts.yaml")["groups"]


async def test_every_metric_asked_for_exists(exported: set[str]) -> None:
    """No rule, panel or scaler asks for a series that no ingress exports."""
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(asked) > 10
    assert asked - exported == set()


async def test_every_metric_is_explained(exported: set[str]) -> None:
    """docs/observability.md names each metric of the ingress; those of the bus by the ends of their names."""
    text = (ROOT / "docs/observability.md").read_text()
    told = {
        name.removeprefix("tierfall_bus") for name in re.findall(r"`((?:tierfall|litellm)?_[a-z_]+)", text)
    }
    metrics = {re.sub("_(bucket|count|sum)$", "", name) for name in exported if NAME.fullmatch(name)}
    assert len(metrics) > 20
    assert {name.removeprefix("tierfall_bus") for name in metrics} - told == set()


def test_the_dashboard_is_in_order() -> None:
    """Panels have ids of their own, lie in the grid, overlap nowhere, and read the provisioned source."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    (source,) = [
        one
        for one in read("deploy/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
        if one["type"] == "prometheus"
    ]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == source["uid"]
