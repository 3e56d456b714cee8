"""``x-ratelimit-*``: what a client may still use, as OpenAI says it.

Of several windows the one with the least left is told. Reset is the time until all of it is there again, in
the notation of OpenAI's API: ``12ms``, ``1s``, ``6m0s``, ``13h5m20s``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tierfall.ledger import Limit, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall.ledger import Account
    from tierfall_ingress.wire import Header

_TOLD: Final = (Metric.REQUESTS, Metric.TOKENS)
_HOUR_MS: Final = 3_600_000
_MINUTE_MS: Final = 60_000
_SECOND_MS: Final = 1000


def rate_limit_headers(account: Account, limits: Iterable[Limit], at: float) -> list[Header]:
    """Headers for requests and tokens, as far as the key has limits of them.

    Args:
        account: The key's.
        limits: The key's.
        at: Unix seconds.
    """
    headers: list[Header] = []
    for metric in _TOLD:
        rooms = [
            (limit.amount - account.used(limit, at), limit) for limit in limits if limit.metric is metric
        ]
        if not rooms:
            continue
        left, limit = min(rooms, key=lambda room: room[0])
        headers.append((b"x-ratelimit-limit-%s" % metric.encode(), b"%d" % limit.amount))
        headers.append((b"x-ratelimit-remaining-%s" % metric.encode(), b"%d" % max(0, left)))
        until = max((limit.counts_until(cell.start) for cell in account.counting(limit, at)), default=at)
        if until != float("inf"):
            reset = duration(until - at).encode()
            headers.append((b"x-ratelimit-reset-%s" % metric.encode(), reset))
    return headers


def duration(seconds: float) -> str:
    """A time in OpenAI's notation, which is Go's: rounded up to whole milliseconds, ``0s`` for none."""
    left = max(0, -(-int(seconds * 1_000_000) // 1000))
    if left < _SECOND_MS:
        return f"{left}ms" if left else "0s"
    hours, left = divmod(left, _HOUR_MS)
    minutes, left = divmod(left, _MINUTE_MS)
    shown = f"{left / _SECOND_MS:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown
