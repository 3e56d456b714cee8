"""Why a wish was not granted: which window is spent, and until when."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, Self

from tierfall.ledger.limit import UTC, Limit, Metric, Window, zone_of

if TYPE_CHECKING:
    from tierfall.ledger.account import Bench

MILLIONTHS: Final = 1_000_000
_HOUR_S: Final = 3600
_MINUTE_S: Final = 60
_RESET: Final = {
    Window.MINUTE: "there is room again",
    Window.DAY: "it is reset at midnight ({}),",
    Window.MONTH: "it is reset on the first of the month ({}),",
}


class Spent(Exception):
    """A limit has no room, the pace is kept, or the provider wants to be left alone.

    Not of the error tree: what it means to a client is for whoever asked the ledger to say.

    Attributes:
        message: Which window is spent and when it is reset, for people.
        limit: The limit that has no room, if it is one.
        retry_after: Seconds until it may be granted; None when it never will be, as it is above a limit by
            itself or a total is used up.
        lasting: Whether waiting seconds will not help: a day, month or total is spent, not the rate too high.
    """

    def __init__(
        self, message: str, *, retry_after: float | None, lasting: bool, limit: Limit | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.lasting = lasting
        self.limit = limit

    @classmethod
    def of_limit(cls, limit: Limit, used: int, need: int, retry_after: float | None) -> Self:
        """The limit has ``used`` of its amount used and no room for ``need``."""
        about = limit.text + (f" for {limit.of}" if limit.of else "")
        if need > limit.amount:
            said = f"{limit.amount_text(need)} at once are above the limit of {about}"
        else:
            said = f"the limit of {about} is spent"
            if need > 1:
                scale = MILLIONTHS if limit.metric is Metric.COST else 1
                said += f" ({used / scale:.15g} used, {need / scale:.15g} asked for)"
            if retry_after is not None:
                said += f"; {_RESET[limit.window].format(limit.zone)} in {show_wait(retry_after)}"
        lasting = limit.window is not Window.MINUTE or retry_after is None
        return cls(said, retry_after=retry_after, lasting=lasting, limit=limit)

    @classmethod
    def paced(cls, every_s: float, wait_s: float) -> Self:
        """The next turn is that far away."""
        said = f"requests go {every_s:g} s apart and others are before it" if every_s else "no turn is free"
        return cls(f"{said}; its turn would come in {show_wait(wait_s)}", retry_after=wait_s, lasting=False)

    @classmethod
    def benched(cls, found: Bench, at: float) -> Self:
        """The provider has said so."""
        wait_s = found.until - at
        return cls(f"{found.why}; until then {show_wait(wait_s)}", retry_after=wait_s, lasting=found.lasting)


def show_wait(seconds: float) -> str:
    """``3 h 12 min``, ``4 min 5 s``, ``7 s``: rounded up to what is shown."""
    left = max(1, int(-(-seconds // 1)))
    if left >= _HOUR_S:
        minutes = -(-left // _MINUTE_S)
        return f"{minutes // _MINUTE_S} h {minutes % _MINUTE_S} min"
    if left >= _MINUTE_S:
        return f"{left // _MINUTE_S} min {left % _MINUTE_S} s"
    return f"{left} s"


def show_time(at: float, zone: str = UTC) -> str:
    """``2026-11-26 00:00 UTC``."""
    return f"{dt.datetime.fromtimestamp(at, zone_of(zone)):%Y-%m-%d %H:%M} {zone}"
