"""What a spent quota means to the ladder and to a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierfall.errors import QuotaExhausted, RateLimited

if TYPE_CHECKING:
    from tierfall.ledger import Spent


def as_error(spent: Spent) -> QuotaExhausted | RateLimited:
    """A day, month or total that is spent is not worth another try; a minute is, after ``retry_after``."""
    if spent.lasting:
        return QuotaExhausted(spent.message, retry_after=spent.retry_after, should_retry=False)
    return RateLimited(spent.message, retry_after=spent.retry_after)
