"""How the tiers stand, as metrics: read from the roster when somebody asks, never while a request runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tierfall.config import CloudTier
from tierfall.telemetry.metrics import tier_gauge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from tierfall.config import Tier
    from tierfall_ingress.services import Services

HEALTHY: Final = 0
PARTIAL_OUTAGE: Final = 1
COMPLETE_OUTAGE: Final = 2
"""LiteLLM's own three values of ``litellm_deployment_state``."""


class StandingsCollector(Collector):
    """``tierfall_tier_*``, ``tierfall_waiting`` and ``litellm_deployment_state``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The configured tiers as they stand now."""
        services = self._services
        tiers = tuple(services.config.tiers)
        standings = {tier: services.roster.standing(tier) for tier in tiers}
        up = {
            tier: [beat for beat in standing.workers if beat.backend == "up"]
            for tier, standing in standings.items()
        }
        yield tier_gauge(
            "tierfall_waiting",
            "Requests that stand in line for a slot of the tier.",
            ((tier, len(services.rooms[tier])) for tier in tiers),
        )
        yield tier_gauge(
            "tierfall_tier_up",
            "Whether some worker of the tier has its backend up.",
            ((tier, bool(up[tier])) for tier in tiers),
        )
        yield tier_gauge(
            "tierfall_tier_benched",
            "Whether the tier is passed by because it did not answer lately.",
            ((tier, services.breakers[tier].is_open) for tier in tiers),
        )
        yield tier_gauge(
            "tierfall_tier_workers",
            "Workers of the tier that are there and not draining, whatever their backend does.",
            ((tier, len(standings[tier].workers)) for tier in tiers),
        )
        yield tier_gauge(
            "tierfall_tier_slots",
            "Requests that the tier's workers take at a time, of those whose backend is up.",
            ((tier, sum(beat.slots for beat in up[tier])) for tier in tiers),
        )
        yield tier_gauge(
            "tierfall_tier_slots_used",
            "Slots of the tier that are taken, by this ingress's requests and others'.",
            ((tier, sum(beat.in_flight for beat in up[tier])) for tier in tiers),
        )
        yield tier_gauge(
            "tierfall_tier_clock_skew_seconds",
            "How far the clock of the tier's worker that differs most is ahead of this ingress's.",
            (
                (tier, services.roster.skews.largest(beat.worker for beat in standings[tier].workers))
                for tier in tiers
            ),
        )
        yield self._deployments()

    def _deployments(self) -> Metric:
        family = GaugeMetricFamily(
            "litellm_deployment_state",
            "As in a LiteLLM proxy: 0 = healthy, 1 = partial outage, 2 = complete outage.",
            labels=["litellm_model_name", "model_id", "api_base", "api_provider"],
        )
        config = self._services.config
        for name, model in config.models.items():
            # Without its address: this page is open to whoever can reach the port.
            labels = [model.backend_model, name, "", _provider(config.tiers[model.tier])]
            family.add_metric(labels, self._state(model.tier))
        return family

    def _state(self, tier: str) -> int:
        standing = self._services.roster.standing(tier)
        if standing.state in {"down", "no_workers"}:
            return COMPLETE_OUTAGE
        whole = all(beat.backend == "up" for beat in standing.workers)
        return HEALTHY if whole and not self._services.breakers[tier].is_open else PARTIAL_OUTAGE


def _provider(tier: Tier) -> str:
    return tier.provider if isinstance(tier, CloudTier) else tier.kind
