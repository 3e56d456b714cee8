"""Asks a running Prometheus every question of the dashboard, of the alerts and of what scales on metrics.

    .venv/bin/python -m deploy.checks.queries --prometheus http://127.0.0.1:9090

A line each, with what comes back; the exit status is 0 when every question can be answered. To be empty is no
fault of a question about what has not happened yet, or about labels that nothing has here; what something is
scaled by must have a value.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

import yaml

from deploy.checks import web

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "dashboards" / "tierfall.json"
SCALERS: Final = ROOT / "k8s" / "components" / "keda" / "scaledobjects.yaml"
RATE_INTERVAL: Final = "1m"
"""What Grafana puts for ``$__rate_interval`` with a scrape every 10 s is not shorter than this."""
SETTLED: Final = "1m"
"""A series that is younger may have no rate yet."""
SCALER: Final = "scaler "
SHOWN: Final = 3
"""Samples of an answer that are printed."""
NAME: Final = re.compile(r"\b(?:tierfall|litellm)_[a-z0-9_]+")
SUFFIX: Final = re.compile(r"_(?:total|bucket|sum|count)$")
SERIES: Final = re.compile(r"\b(?:tierfall|litellm)_[a-z0-9_]+(?:\{[^}]*\})?")
COMPARES: Final = re.compile(r"==|!=|<|>|\babsent\b|\bunless\b")
_SUMMARY: Final = "Asks a running Prometheus every question of the dashboard, the alerts and the scalers."


class Question(NamedTuple):
    """A PromQL expression, and where it stands."""

    where: str
    expression: str


class Prometheus:
    """A running Prometheus.

    Args:
        url: Its address.
    """

    def __init__(self, url: str) -> None:
        self._api = f"{url.rstrip('/')}/api/v1"

    def ask(self, expression: str) -> list[Any]:
        """The samples of a vector, now.

        Raises:
            ValueError: Prometheus does not understand it, and says so in the text.
        """
        result = self._data("query", query=expression)["result"]
        return [{"metric": {}, "value": result}] if result and not isinstance(result[0], dict) else result

    def families(self) -> set[str]:
        """The metrics that its targets export, those without a series too."""
        return {SUFFIX.sub("", name) for name in self._data("metadata")}

    def alerts(self) -> Iterator[Question]:
        """Those of its rules that alert."""
        for group in self._data("rules", type="alert")["groups"]:
            for rule in group["rules"]:
                yield Question(f"alert {rule['name']}", rule["query"])

    def _data(self, what: str, **parameters: str) -> Any:
        _, _, answer = web.ask(f"{self._api}/{what}?{urlencode(parameters)}")
        if answer.get("status") != "success":
            raise ValueError(str(answer.get("error")))
        return answer["data"]


def written() -> Iterator[Question]:
    """The questions that stand in this repository and not in Prometheus's own config."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
            yield Question(f"panel {panel['title']}", expression)
    for scaled in yaml.safe_load_all(SCALERS.read_text()):
        for trigger in scaled["spec"]["triggers"]:
            yield Question(f"{SCALER}{scaled['metadata']['name']}", trigger["metadata"]["query"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; the exit status is 0 (every question can be answered), 1 or 2 (nobody to ask)."""
    parser = argparse.ArgumentParser(prog="python -m deploy.checks.queries", description=_SUMMARY)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="default: %(default)s")
    prometheus = Prometheus(parser.parse_args(arguments).prometheus)
    try:
        alerts, families = list(prometheus.alerts()), prometheus.families()
        wrong = 0 if alerts else 1
        if not alerts:
            print("WRONG  it has no alert rules: rule_files must name deploy/prometheus/alerts.yaml")
        for question in (*written(), *alerts):
            fault, told = _judged(prometheus, question, families)
            print(f"{'WRONG' if fault else 'ok':<6} {question.where}: {fault or told}")
            wrong += bool(fault)
    except web.Unreachable as error:
        print(f"nobody to ask: {error}", file=sys.stderr)
        return 2
    return 1 if wrong else 0


def _judged(prometheus: Prometheus, question: Question, families: set[str]) -> tuple[str, str]:
    """What is wrong with a question, else what comes back."""
    names = set(NAME.findall(question.expression))
    if unknown := {name for name in names if not {name, SUFFIX.sub("", name)} & families}:
        return f"no target exports {', '.join(sorted(unknown))}", ""
    try:
        samples = prometheus.ask(question.expression)
        return ("", _shown(samples)) if samples else _empty(prometheus, question)
    except ValueError as error:
        return f"{error}: {question.expression}", ""


def _empty(prometheus: Prometheus, question: Question) -> tuple[str, str]:
    """What is wrong with a question of which nothing comes, else why that is right."""
    if question.where.startswith(SCALER):
        return f"nothing comes of it, and it scales by it: {question.expression}", ""
    series = dict.fromkeys(SERIES.findall(question.expression))
    if absent := [one for one in series if not prometheus.ask(f"count({one} offset {SETTLED})")]:
        return "", f"nothing, as a minute ago there was no {' and no '.join(absent)}"
    if COMPARES.search(re.sub(r"\{[^}]*\}", "", question.expression)):
        return "", "nothing, as it is not so"
    return f"the series are there, and nothing comes of them: {question.expression}", ""


def _shown(samples: Sequence[Any]) -> str:
    told = []
    for sample in samples[:SHOWN]:
        labels = ",".join(value for _, value in sorted(sample["metric"].items()))
        told.append(f"{labels}={sample['value'][1]}" if labels else str(sample["value"][1]))
    more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
    return f"{', '.join(told)}{more}"


if __name__ == "__main__":
    sys.exit(main())
