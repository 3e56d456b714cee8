"""What may be used of something in how long, and how its use is counted in cells of time."""

from __future__ import annotations

import datetime as dt
import enum
import functools
import math
import zoneinfo
from typing import Final

import msgspec

MINUTE_S: Final = 60
SLICE_S: Final = 2
"""The minute is counted in slices of this length."""
SKEW_S: Final = 2
"""How far the clocks of two replicas may be apart before a minute could let too much through."""
LONGEST_DAY_S: Final = 26 * 3600
"""With room to spare: the day on which clocks are set back has 25 hours."""
LONGEST_MONTH_S: Final = 32 * 24 * 3600
UTC: Final = "UTC"


class Metric(enum.StrEnum):
    """What is counted, in whole numbers."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST = "cost"
    """Millionths of the currency of the price table."""


class Window(enum.StrEnum):
    """How long a count lasts."""

    MINUTE = "minute"
    """Any 60 seconds: it slides."""
    DAY = "day"
    """From midnight to midnight in the limit's time zone."""
    MONTH = "month"
    """From the first day's midnight to the next first day's."""
    TOTAL = "total"
    """For ever."""


class Limit(msgspec.Struct, frozen=True):
    """At most ``amount`` of ``metric`` within one ``window``.

    Attributes:
        metric: What is counted.
        amount: How much of it may be used.
        window: In how long.
        zone: IANA name of the time zone whose midnight begins a day or month.
        of: What in the scope is counted, such as one model of an account; empty for the scope as a whole.
    """

    metric: Metric
    amount: int
    window: Window
    zone: str = UTC
    of: str = ""

    @property
    def key(self) -> str:
        """Where an account keeps the count: two limits with the same key share it."""
        return f"{self.of}|{self.metric}/{self.window}"

    @property
    def text(self) -> str:
        """``30 requests a minute``."""
        per = "in total" if self.window is Window.TOTAL else f"a {self.window}"
        return f"{self.amount_text(self.amount)} {per}"

    def amount_text(self, amount: int) -> str:
        """``30 requests``; costs in units of the currency."""
        if self.metric is Metric.COST:
            return f"a cost of {amount / 1e6:g}"
        return f"{amount} {self.metric.removesuffix('s') if amount == 1 else self.metric}"

    @property
    def lasts_s(self) -> float:
        """No cell counts for longer, in seconds."""
        if self.window is Window.DAY:
            return LONGEST_DAY_S
        if self.window is Window.MONTH:
            return LONGEST_MONTH_S
        return MINUTE_S + SLICE_S + SKEW_S + 1 if self.window is Window.MINUTE else math.inf

    def cell_start(self, at: float) -> int:
        """The beginning, in Unix seconds, of the cell that counts what happens at ``at``."""
        if self.window is Window.MINUTE:
            return int(at // SLICE_S) * SLICE_S
        if self.window is Window.TOTAL:
            return 0
        return _period(self.window, self.zone, at)[0]

    def counts_until(self, start: int) -> float:
        """When the cell that begins at ``start`` counts no longer, in Unix seconds.

        A slice of the minute counts until its last moment is 60 s past on every replica's clock, so that no
        60 seconds ever hold more than the amount; what is given away for that is at most 4 s.
        """
        if self.window is Window.MINUTE:
            return start + SLICE_S + MINUTE_S + SKEW_S
        if self.window is Window.TOTAL:
            return math.inf
        return _period_end(self.window, self.zone, start)


@functools.lru_cache(maxsize=64)
def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of an IANA name.

    Raises:
        ValueError: There is none of that name.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone") from None


_last: dict[tuple[Window, str], tuple[int, float]] = {}
"""The latest period of each kind that somebody asked for: nearly always the one that is asked for next."""


def _period(window: Window, zone: str, at: float) -> tuple[int, float]:
    known = _last.get((window, zone))
    if known is None or not known[0] <= at < known[1]:
        known = _last[window, zone] = _calendar_period(window, zone_of(zone), at)
    return known


@functools.lru_cache(maxsize=1024)
def _period_end(window: Window, zone: str, start: int) -> float:
    """Of the period that begins then: an account holds several, and looks at all of them each time."""
    return _calendar_period(window, zone_of(zone), start)[1]


def _calendar_period(window: Window, zone: zoneinfo.ZoneInfo, at: float) -> tuple[int, float]:
    """Beginning and end of the day or month that ``at`` lies in; a zone's day may have 23 or 25 hours."""
    day = dt.datetime.fromtimestamp(at, zone).date()
    if window is Window.DAY:
        following = day + dt.timedelta(days=1)
    else:
        day = day.replace(day=1)
        following = (day + dt.timedelta(days=31)).replace(day=1)
    return int(_midnight(day, zone)), _midnight(following, zone)


def _midnight(day: dt.date, zone: zoneinfo.ZoneInfo) -> float:
    return dt.datetime.combine(day, dt.time(), zone).timestamp()
