"""What the ingress counts. Label values are bounded: an unknown model is ``other``.

The ``litellm_*`` names are those that dashboards made for a LiteLLM proxy read, with the labels that have a
meaning here; keys, teams and users have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Gauge

from tierfall.protocol.operation import Operation
from tierfall.telemetry.metrics import BusCollector, Counts, Timings, new_registry
from tierfall_ingress.quotas import QuotaCollector
from tierfall_ingress.standings import StandingsCollector
from tierfall_ingress.store import StoreCollector

if TYPE_CHECKING:
    from tierfall.protocol.envelope import Ending
    from tierfall_ingress.ladder import Answer
    from tierfall_ingress.services import Services

FAILED_FROM: Final = 400


class Meters:
    """The metrics of one ingress process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = new_registry("ingress")
        self.in_flight = 0
        """Chat requests under way."""
        Gauge("tierfall_in_flight", "Chat requests under way.", registry=self.registry).set_function(
            lambda: self.in_flight
        )
        self._requests = self._counter(
            "tierfall_requests",
            "Requests, by model asked for, by what of it, and by HTTP status.",
            "model",
            "operation",
            "status",
        )
        self._seconds = self._histogram(
            "tierfall_request_seconds", "Requests, from first byte in to last byte out.", "model"
        )
        self._first_output = self._histogram(
            "tierfall_first_output_seconds",
            "From a request's first byte to its answer's first real output, by the tier that answered.",
            "tier",
        )
        self._attempts = self._counter(
            "tierfall_attempts", "Attempts, by tier and outcome.", "tier", "outcome"
        )
        self._escalations = self._counter(
            "tierfall_escalations",
            "Requests that went to a later tier, by the tier left and why.",
            "tier",
            "reason",
        )
        self._broken = self._counter(
            "tierfall_broken_streams",
            "Streams that broke after their first output and were to be resumed, by tier and why.",
            "tier",
            "reason",
        )
        self._tokens = self._counter(
            "tierfall_tokens",
            "Tokens as the backends count them, by the model that answered.",
            "model",
            "kind",
        )
        self._limited = self._counter(
            "tierfall_key_refusals",
            "Requests refused because a client key's own limit was spent, by what is limited in how long.",
            "metric",
            "window",
        )
        self._add_litellm()

    def _add_litellm(self) -> None:
        self._litellm_requests = self._counter(
            "litellm_proxy_total_requests_metric",
            "As in a LiteLLM proxy: all requests.",
            "requested_model",
        )
        self._litellm_failed = self._counter(
            "litellm_proxy_failed_requests_metric",
            "As in a LiteLLM proxy: failed requests.",
            "requested_model",
        )
        self._litellm_latency = self._histogram(
            "litellm_request_total_latency_metric",
            "As in a LiteLLM proxy: seconds that answered requests took.",
            "requested_model",
            "model",
        )
        self._litellm_first_token = self._histogram(
            "litellm_llm_api_time_to_first_token_metric",
            "As in a LiteLLM proxy: seconds from asking the backend that answered to its first output.",
            "requested_model",
            "model",
        )

    def watch(self, services: Services) -> None:
        """Adds what is read from the bus, the roster and the waiting rooms when somebody asks."""
        self.registry.register(BusCollector(services.bus))
        self.registry.register(StandingsCollector(services))
        self.registry.register(QuotaCollector(services.quotas.standings))
        self.registry.register(StoreCollector(services.store))
        Gauge(
            "tierfall_request_body_bytes", "Bytes of request bodies in memory.", registry=self.registry
        ).set_function(lambda: services.body_memory.held_bytes)

    def attempted(self, tier: str, outcome: str) -> None:
        """An attempt ended: ``ok`` or an error's slug."""
        self._attempts.add((tier, outcome))

    def escalated(self, tier: str, reason: str) -> None:
        """A request left ``tier`` for a later one."""
        self._escalations.add((tier, reason))

    def broke(self, tier: str, reason: str) -> None:
        """A stream broke after its first output, and another attempt is to go on with it."""
        self._broken.add((tier, reason))

    def limited(self, metric: str, window: str) -> None:
        """A client key's limit had no room."""
        self._limited.add((metric, window))

    def finished(
        self,
        model: str,
        operation: Operation,
        status: int,
        *,
        took_s: float,
        answer: Answer | None,
        ending: Ending | None,
    ) -> None:
        """A request is over.

        Args:
            model: What was asked for; ``other`` for what is not configured.
            operation: What of it. Embeddings have no first output that would tell how quick a model begins.
            status: The HTTP status, or the one that an error would have had that came after the first byte.
            took_s: Seconds from its first byte to its answer's last.
            answer: Whose it was, if anybody's.
            ending: What its worker said at its end, if it came to one.
        """
        self._requests.add((model, operation.value, str(status)))
        self._seconds.add((model,), took_s)
        self._litellm_requests.add((model,))
        if status >= FAILED_FROM:
            self._litellm_failed.add((model,))
        if answer is None:
            return
        generated = operation is not Operation.EMBEDDINGS
        if generated:
            self._first_output.add((answer.tier,), answer.first_output_s)
        if status < FAILED_FROM:
            self._litellm_latency.add((model, answer.model), took_s)
            if generated:
                self._litellm_first_token.add((model, answer.model), answer.attempt_output_s)
        if ending is not None:
            self._tokens.add((answer.model, "prompt"), ending.prompt_tokens)
            self._tokens.add((answer.model, "completion"), ending.completion_tokens)

    def _counter(self, name: str, text: str, *labels: str) -> Counts:
        counts = Counts(name, text, *labels)
        self.registry.register(counts)
        return counts

    def _histogram(self, name: str, text: str, *labels: str) -> Timings:
        timings = Timings(name, text, *labels)
        self.registry.register(timings)
        return timings
