"""A real nats-server as a child process, on a port that it keeps over restarts."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, Self

POLL_S: Final = 0.01
START_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 10.0
PR_SET_PDEATHSIG: Final = 1
"""From Linux's ``prctl(2)``."""

_libc = ctypes.CDLL(None)


def _die_with_the_parent() -> None:
    """Runs in the child: a test run that is killed leaves no server behind (on Linux)."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class NatsServer:
    """Starts, stops, kills and restarts one nats-server on 127.0.0.1.

    Args:
        config: Text appended to the server's config (permissions, limits).
        jetstream: Whether to switch JetStream on, with its store in the server's own folder.
        greets: Whether it says something before the client does; with TLS first it does not.

    Usable as an async context manager; its folder is deleted by :meth:`close`.
    """

    def __init__(self, config: str = "", *, jetstream: bool = False, greets: bool = True) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nats-server-")
        self._path = Path(self._folder.name)
        self._process: subprocess.Popen[bytes] | None = None
        self.config = config
        self._jetstream = jetstream
        self._greets = greets
        self.port = 0
        """0 until the first start; the same ever after."""

    @property
    def url(self) -> str:
        """For ``servers`` of the bus's options and ``nats.url`` of the config."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server has logged so far, over all its runs."""
        path = self._path / "server.log"
        return path.read_text() if path.exists() else ""

    async def start(self) -> None:
        """Starts the server with the present ``config`` and waits until it accepts."""
        if self.running:
            return
        for stale in self._path.glob("*.ports"):
            stale.unlink()
        (self._path / "server.conf").write_text(self._config_text())
        command = [str(Path(sys.executable).parent / "nats-server"), "-c", str(self._path / "server.conf")]
        with (self._path / "stdout.log").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220,S603 - our own command; starting it takes no time
                command,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_the_parent,  # noqa: PLW1509 - one system call, which needs no lock
            )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._wait_until_it_accepts(self._process)
        except BaseException:
            await self.kill()
            raise

    async def stop(self) -> None:
        """Asks it to go (SIGTERM) and waits for that."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """Ends it without a word (SIGKILL)."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        """Kills it and starts it again on the same port."""
        await self.kill()
        await self.start()

    def pause(self) -> None:
        """Freezes the process (SIGSTOP), at once: its sockets stay open and nobody reads them."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Lets it go on after :meth:`pause`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def reload(self) -> None:
        """Makes a running server read the present ``config``; it takes effect some time later."""
        (self._path / "server.conf").write_text(self._config_text())
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    async def close(self) -> None:
        """Kills it if it runs, and deletes its folder."""
        await self.kill()
        self._folder.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _config_text(self) -> str:
        lines = [
            "host: 127.0.0.1",
            f"port: {self.port or -1}",
            f'ports_file_dir: "{self._path}"',
            f'log_file: "{self._path / "server.log"}"',
        ]
        if self._jetstream:
            lines.append(f'jetstream {{ store_dir: "{self._path / "jetstream"}" }}')
        return "\n".join([*lines, self.config, ""])

    async def _wait_until_it_accepts(self, process: subprocess.Popen[bytes]) -> None:
        while not await self._accepts():
            if process.poll() is not None:
                raise RuntimeError(f"nats-server ended with {process.returncode}: {self._said()}")
            await asyncio.sleep(POLL_S)

    async def _accepts(self) -> bool:
        if self.port == 0:
            self.port = self._reported_port()
            if self.port == 0:
                return False
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        try:
            return not self._greets or (await reader.readline()).startswith(b"INFO ")
        finally:
            writer.close()
            await writer.wait_closed()

    def _reported_port(self) -> int:
        for path in self._path.glob("*.ports"):
            try:
                ports: dict[str, Any] = json.loads(path.read_text())
            except ValueError:
                return 0  # it is being written
            return int(ports["nats"][0].rpartition(":")[2])
        return 0

    def _said(self) -> str:
        return (self._path / "stdout.log").read_text() + self.log

    async def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while process.poll() is None:  # noqa: ASYNC110 - a child process sets no event
                await asyncio.sleep(POLL_S)
        self._process = None
