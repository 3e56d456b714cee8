"""What a run of the bench found, as it is written to ``bench/results/latest.json``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from bench.load import StreamReport, UnaryReport

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER: Final = Path(__file__).parent / "results"
LATEST: Final = FOLDER / "latest.json"
QUICK: Final = FOLDER / "quick.json"


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What it ran on."""

    cores: int
    cpu: str
    memory_bytes: int
    kernel: str
    python: str
    python_ns: float
    """What an object and a call of its method take: builds of one version differ by a quarter."""
    load_before: float
    """Processes that wanted a core in the minute before; above 1 the numbers are not to be trusted."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One load against one system.

    Attributes:
        group: Which part of the bench.
        case: Which load, as ``unary 32``.
        round: Counted from 0; in each, every system gets the same load, one after the other.
        cpu_s: CPU time by process, of the system's own.
        rss_bytes: Memory by process when the load ends.
        rss_before_bytes: Memory by process when it begins.
    """

    group: str
    case: str
    system: str
    round: int
    report: UnaryReport | StreamReport
    cpu_s: dict[str, float]
    rss_bytes: dict[str, int]
    rss_before_bytes: dict[str, int]

    @property
    def cpu_us(self) -> float:
        """CPU time per request or per chunk, of all processes together."""
        return sum(self.cpu_s.values()) * 1e6 / max(1, self.count)

    @property
    def count(self) -> int:
        """Requests, or chunks."""
        report = self.report
        return report.requests if isinstance(report, UnaryReport) else report.tokens

    @property
    def rss_mb(self) -> float:
        """Memory of all processes together, in MB (10^6 bytes)."""
        return sum(self.rss_bytes.values()) / 1e6


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    began: str
    """Date and time, in UTC."""
    took_s: float
    quick: bool
    machine: Machine
    versions: dict[str, str]
    absent: dict[str, str]
    """Peers that could not be had, and why."""
    measured: list[Measured]

    def rounds(self, group: str, case: str, system: str) -> list[Measured]:
        """One system's rounds of one load, in order; empty when it was not measured."""
        return [
            each for each in self.measured if (each.group, each.case, each.system) == (group, case, system)
        ]

    def median(self, group: str, case: str, system: str, of: Callable[[Measured], float]) -> float | None:
        """The median over the rounds; None when there were none."""
        found = [of(each) for each in self.rounds(group, case, system)]
        return statistics.median(found) if found else None

    def paired(
        self,
        group: str,
        case: str,
        systems: tuple[str, str],
        of: Callable[[Measured, Measured], float],
    ) -> float | None:
        """The median over the rounds of what compares two systems in the same round."""
        pairs = zip(*(self.rounds(group, case, system) for system in systems), strict=True)
        try:
            found = [of(one, other) for one, other in pairs]
        except ValueError:  # one of them was not measured
            return None
        return statistics.median(found) if found else None


def load_results(path: Path) -> Results:
    """Reads what :func:`save_results` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def save_results(results: Results, path: Path) -> None:
    """Writes readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
