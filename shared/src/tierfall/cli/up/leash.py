"""Run as a script on Linux: becomes the command that follows, which dies with the supervisor.

    python -I -S leash.py SUPERVISOR_PID COMMAND [ARGUMENT ...]

It asks the kernel for SIGKILL at its parent's death (prctl(2), PR_SET_PDEATHSIG: kept over execve) and then
replaces itself. A script between the two, since running Python code in the child of a fork is not safe once
the supervisor has threads. Imports the standard library alone: each process start pays for it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_FOUND_STATUS = 127
"""What a shell exits with when a command cannot be started."""


def main(arguments: list[str]) -> int:
    """Does not return when all goes well."""
    supervisor, command = int(arguments[0]), arguments[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it died before the line above
        return 1
    try:
        os.execvp(command[0], command)  # noqa: S606 - a program to become is this script's purpose
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    return NOT_FOUND_STATUS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
