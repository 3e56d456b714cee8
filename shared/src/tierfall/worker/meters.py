"""What a worker counts, by tier; the tiers' names are the config's, so their number is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from tierfall.protocol.operation import Operation
from tierfall.telemetry.metrics import BusCollector, Counts, Timings, new_registry, tier_gauge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from tierfall.bus import Bus
    from tierfall.worker.job import Job
    from tierfall.worker.station import Station

    Stations = Callable[[], Mapping[str, Station]]


class Meters:
    """The metrics of one worker process, in a registry of their own.

    Args:
        kind: The worker's kind, for ``tierfall_build_info``.
        bus: Whose counters are shown.
        stations: The tiers that are served at the moment.
    """

    def __init__(self, kind: str, bus: Bus, stations: Stations) -> None:
        registry = self.registry = new_registry(f"worker-{kind}")
        self._requests = Counts(
            "tierfall_worker_requests",
            "Attempts that this worker held, by tier and outcome.",
            "tier",
            "outcome",
        )
        self._first_output = Timings(
            "tierfall_worker_first_output_seconds",
            "From asking the backend to its first real output.",
            "tier",
        )
        self._tokens = Counts(
            "tierfall_worker_tokens", "Tokens of whole answers, as the backend counts them.", "tier", "kind"
        )
        for metric in (self._requests, self._first_output, self._tokens):
            registry.register(metric)
        registry.register(BusCollector(bus))
        registry.register(StationsCollector(stations))

    def finished(self, tier: str, job: Job) -> None:
        """A request has left its slot."""
        self._requests.add((tier, job.outcome))
        if job.first_output_s is not None and job.operation is not Operation.EMBEDDINGS:
            self._first_output.add((tier,), job.first_output_s)
        if job.ending is not None:
            self._tokens.add((tier, "prompt"), job.ending.prompt_tokens)
            self._tokens.add((tier, "completion"), job.ending.completion_tokens)


class StationsCollector(Collector):
    """Slots and backends, read from the stations when somebody asks."""

    def __init__(self, stations: Stations) -> None:
        self._stations = stations

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The stations as they are now."""
        stations = self._stations().items()
        yield tier_gauge(
            "tierfall_worker_slots",
            "Requests that this worker sends to the tier's backend at a time.",
            ((tier, station.slots) for tier, station in stations),
        )
        yield tier_gauge(
            "tierfall_worker_in_flight",
            "Requests that hold a slot.",
            ((tier, station.in_flight) for tier, station in stations),
        )
        yield tier_gauge(
            "tierfall_worker_backend_up",
            "Whether the last probe, or a request, found the backend up.",
            ((tier, station.health.state == "up") for tier, station in stations),
        )
