"""Renders a run's numbers as Markdown: ``python -m bench.report [FILE] [--into docs/performance.md]``.

With ``--into``, what stands between the page's two markers is replaced: its numbers come from the JSON.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.load import StreamReport, UnaryReport
from bench.peers import BEHIND
from bench.results import LATEST, Measured, Results, load_results
from bench.targets import SOAK, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"
NOTHING: Final = "-"


def unary(of: Callable[[UnaryReport], float]) -> Callable[[Measured], float]:
    """Looks into the report of unary requests."""

    def look(measured: Measured) -> float:
        assert isinstance(measured.report, UnaryReport)  # noqa: S101 - the case's kind says so
        return of(measured.report)

    return look


def streamed(of: Callable[[StreamReport], float]) -> Callable[[Measured], float]:
    """Looks into the report of streams."""

    def look(measured: Measured) -> float:
        assert isinstance(measured.report, StreamReport)  # noqa: S101 - the case's kind says so
        return of(measured.report)

    return look


class View:
    """One group of a run, as cells of tables."""

    def __init__(self, results: Results, group: str) -> None:
        self.results = results
        self.group = group

    def cases(self, kind: type) -> list[str]:
        """The cases with that kind of report, in their order."""
        ours = [each for each in self.results.measured if each.group == self.group]
        return list(dict.fromkeys(each.case for each in ours if isinstance(each.report, kind)))

    def systems(self, case: str) -> list[str]:
        """The systems that took part, in their order."""
        ours = [each for each in self.results.measured if (each.group, each.case) == (self.group, case)]
        return list(dict.fromkeys(each.system for each in sorted(ours, key=lambda each: each.round)))

    def median(
        self, case: str, system: str, of: Callable[[Measured], float], form: str = ",.0f", suffix: str = ""
    ) -> str:
        """The median over the rounds."""
        found = self.results.median(self.group, case, system, of)
        return NOTHING if found is None else f"{found:{form}}{suffix}"

    def over(
        self, case: str, system: str, base: str, of: Callable[[Measured], float], form: str = ",.2f"
    ) -> str:
        """The median of what a system has more than another one in the same round."""
        if system == base:
            return NOTHING
        found = self.results.paired(self.group, case, (system, base), lambda one, other: of(one) - of(other))
        return NOTHING if found is None else f"{found:{form}}"

    def cpu(self, case: str, system: str) -> str:
        """CPU per request or chunk; Tierfall's also by ingress, NATS and worker."""
        rounds = self.results.rounds(self.group, case, system)
        if not rounds or not rounds[0].cpu_s:
            return NOTHING
        total = self.median(case, system, lambda each: each.cpu_us)
        parts = ("ingress", "nats", "worker")
        if not any("ingress" in name for name in rounds[0].cpu_s):
            return total
        shares = [self.median(case, system, lambda each, p=part: _part(each, p)) for part in parts]  # type: ignore[misc]  # a lambda's default
        return f"{total} ({' + '.join(shares)})"

    def failures(self, case: str, system: str) -> str:
        """How many requests or streams went wrong, over all rounds."""
        rounds = self.results.rounds(self.group, case, system)
        return str(sum(len(each.report.failures) for each in rounds))


def _part(measured: Measured, part: str) -> float:
    spent = sum(cpu_s for name, cpu_s in measured.cpu_s.items() if part in name.removeprefix(measured.system))
    return spent * 1e6 / max(1, measured.count)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def unary_table(results: Results) -> str:
    """Unary requests by connections and system."""
    view = View(results, "systems")
    p50, p99 = unary(lambda report: report.p50_ms), unary(lambda report: report.p99_ms)
    rows = [
        [
            f"{case}, {system}",
            view.median(case, system, unary(lambda report: report.per_s)),
            view.median(case, system, p50, ".2f"),
            view.median(case, system, p99, ".2f"),
            view.over(case, system, "direct", p50),
            view.over(case, system, "direct", p99),
            view.cpu(case, system),
            view.median(case, system, lambda each: each.rss_mb) if system != "direct" else NOTHING,
            view.failures(case, system),
        ]
        for case in view.cases(UnaryReport)
        for system in view.systems(case)
    ]
    head = ["connections", "requests/s", "p50 ms", "p99 ms", "p50 added", "p99 added"]
    return table([*head, "CPU µs a request", "MB", "failed"], rows)


