"""What the metrics of the ingress and of workers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tierfall import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from tierfall.bus import Bus

SECONDS_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From an engine that is warm and near to the longest answer that a deadline allows."""

_BUS_HELP: Final = {
    "reconnects": "Connections to NATS made after the first.",
    "rebuilds": "Connections to NATS made because the server had ended one with an error.",
    "dropped": "Messages given up before they could be sent to NATS.",
    "slow_consumer": "Connections that NATS cut because this side read too slowly.",
    "callback_errors": "Defects of ours in the handling of messages.",
    "permission_violations": "Publishes and subscriptions that NATS refused to this user.",
    "oversize_refused": "Payloads above NATS's max_payload, refused before they were sent.",
}


M = TypeVar("M", Counter, Gauge, Histogram)


class Labelled(Generic[M]):
    """A metric with labels, whose children are looked up in a dict: ``labels()`` takes a lock each time."""

    __slots__ = ("_children", "_metric")

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._children: dict[tuple[str, ...], M] = {}

    def __call__(self, *values: str) -> M:
        """The child with these label values."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child


def new_registry(service: str) -> CollectorRegistry:
    """A registry of its own, with the process's memory, CPU and files (on Linux) and its version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    build = Gauge(
        "tierfall_build_info",
        "Always 1; the labels say what runs.",
        ["service", "version"],
        registry=registry,
    )
    build.labels(service, __version__).set(1)
    return registry


def tier_gauge(name: str, text: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    """A gauge with the one label ``tier``."""
    family = GaugeMetricFamily(name, text, labels=["tier"])
    for tier, value in values:
        family.add_metric([tier], value)
    return family


class BusCollector(Collector):
    """``tierfall_bus_*``: read from the bus's own counters when somebody asks."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The counters, and whether the bus is connected now."""
        yield GaugeMetricFamily(
            "tierfall_bus_connected", "Whether this process is connected to NATS.", self._bus.connected
        )
        for name, text in _BUS_HELP.items():
            yield CounterMetricFamily(f"tierfall_bus_{name}", text, getattr(self._bus.counters, name))
