"""Starts the embedded NATS again when its store could not be written, as soon as there is room on the disk.

nats-server keeps a stream whose file it could not write closed for writing until it is started again, also
when there is room by then; nothing else that it offers opens the stream.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tierfall.cli.up.console import Console

WRITE_ERROR: Final = re.compile(
    r"failed to store a msg on stream|[Cc]ritical write error|JetStream out of .* resources"
)
"""What nats-server logs when it could not write, with the system's own reason."""
ROOM_BYTES: Final = 4 * 1024 * 1024
"""With less than this on its disk a new start would soon end in the same error."""
LOOK_EVERY_S: Final = 1.0
FIRST_REST_S: Final = 10.0
"""How long a second start waits at the least; doubles up to :data:`LONGEST_REST_S`, as it may not help."""
LONGEST_REST_S: Final = 600.0
STEADY_S: Final = 3600.0
"""After so long without an error the next one is the first again."""


class StoreGuard:
    """Reads nats-server's log for write errors.

    Args:
        store: The store's folder.
        console: Where it says what it does.
        restart: Ends nats-server, which is kept alive, so that it starts again.
        first_rest_s: See :data:`FIRST_REST_S`.
    """

    def __init__(
        self,
        store: Path,
        console: Console,
        restart: Callable[[], None],
        *,
        first_rest_s: float = FIRST_REST_S,
    ) -> None:
        self._store = store
        self._console = console
        self._restart = restart
        self._first_rest_s = first_rest_s
        self._reason = ""
        self._failed = asyncio.Event()

    def hear(self, line: str) -> None:
        """A line of nats-server's log."""
        if WRITE_ERROR.search(line) and not self._failed.is_set():
            self._reason = line.rpartition("] ")[2]
            self._failed.set()

    async def run(self) -> None:
        """Watches for ever."""
        loop = asyncio.get_running_loop()
        rest_s, restarted_at = self._first_rest_s, float("-inf")
        while True:
            await self._failed.wait()
            self._console.say(f"nats-server cannot keep client keys and counters: {self._reason}")
            if loop.time() - restarted_at >= STEADY_S:
                rest_s = self._first_rest_s
            else:
                await asyncio.sleep(max(0.0, restarted_at + rest_s - loop.time()))
                rest_s = min(2 * rest_s, LONGEST_REST_S)
            await self._wait_for_room()
            self._console.say("starting nats-server again, so that it writes its store again")
            restarted_at = loop.time()
            self._restart()
            # What the old process says at its end is about what was found already.
            await asyncio.sleep(LOOK_EVERY_S)
            self._failed.clear()

    async def _wait_for_room(self) -> None:
        told = False
        while (free := self._free()) < ROOM_BYTES:
            if not told:
                self._console.say(
                    f"{free / 1024:.0f} KiB are free at {self._store}; nats-server is started again"
                    f" once {ROOM_BYTES // 1024 // 1024} MiB are"
                )
                told = True
            await asyncio.sleep(LOOK_EVERY_S)

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self._store).free
        except OSError:
            return 0  # its disk is gone
