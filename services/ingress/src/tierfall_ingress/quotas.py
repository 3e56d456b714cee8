"""``GET /v1/quotas`` and the metrics of quotas: what is left, as far as it is known here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Header
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tierfall.quota import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastapi import FastAPI
    from prometheus_client.metrics_core import Metric

    from tierfall.quota import Standing, WindowStanding
    from tierfall_ingress.services import Services

    Labels = tuple[str, ...]

LABELS = ("tier", "key", "model", "metric", "window")


def add_quotas(api: FastAPI, services: Services) -> None:
    """Adds the route."""

    @api.get("/v1/quotas", tags=["models"], summary="What is left of the providers' quotas?")
    @api.get("/v1/quotas/", include_in_schema=False)
    async def list_quotas(
        authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> dict[str, Any]:
        caller = services.keys.caller(authorization)
        standings = services.quotas.standings()
        return {
            "object": "list",
            "data": [report(standing) for standing in standings if caller.may_use(standing.model)],
            "problem": services.quotas.problem or None,
        }


class QuotaCollector(Collector):
    """``tierfall_quota_*``, read from what the ingress follows when somebody asks."""

    def __init__(self, standings: Callable[[], list[Standing]]) -> None:
        self._standings = standings

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every window of every key, once; ``model`` is the provider's name, empty for all of a key's."""
        windows: dict[Labels, WindowStanding] = {}
        for standing in self._standings():
            for key in standing.keys:
                for window in key.windows:
                    labels: Labels = (
                        standing.tier,
                        key.key,
                        window.of,
                        str(window.metric),
                        str(window.window),
                    )
                    windows[labels] = window
        limit = GaugeMetricFamily("tierfall_quota_limit", "What a provider's key may use.", labels=LABELS)
        used = GaugeMetricFamily(
            "tierfall_quota_used", "What of it is used, requests under way included.", labels=LABELS
        )
        resets = GaugeMetricFamily(
            "tierfall_quota_resets_at_seconds",
            "Unix time at which it is whole again if nothing else is used.",
            labels=LABELS,
        )
        for labels, window in windows.items():
            limit.add_metric(labels, window.limit)
            used.add_metric(labels, window.used)
            if window.resets_at is not None:
                resets.add_metric(labels, window.resets_at)
        yield from (limit, used, resets)
