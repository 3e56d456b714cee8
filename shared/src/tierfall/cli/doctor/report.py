"""The doctor's findings as text for people, or as JSON for machines."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from tierfall.cli.doctor.finding import Level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

    from tierfall.cli.doctor.finding import Finding

COLOURS: Final = {Level.OK: 32, Level.WARN: 33, Level.FAIL: 31}
"""SGR codes: green, yellow, red."""
LEVEL_WIDTH: Final = 4


def as_text(findings: Sequence[Finding], verdict: str, out: TextIO, environ: Mapping[str, str]) -> None:
    """One line for each finding, with what to type under it; in colour on a terminal, but for NO_COLOR."""
    colour = out.isatty() and not environ.get("NO_COLOR")
    width = max((len(finding.subject) for finding in findings), default=0)
    for finding in findings:
        level = finding.level.value.ljust(LEVEL_WIDTH)
        if colour:
            level = f"\x1b[{COLOURS[finding.level]}m{level}\x1b[0m"
        print(f"{level}  {finding.subject.ljust(width)}  {finding.text}", file=out)
        if finding.command:
            print(f"{' ' * (LEVEL_WIDTH + width + 4)}> {finding.command}", file=out)
    print(f"\n{verdict}", file=out)


def as_json(findings: Sequence[Finding], verdict: str, out: TextIO, *, well: bool) -> None:
    """One object: ``ok``, ``verdict``, and the ``findings`` in their order."""
    listed = [
        {
            "level": finding.level.value.lower(),
            "subject": finding.subject,
            "text": finding.text,
            "command": finding.command or None,
        }
        for finding in findings
    ]
    out.write(json.dumps({"ok": well, "verdict": verdict, "findings": listed}, indent=2) + os.linesep)
