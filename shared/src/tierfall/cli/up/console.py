"""Where the output of all children comes together: one line at a time, each after its writer's name."""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

NAME_WIDTH: Final = 13
COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""SGR codes; red is left for trouble."""
BOLD: Final = 1

SUPERVISOR: Final = "tierfall"


class Console:
    """Writes prefixed lines, coloured on a terminal.

    Args:
        stream: Where they go; a stream that broke (the reader is gone) is no reason to stop serving.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.terminal = stream.isatty()
        self._colour = self.terminal and os.environ.get("NO_COLOR", "") == ""

    def say(self, text: str) -> None:
        """A word of the supervisor itself."""
        for line in text.splitlines() or [""]:
            self._write(self._prefix(SUPERVISOR, BOLD) + line)

    def line(self, name: str, text: str) -> None:
        """A line of the child ``name``."""
        self._write(self._prefix(name, COLOURS[zlib.crc32(name.encode()) % len(COLOURS)]) + text)

    def hung_up(self) -> bool:
        """Whether this was a terminal and its window is closed now."""
        return self.terminal and not os.isatty(self._stream.fileno())

    def _prefix(self, name: str, code: int) -> str:
        padded = f"{name:<{NAME_WIDTH}} |"
        return f"\x1b[{code}m{padded}\x1b[0m " if self._colour else f"{padded} "

    def _write(self, line: str) -> None:
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._write_to_nobody()

    def _write_to_nobody(self) -> None:
        """What is left in the stream's buffer would fail once more at the exit, and spoil its status."""
        with contextlib.suppress(OSError, ValueError):
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, self._stream.fileno())
            os.close(nobody)
