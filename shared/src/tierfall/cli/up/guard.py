"""Run as a script: kills the process groups that a supervisor leaves behind when it is killed itself.

Reads lines from stdin, ``+GROUP`` for a group that was started and ``-GROUP`` for one that is gone. The end
of stdin means that the supervisor is no more: what is left gets SIGKILL. The leash ends the children
themselves; this ends their children too (an engine's own processes), and it is all there is where there is no
PR_SET_PDEATHSIG. Imports the standard library alone.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable


def groups_left(lines: Iterable[str]) -> set[int]:
    """Reads to the end and returns the groups that were started and never gone."""
    groups: set[int] = set()
    for line in lines:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    return groups


def main() -> int:
    """Returns 0 once every group that was left has its SIGKILL."""
    for group in groups_left(iter(sys.stdin.readline, "")):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
