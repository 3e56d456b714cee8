"""What Tierfall is held to, and what a run found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from bench.load import StreamReport, UnaryReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.results import Measured, Results

OURS: Final = "tierfall"
SOAK: Final = ("soak", "a million chunks")
"""The group and the case that show whether memory stays."""


class Target(msgspec.Struct, frozen=True):
    """One number and its limit.

    Attributes:
        says: What is measured, with its unit.
        found: None when it was not measured.
        limit: What it may be.
        is_most: Whether the limit is an upper one.
    """

    says: str
    found: float | None
    limit: float
    is_most: bool = True

    @property
    def is_met(self) -> bool:
        """Whether it was measured and is within its limit."""
        if self.found is None:
            return False
        return self.found <= self.limit if self.is_most else self.found >= self.limit


def targets(results: Results) -> list[Target]:
    """All of them; ratios and differences are within a round, then the median over the rounds."""

    def ratio(case: str, peer: str, of: Callable[[Measured], float]) -> float | None:
        return results.paired("systems", case, (OURS, peer), lambda one, other: of(one) / of(other))

    return [
        Target("CPU a unary request at 32 connections, times Ferro's", ratio("unary 32", "ferro", _cpu), 1.5),
        Target("CPU a chunk at 300 streams, times Ferro's", ratio("stream 300", "ferro", _cpu), 1.0),
        Target("gap p99 at 300 streams, times Ferro's", ratio("stream 300", "ferro", _gap_p99), 1.0),
        Target(
            "requests a second at 32 connections, times LiteLLM's",
            ratio("unary 32", "litellm", _per_s),
            25,
            is_most=False,
        ),
        Target(
            "most chunks a second, times LiteLLM's",
            _over(_most_chunks(results, OURS), _most_chunks(results, "litellm")),
            25,
            is_most=False,
        ),
        Target("p50 added at one connection, ms", _added(results), 2.0),
        Target("an absent tier at p50, ms", _fault(results, "absent"), 2.0),
        Target("streams with a stall above 250 ms, of 1,000", _stalled(results), 0),
        Target("the largest process, MB", _largest_mb(results), 100),
        Target("memory gained over a million chunks, MB", _gained_mb(results), 5),
    ]


def _cpu(measured: Measured) -> float:
    return measured.cpu_us


def _per_s(measured: Measured) -> float:
    return measured.report.per_s


def _gap_p99(measured: Measured) -> float:
    return measured.report.gap_p99_ms if isinstance(measured.report, StreamReport) else 0.0


def _p50(measured: Measured) -> float:
    return measured.report.p50_ms if isinstance(measured.report, UnaryReport) else 0.0


def _over(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _most_chunks(results: Results, system: str) -> float | None:
    """At the number of streams where the system delivers most."""
    found = [each for each in results.measured if isinstance(each.report, StreamReport)]
    cases = {each.case for each in found if (each.group, each.system) == ("systems", system)}
    rates = [results.median("systems", case, system, _per_s) for case in cases]
    return max((rate for rate in rates if rate is not None), default=None)


def _added(results: Results) -> float | None:
    return results.paired("systems", "unary 1", (OURS, "direct"), lambda one, other: _p50(one) - _p50(other))


def _fault(results: Results, fault: str) -> float | None:
    """What a first tier at fault adds to a healthy one's time."""
    healthy = results.median("faults", "healthy", OURS, _p50)
    found = results.median("faults", fault, OURS, _p50)
    return None if healthy is None or found is None else found - healthy


def _stalled(results: Results) -> float | None:
    def stalled(measured: Measured) -> float:
        report = measured.report
        return report.streams - report.steady if isinstance(report, StreamReport) else 0.0

    return results.median("systems", "stream 1000", OURS, stalled)


def _largest_mb(results: Results) -> float | None:
    ours = [each for each in results.measured if (each.group, each.system) == ("systems", OURS)]
    return max((rss / 1e6 for each in ours for rss in each.rss_bytes.values()), default=None)


def _gained_mb(results: Results) -> float | None:
    soak = [each for each in results.measured if (each.group, each.case) == SOAK]
    gains = [
        (after - each.rss_before_bytes[name]) / 1e6 for each in soak for name, after in each.rss_bytes.items()
    ]
    return max(gains, default=None)
