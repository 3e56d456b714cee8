"""What the ingress counts. Label values are bounded: an unknown model is ``other``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from tierfall_ingress.ladder import Answer

SECONDS_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
FAILED_FROM: Final = 400


class Meters:
    """The metrics of one ingress process, in a registry of their own.

    The ``litellm_*`` names are those that dashboards made for a LiteLLM proxy read.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._requests = Counter(
            "tierfall_requests",
            "Chat requests, by model and HTTP status.",
            ["model", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "tierfall_request_seconds",
            "Chat requests, from first byte in to last byte out.",
            ["model"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._first_output = Histogram(
            "tierfall_first_output_seconds",
            "From a request's first byte to its answer's first real output, by the tier that answered.",
            ["tier"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._attempts = Counter(
            "tierfall_attempts", "Attempts, by tier and outcome.", ["tier", "outcome"], registry=registry
        )
        self._escalations = Counter(
            "tierfall_escalations",
            "Requests that went to a later tier, by the tier left and why.",
            ["tier", "reason"],
            registry=registry,
        )
        self._broken = Counter(
            "tierfall_broken_streams",
            "Streams that broke after their first output and were to be resumed, by tier and why.",
            ["tier", "reason"],
            registry=registry,
        )
        self.in_flight = Gauge("tierfall_in_flight", "Chat requests under way.", registry=registry)
        self._litellm_requests = Counter(
            "litellm_proxy_total_requests_metric",
            "As in a LiteLLM proxy: all requests.",
            ["requested_model"],
            registry=registry,
        )
        self._litellm_failed = Counter(
            "litellm_proxy_failed_requests_metric",
            "As in a LiteLLM proxy: failed requests.",
            ["requested_model"],
            registry=registry,
        )

    def attempted(self, tier: str, outcome: str) -> None:
        """An attempt ended: ``ok`` or an error's slug."""
        self._attempts.labels(tier, outcome).inc()

    def escalated(self, tier: str, reason: str) -> None:
        """A request left ``tier`` for a later one."""
        self._escalations.labels(tier, reason).inc()

    def broke(self, tier: str, reason: str) -> None:
        """A stream broke after its first output, and another attempt is to go on with it."""
        self._broken.labels(tier, reason).inc()

    def finished(self, model: str, status: int, took_s: float, answer: Answer | None) -> None:
        """A request is over."""
        self._requests.labels(model, status).inc()
        self._seconds.labels(model).observe(took_s)
        self._litellm_requests.labels(model).inc()
        if status >= FAILED_FROM:
            self._litellm_failed.labels(model).inc()
        if answer is not None:
            self._first_output.labels(answer.tier).observe(answer.first_output_s)
