"""The supervisor's end of the guard process, which outlives a supervisor that is killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

from tierfall.cli.up import guard

GUARD_ENDS_S: Final = 5.0


class Keeper:
    """Starts the guard and tells it of every process group; a context manager.

    Leaving it kills the groups that were started and are not gone: after an orderly stop there are none.
    """

    def __enter__(self) -> Self:
        script = str(Path(guard.__file__))
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-I", "-S", script], stdin=subprocess.PIPE, start_new_session=True, text=True
        )
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(GUARD_ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def started(self, group: int) -> None:
        """A process group to kill should the supervisor die."""
        self._tell(f"+{group}\n")

    def gone(self, group: int) -> None:
        """The group has ended; its number may be somebody else's soon."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        if self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):  # somebody killed the guard: the leash still holds
            self._process.stdin.write(line)
            self._process.stdin.flush()
