"""Measures Tierfall next to other gateways: ``python -m bench.run [--quick]``.

Prints the report, writes it with every single number to ``bench/results/latest.json`` (``quick.json``) and
draws ``latest.svg`` (``quick.svg``) beside it. How it measures is said in ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import platform
import resource
import signal
import subprocess
import sys
import time
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from bench.installs import BENCH, ROOT, NotInstallable
from bench.load import Load, StreamReport, UnaryReport
from bench.peers import Place, System, backend
from bench.plan import WARM_UP, Group, full, quick
from bench.plot import draw
from bench.report import render
from bench.results import LATEST, QUICK, Machine, Measured, Results, save_results

if TYPE_CHECKING:
    from collections.abc import Iterator

CALM_S: Final = 0.3
"""Between two loads, for what the first one leaves behind: closing connections, collecting garbage."""
BUSY: Final = 1.0
STOPPED: Final = 128 + signal.SIGTERM
FILES: Final = 65536
"""A thousand streams through a gateway are thousands of sockets."""
SPINS: Final = 200_000
"""Of the loop that tells how fast the interpreter is: 25 ms."""
PLACE: Final = BENCH / "run"


def send(load: Load, system: System) -> UnaryReport | StreamReport:
    """Runs the load generator against one system."""
    asked = msgspec.json.encode(msgspec.structs.replace(load, ports=system.ports))
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"], input=asked, stdout=subprocess.PIPE, check=True, cwd=ROOT
    )
    return msgspec.json.decode(done.stdout, type=UnaryReport | StreamReport)


def measure(group: Group, case: str, system: System, number: int) -> Measured:
    """One load against one system, with what it cost."""
    time.sleep(CALM_S)
    before = {process.name: process.used() for process in system.processes}
    report = send(group.loads[case], system)
    after = {process.name: process.used() for process in system.processes}
    for process in system.processes:
        process.check()
    return Measured(
        group=group.name,
        case=case,
        system=system.name,
        round=number,
        report=report,
        cpu_s={name: round(used.cpu_s - before[name].cpu_s, 2) for name, used in after.items()},
        rss_bytes={name: used.rss_bytes for name, used in after.items()},
        rss_before_bytes={name: used.rss_bytes for name, used in before.items()},
    )


def alternate(group: Group, systems: list[System]) -> Iterator[Measured]:
    """Every load in rounds; another system begins each round, so that none always goes first."""
    for system in systems:
        for load in WARM_UP:
            send(load, system)
    for case, load in group.loads.items():
        for number in range(group.rounds):
            turn = number % len(systems)
            for system in systems[turn:] + systems[:turn]:
                if load.kind == "unary" or load.size <= system.max_streams:
                    found = measure(group, case, system, number)
                    say(found)
                    yield found


def say(found: Measured) -> None:
    """One line for whoever waits."""
    report = found.report
    unit = "request" if isinstance(report, UnaryReport) else "chunk"
    what = f"{found.group}: {found.case:16} {found.system:20}"
    print(
        f"{what} {report.per_s:8.0f}/s {found.cpu_us:7.0f} µs/{unit}",
        *dict.fromkeys(report.failures),
        sep="  ",
        file=sys.stderr,
    )


def start(group: Group, place: Place, stack: contextlib.ExitStack, absent: dict[str, str]) -> list[System]:
    """Starts a group's systems; notes those that cannot be had."""
    systems = []
    for name, begin in group.starts.items():
        if name in absent:
            continue
        try:
            systems.append(stack.enter_context(begin(place)))
        except NotInstallable as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            absent[name] = str(error)
    return systems


def run(groups: list[Group], *, is_quick: bool) -> Results:
    """All groups, one after the other."""
    began = time.monotonic()
    began_at = dt.datetime.now(dt.UTC)
    machine = look()
    absent: dict[str, str] = {}
    versions: dict[str, str] = {}
    measured: list[Measured] = []
    PLACE.mkdir(parents=True, exist_ok=True)
    for group in groups:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(backend(PLACE))
            systems = start(group, place, stack, absent)
            versions |= {system.name: system.version for system in systems if system.version}
            measured.extend(alternate(group, systems))
    return Results(
        began=began_at.isoformat(timespec="seconds"),
        took_s=round(time.monotonic() - began, 1),
        quick=is_quick,
        machine=machine,
        versions=versions,
        absent=absent,
        measured=measured,
    )


def look() -> Machine:
    """The machine, and a word to whoever runs it while it is busy."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    models = [
        line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")
    ]
    load_before = os.getloadavg()[0]
    if load_before > BUSY:
        print(f"The machine is busy (load {load_before:.1f}): these numbers say little.", file=sys.stderr)
    return Machine(
        cores=os.cpu_count() or 1,
        cpu=models[0] if models else platform.machine(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        python_ns=python_ns(),
        load_before=round(load_before, 2),
    )


def python_ns() -> float:
    """How fast this interpreter is, in nanoseconds for an object made and a method called."""
    timer = timeit.Timer("Probe(1).read()", globals={"Probe": _Probe})
    return min(timer.repeat(repeat=9, number=SPINS)) / SPINS * 1e9


class _Probe:
    __slots__ = ("_value",)

    def __init__(self, value: int) -> None:
        self._value = value

    def read(self) -> int:
        return self._value


def main() -> None:
    """Runs, reports, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under 3 minutes, Tierfall and Ferro alone")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the numbers go")
    parser.add_argument("--only", metavar="GROUP", help="one part alone; needs --out")
    asked = parser.parse_args()
    if asked.only and not asked.out:
        parser.error("--only needs --out: a part does not replace the whole")
    groups = [group for group in (quick() if asked.quick else full()) if asked.only in {None, group.name}]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # what was started is stopped on the way out
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    out = asked.out or (QUICK if asked.quick else LATEST)
    results = run(groups, is_quick=asked.quick)
    save_results(results, out)
    out.with_suffix(".svg").write_text(draw(results))
    print(render(results))


if __name__ == "__main__":
    main()