def stream_table(results: Results) -> str:
    """Streams by their number and system."""
    view = View(results, "systems")
    first = streamed(lambda report: report.first_p50_ms)
    rows = [
        [
            f"{case}, {system}",
            view.median(case, system, streamed(lambda report: report.per_s)),
            view.over(case, system, "direct", first),
            view.median(case, system, streamed(lambda report: report.gap_p50_ms), ".0f"),
            view.median(case, system, streamed(lambda report: report.gap_p99_ms), ".0f"),
            view.median(case, system, streamed(lambda report: report.gap_max_ms), ".0f"),
            view.median(
                case, system, streamed(lambda report: 100 * report.steady / report.streams), ".0f", " %"
            ),
            view.cpu(case, system),
            view.median(case, system, lambda each: each.rss_mb) if system != "direct" else NOTHING,
            view.failures(case, system),
        ]
        for case in view.cases(StreamReport)
        for system in view.systems(case)
    ]
    head = ["streams", "chunks/s", "first token added ms", "gap p50", "p99", "max", "no stall"]
    return table([*head, "CPU µs a chunk", "MB", "failed"], rows)


def fault_table(results: Results) -> str:
    """What a first tier at fault costs, over the healthy one alone."""
    view = View(results, "faults")
    rows = []
    for case in view.cases(UnaryReport):
        [measured] = results.rounds("faults", case, "tierfall")
        report = measured.report
        assert isinstance(report, UnaryReport)  # noqa: S101 - the case's kind says so
        times = (report.p50_ms, report.p99_ms, report.max_ms, report.mean_ms)
        words = BEHIND.get(case, "the healthy tier alone")
        rows.append(
            [
                words,
                *(f"{each:,.2f}" for each in times),
                str(report.requests),
                view.failures(case, "tierfall"),
            ]
        )
    return table(["first tier", "p50 ms", "p99", "max", "mean", "requests", "failed"], rows)


def compared_table(results: Results, group: str) -> str:
    """Variants of Tierfall next to each other."""
    view = View(results, group)
    rows = [
        [
            f"{case}, {system}",
            view.median(case, system, lambda each: each.report.per_s),
            view.cpu(case, system),
            view.median(case, system, lambda each: each.rss_mb),
            view.failures(case, system),
        ]
        for case in (*view.cases(UnaryReport), *view.cases(StreamReport))
        for system in view.systems(case)
    ]
    return table(["", "a second", "CPU µs each", "MB", "failed"], rows)


def soak_table(results: Results) -> str:
    """Memory by process, before and after."""
    rows = [
        [name, f"{each.rss_before_bytes[name] / 1e6:.1f}", f"{after / 1e6:.1f}", f"{each.count:,}"]
        for each in results.measured
        if (each.group, each.case) == SOAK
        for name, after in each.rss_bytes.items()
    ]
    return table(["process", "MB before", "MB after", "chunks"], rows)


def target_table(results: Results) -> str:
    """What Tierfall is held to."""
    rows = [
        [
            target.says,
            NOTHING if target.found is None else f"{target.found:,.2f}",
            f"{'≤' if target.is_most else '≥'} {target.limit:g}",
            "not measured" if target.found is None else ("yes" if target.is_met else "**no**"),
        ]
        for target in targets(results)
    ]
    return table(["target", "measured", "limit", "met"], rows)


def heading(results: Results) -> str:
    """When, where, what."""
    machine = results.machine
    numbers = {name.partition("-")[0]: number for name, number in results.versions.items()}
    versions = ", ".join(f"{name} {number}" for name, number in numbers.items())
    absent = "".join(f" Left out: {name} ({why})." for name, why in results.absent.items())
    rounds = max(each.round for each in results.measured) + 1
    return (
        f"{results.began}, {results.took_s / 60:.0f} minutes{', quick' if results.quick else ''}; "
        f"{machine.cores} cores ({machine.cpu}), {machine.memory_bytes / 2**30:.0f} GiB, "
        f"Linux {machine.kernel}, Python {machine.python} "
        f"({machine.python_ns:.0f} ns for an object and a call), load before {machine.load_before:g}. "
        f"{versions}.{absent} Medians of {rounds} rounds."
    )


def render(results: Results) -> str:
    """The whole report."""
    groups = {each.group for each in results.measured}
    parts = [
        heading(results),
        "### Targets\n\n" + target_table(results),
        "### Unary\n\n" + unary_table(results),
        "### Streams of 50 tokens a second\n\n" + stream_table(results),
        "### A first tier at fault\n\n" + fault_table(results),
    ]
    if "tracing" in groups:
        parts.append("### Tracing 10 % of requests\n\n" + compared_table(results, "tracing"))
    if "scaling" in groups:
        parts.append("### More processes\n\n" + compared_table(results, "scaling"))
    if "soak" in groups:
        parts.append("### Memory over a million chunks\n\n" + soak_table(results))
    return "\n\n".join(parts)


def main() -> None:
    """Prints the report, or puts it into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", default=LATEST)
    parser.add_argument("--into", type=Path, metavar="PAGE")
    asked = parser.parse_args()
    report = render(load_results(asked.file))
    if asked.into is None:
        print(report)
        return
    page = asked.into.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest:
        raise SystemExit(f"{os.fspath(asked.into)} has no line {BEGIN}")
    asked.into.write_text(f"{before}{BEGIN}\n{report}\n{END}{after}")


if __name__ == "__main__":
    main()
