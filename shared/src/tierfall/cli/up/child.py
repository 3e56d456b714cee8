"""One child process, kept alive: start, relay its output, start again after a crash, stop with everything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tierfall.cli.up import leash
from tierfall.cli.up.program import find_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tierfall.cli.up.console import Console
    from tierfall.cli.up.keeper import Keeper
    from tierfall.cli.up.program import Program

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MOST_S: Final = 30.0
STEADY_S: Final = 60.0
"""A child that ran this long starts again with the first delay."""

LAST_WORDS_S: Final = 1.0
"""For output that is still in the pipe when the child has ended."""
KILLED_S: Final = 5.0
"""For the kernel to carry out a SIGKILL; only a process stuck in a system call takes longer."""

READ_BYTES: Final = 64 * 1024


class Child:
    """A program and, most of the time, the process that runs it.

    Each process leads its own session: a Ctrl-C in the terminal reaches the supervisor alone, and one signal
    to the group reaches whatever the child started itself.

    Args:
        program: What to run.
        environ: The process's environment; it goes before the program's own variables.
        console: Where its output and the news about it go.
        keeper: Told of each process group.
        hear: Called with each line of its output, also with those that are not shown.
        backoff_first_s: The delay before the first restart, in seconds; doubles up to :data:`BACKOFF_MOST_S`.
    """

    def __init__(
        self,
        program: Program,
        environ: Mapping[str, str],
        console: Console,
        keeper: Keeper,
        *,
        hear: Callable[[str], None] | None = None,
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self.program = program
        self._hear = hear
        self.restarts = 0
        self._environ = environ
        self._console = console
        self._keeper = keeper
        self._backoff_first_s = backoff_first_s
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running process's id, ``None`` between two of them."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the process and keeps it alive from now on."""
        self._task = asyncio.create_task(self._keep_alive(), name=f"keep {self.program.name} alive")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and to those it started; nothing happens when there is none."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def stop(self, at_once: asyncio.Event) -> None:
        """Ends the process: SIGTERM, then SIGKILL after ``program.stop_s`` or once ``at_once`` is set."""
        self._stopping.set()
        if self._task is None:
            return
        self.signal(signal.SIGTERM)
        hurry = asyncio.create_task(at_once.wait())
        try:
            ended, _ = await asyncio.wait(
                {self._task, hurry}, timeout=self.program.stop_s, return_when=asyncio.FIRST_COMPLETED
            )
            if self._task not in ended:
                if not at_once.is_set():
                    self._console.say(
                        f"{self.program.name} did not end within {self.program.stop_s:g} s: killed"
                    )
                self.signal(signal.SIGKILL)
                await asyncio.wait({self._task}, timeout=KILLED_S)
        finally:
            hurry.cancel()
            self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        delay = self._backoff_first_s
        while True:
            began = loop.time()
            ending = await self._run_once()
            if self._stopping.is_set():
                return
            if loop.time() - began >= STEADY_S:
                delay = self._backoff_first_s
            self._console.say(f"{self.program.name} {ending}; starting it again in {delay:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return
            delay = min(delay * 2, BACKOFF_MOST_S)
            self.restarts += 1

    async def _run_once(self) -> str:
        """Runs the process to its end and says how it ended."""
        argv = self._argv()
        if argv is None:
            return f"cannot start: there is no command {self.program.argv[0]}"
        # Not asyncio's own pipe: a process that escaped with it would keep wait() from returning.
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env={**self.program.environ, **self._environ},
                start_new_session=True,
            )
        except OSError as error:
            os.close(reading)
            return f"cannot start: {error.strerror}"
        finally:
            os.close(writing)
        self._process = process
        self._keeper.started(process.pid)
        if self._stopping.is_set():  # while it was being started
            self.signal(signal.SIGTERM)
        relay = asyncio.create_task(self._relay(reading))
        try:
            status = await process.wait()
        finally:
            self.signal(signal.SIGKILL)  # what the process started itself and left behind
            self._keeper.gone(process.pid)
            self._process = None
            ended = asyncio.create_task(process.wait())  # at once, unless this task is being cancelled
            await asyncio.wait({relay, ended}, timeout=LAST_WORDS_S)
            ended.cancel()
            relay.cancel()
        return describe_ending(status)

    def _argv(self) -> list[str] | None:
        command = find_command(self.program.argv[0])
        if command is None:
            return None
        argv = [command, *self.program.argv[1:]]
        if sys.platform != "linux":
            return argv
        script = str(Path(leash.__file__))
        return [sys.executable, "-I", "-S", script, str(os.getpid()), *argv]

    async def _relay(self, descriptor: int) -> None:
        """Hands the output on, line by line; a line longer than READ_BYTES comes in pieces."""
        reader = asyncio.StreamReader(limit=READ_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb", 0))
        try:
            rest = b""
            while data := await reader.read(READ_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > READ_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._show(line)
            if rest:
                self._show(rest)
        finally:
            transport.close()

    def _show(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        if self._hear is not None:
            self._hear(text)
        if self.program.warned is not None and self.program.warned.search(text):
            text = text.replace("[INF]", "[WRN]", 1)
        if self.program.hidden is None or not self.program.hidden.search(text):
            self._console.line(self.program.name, text)


def describe_ending(status: int) -> str:
    """Says what a returncode of :mod:`subprocess` means, to follow the child's name."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
