"""One fuzz target under libFuzzer, in a process of its own: ``bench/fuzz.py`` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

READERS = ("protocol", "chat", "upstream")

with atheris.instrument_imports(
    include=[
        *(f"tierfall.{name}" for name in READERS),
        "tierfall_ingress.ask",
        "tierfall_ingress.wire",
        "tierfall_worker_ollama.answer",
    ],
):
    from fakes.fuzz_targets import TARGETS

if __name__ == "__main__":
    _, target, *options = sys.argv
    atheris.Setup([sys.argv[0], *options], TARGETS[target].check)
    atheris.Fuzz()
