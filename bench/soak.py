"""Mixed load and mixed faults for as long as you like: ``python bench/soak.py --minutes 10 --seed 1``.

Ends with status 1 when a request ends in neither a right answer nor a right error, or when anything is left
behind at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fakes.census import MIB
from fakes.soak import Soak

if TYPE_CHECKING:
    from fakes.census import Census, Memory


def told(counted: tuple[Census, Memory] | None) -> str:
    """One count in a line."""
    if counted is None:
        return "not counted"
    census, memory = counted
    held = ", ".join(f"{name} {value}" for name, value in census._asdict().items())
    return f"{held}, traced {memory.traced / MIB:.1f} MiB, RSS {memory.rss / MIB:.1f} MiB"


def main() -> int:
    """Soaks and reports; returns the exit status."""
    parser = argparse.ArgumentParser(description="Soak the whole gateway in faults.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    soak = Soak(asked.seed)
    left = asyncio.run(soak.run(asked.minutes * 60))
    tally = soak.tally
    print(f"{tally.requests:,} requests in {asked.minutes:g} minutes, seed {asked.seed}")
    print("\n".join(tally.lines()))
    print(f"before: {told(soak.before)}\nafter:  {told(soak.after)}")
    for line in (*tally.wrong[:20], *left):
        print(f"WRONG: {line}")
    return int(bool(tally.wrong or left or not tally.answers))


if __name__ == "__main__":
    sys.exit(main())
