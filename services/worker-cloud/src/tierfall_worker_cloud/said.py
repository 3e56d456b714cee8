"""What a provider's answer says about its limits, in its headers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tierfall.ledger import Word

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tierfall.ledger import Limit
    from tierfall_worker_cloud.providers import Gauge

MAX_DIGITS: Final = 15
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|d|h|m|s))+", re.ASCII)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}(?:\.\d+)?", re.ASCII)
_COUNT: Final = re.compile(rf"\d{{1,{MAX_DIGITS}}}", re.ASCII)
_UNIT_S: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def words(gauges: Iterable[Gauge], headers: Mapping[str, str], limits: Iterable[Limit]) -> Iterator[Word]:
    """What the headers say about limits of ours.

    A header's window is the one that the provider documents, unless the amount that it names is that of
    another of our limits: OpenAI's speak of a day where the account is limited by the day.

    Args:
        gauges: The provider's.
        headers: Names in lower case.
        limits: Those that applied to the request.
    """
    found = tuple(limits)
    for gauge in gauges:
        left = _count(headers, gauge.left)
        if left is None:
            continue
        ours = [limit for limit in found if limit.metric is gauge.metric]
        amount = _count(headers, gauge.limit)
        matching = [limit for limit in ours if limit.amount == amount]
        for limit in matching or [limit for limit in ours if limit.window is gauge.window]:
            yield Word(limit=limit, left=left, resets_in_s=seconds(headers.get(gauge.reset, "")))


def seconds(text: str) -> float | None:
    """Reads ``2m59.56s``, ``6ms``, ``1h2m3s`` or bare seconds; None for anything else."""
    if _SECONDS.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))


def _count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "") if name else ""
    return int(text) if _COUNT.fullmatch(text) else None
