"""Starts processes, stops them, and reads from /proc what they have used."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STOP_S: Final = 10.0
POLL_S: Final = 0.05
LOG_SHOWN_BYTES: Final = 2000

_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_UTIME: Final = 11
_STIME: Final = 12
_RSS: Final = 21
"""Fields of /proc/PID/stat after the command's name, as proc(5) counts them less three."""


class Used(msgspec.Struct, frozen=True):
    """What a process and its descendants have used so far: CPU time (user and system), and memory now."""

    cpu_s: float
    rss_bytes: int


class Process:
    """One started process.

    Attributes:
        name: What it is called in the results.
    """

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._popen = popen
        self._log = log

    def used(self) -> Used:
        """What it and its descendants have used; those that have ended do not count."""
        stats = [_stat(pid) for pid in _tree(self._popen.pid)]
        ticks = sum(int(stat[_UTIME]) + int(stat[_STIME]) for stat in stats)
        pages = sum(int(stat[_RSS]) for stat in stats)
        return Used(ticks / _TICKS_PER_S, pages * _PAGE_BYTES)

    def check(self) -> None:
        """Raises SystemExit with the end of its log if it has ended."""
        if self._popen.poll() is not None:
            said = self._log.read_bytes()[-LOG_SHOWN_BYTES:].decode(errors="replace")
            raise SystemExit(f"{self.name} ended with status {self._popen.returncode}:\n{said}")


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str | Path], folder: Path, environ: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Runs a command in the background; its output goes to ``<name>.log`` in the folder.

    Args:
        name: What it is called in the results.
        command: The program and its arguments.
        folder: Where it runs and logs.
        environ: Added to this process's environment.
    """
    log = folder / f"{name}.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(  # noqa: S603 - the commands stand in peers.py
            command,
            cwd=folder,
            env=os.environ | dict(environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as popen,
    ):
        try:
            yield Process(name, popen, log)
        finally:
            _stop(popen)


def _stop(popen: subprocess.Popen[bytes]) -> None:
    """Asks it to end; its whole process group is killed if it does not."""
    popen.terminate()
    try:
        popen.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(process: Process, port: int, within_s: float) -> None:
    """Returns as soon as somebody listens.

    Raises:
        SystemExit: The process has ended, or nobody listens in time.
    """
    gives_up_at = time.monotonic() + within_s
    while time.monotonic() < gives_up_at:
        process.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=POLL_S):
            return
        time.sleep(POLL_S)
    raise SystemExit(f"{process.name} does not listen on port {port} within {within_s:g} s")


def _tree(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in (_PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name; none of them counts if it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * (_RSS + 1)
    return text[text.rindex(")") + 2 :].split()
