"""A key's limits as the ledger has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierfall.ledger import Limit, Metric, Window

if TYPE_CHECKING:
    from tierfall.config import Limits


def ledger_limits(limits: Limits) -> tuple[Limit, ...]:
    """All of them: requests, then tokens, then money."""
    rates = (
        (Metric.REQUESTS, limits.requests),
        (Metric.TOKENS, limits.tokens),
        (Metric.COST, limits.budget),
    )
    return tuple(
        Limit(metric, rate.amount, Window(rate.window), limits.timezone)
        for metric, found in rates
        for rate in found
    )
