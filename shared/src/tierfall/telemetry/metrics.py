"""What the metrics of the ingress and of workers have in common."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from tierfall import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from tierfall.bus import Bus

SECONDS_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From an engine that is warm and near to the longest answer that a deadline allows."""
_BOUNDS: Final = (*(str(float(bound)) for bound in SECONDS_BUCKETS), "+Inf")

_BUS_HELP: Final = {
    "reconnects": "Connections to NATS made after the first.",
    "rebuilds": "Connections to NATS made because the server had ended one with an error.",
    "dropped": "Messages given up before they could be sent to NATS.",
    "slow_consumer": "Connections that NATS cut because this side read too slowly.",
    "callback_errors": "Defects of ours in the handling of messages.",
    "permission_violations": "Publishes and subscriptions that NATS refused to this user.",
    "oversize_refused": "Payloads above NATS's max_payload, refused before they were sent.",
}


class Counts(Collector):
    """A counter with labels that costs a request one look-up: it is made into samples when somebody asks.

    ``prometheus_client``'s own takes a lock and several calls each time, which adds up to more than the rest
    of what is done at a request's end. All of it happens on the event loop, so no lock is needed.

    Args:
        name: Without ``_total``.
        text: Its help.
        labels: Their names.
    """

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._values: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, labels: tuple[str, ...], amount: float = 1) -> None:
        """Counts ``amount`` under these label values."""
        self._values[labels] += amount

    def describe(self) -> Iterable[Metric]:
        """No samples, but the name, so that it is registered once."""
        yield CounterMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterable[Metric]:
        """A sample for each set of label values that has been counted."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


class Timings(Collector):
    """A histogram of seconds with labels, likewise.

    Args:
        name: As it is shown, before ``_bucket``, ``_sum`` and ``_count``.
        text: Its help.
        labels: Their names.
    """

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._series: defaultdict[tuple[str, ...], _Series] = defaultdict(_Series)

    def add(self, labels: tuple[str, ...], seconds: float) -> None:
        """Counts one duration under these label values."""
        series = self._series[labels]
        series.counts[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        series.sum_s += seconds

    def describe(self) -> Iterable[Metric]:
        """No samples, but the name, so that it is registered once."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterable[Metric]:
        """The buckets of each set of label values, cumulative as the format wants them."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, series in self._series.items():
            buckets = list(zip(_BOUNDS, accumulate(series.counts), strict=True))
            family.add_metric(labels, buckets, series.sum_s)
        yield family


class _Series:
    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BUCKETS) + 1)
        self.sum_s = 0.0


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
