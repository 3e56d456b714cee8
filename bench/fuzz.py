"""Coverage-guided fuzzing of what reads foreign bytes: ``python bench/fuzz.py sse frames --minutes 10``.

Runs each target of ``tests/fakes/fuzz_targets.py`` in a process of its own, on libFuzzer. What it learns is
kept in ``.fuzz/`` for the next run. An input that breaks a promise is written there, and the status is 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fakes.fuzz_targets import TARGETS, TOKENS

HOME: Final = Path(__file__).parent.parent / ".fuzz"
PLAY: Final = Path(__file__).with_name("fuzz_play.py")
MAX_INPUT_BYTES: Final = 4096
HANG_S: Final = 10
"""An input that takes so long is a defect too."""
RSS_LIMIT_MB: Final = 1024
STATISTIC: Final = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
COVERAGE: Final = re.compile(r"cov: (\d+)")
QUOTED_CHARS: Final = 4000
"""Of a finding's report."""


class Result(NamedTuple):
    """What one target's run came to."""

    inputs: int
    per_second: int
    coverage: int
    """Edges of the instrumented code that were reached."""
    corpus: int
    """Inputs kept because each reached something new."""
    finding: str
    """The end of its report; empty when nothing was found."""


def fuzz(name: str, seconds: int) -> Result:
    """Fuzzes one target in a process of its own."""
    home = HOME / name
    corpus = home / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = home / "words"
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in TOKENS))
    options = [
        str(corpus),
        f"-dict={words}",
        f"-artifact_prefix={home}/",
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        "-print_final_stats=1",
    ]
    log = home / "log"
    with log.open("wb") as out:
        command = [sys.executable, str(PLAY), name, *options]
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode  # noqa: S603 - ourselves
    text = log.read_text(errors="replace")
    found = dict(STATISTIC.findall(text))
    return Result(
        inputs=int(found.get("number_of_executed_units", 0)),
        per_second=int(found.get("average_exec_per_sec", 0)),
        coverage=max((int(each) for each in COVERAGE.findall(text)), default=0),
        corpus=len(list(corpus.iterdir())),
        finding=text[-QUOTED_CHARS:] if status else "",
    )


def _escaped(token: str) -> str:
    return token.replace("\\", "\\\\").replace('"', '\\"')


def main() -> int:
    """Fuzzes and reports; returns the exit status."""
    parser = argparse.ArgumentParser(description="Fuzz what reads foreign bytes.")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    asked = parser.parse_args()
    unknown = set(asked.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    print("| target | inputs | a second | edges reached | corpus | found |\n|---|---:|---:|---:|---:|---|")
    findings = {}
    for name in asked.targets or TARGETS:
        result = fuzz(name, round(asked.minutes * 60))
        told = "an input, see below" if result.finding else "nothing"
        numbers = f"{result.inputs:,} | {result.per_second:,} | {result.coverage:,} | {result.corpus:,}"
        print(f"| {name} | {numbers} | {told} |", flush=True)
        if result.finding:
            findings[name] = result.finding
    for name, finding in findings.items():
        print(f"\n{name}, the input is in {HOME / name}:\n{finding}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
