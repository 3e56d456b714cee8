"""The services as real processes on free ports: started, signalled, killed, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import httpx

from fakes.nats_server import NatsServer
from fakes.polling import POLL_S, until
from tierfall.cli.up import leash

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 30.0
"""Importing everything takes a second on a quiet machine, and many on a busy one."""
STOP_TIMEOUT_S: Final = 30.0
_BIN: Final = Path(sys.executable).parent
_WORKER_READY: Final = re.compile(r'"message":"(\S+) is ready"')


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def until_it_is(condition: Callable[[], Awaitable[object]], *, timeout_s: float = 30.0) -> None:
    """As :func:`fakes.polling.until`, for a condition that has to be asked for.

    Raises:
        TimeoutError: It was not true for ``timeout_s``.
    """
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(POLL_S)


class Process:
    """One service process; its output goes to a file.

    On Linux the kernel kills it when the test run dies.

    Args:
        name: Shown with its log.
        argv: The command, without its folder.
        folder: Where its log goes.
        ready: Whether it has come up; asked again and again.
        files: How many files it may have open, at most; as many as this process when 0.
    """

    def __init__(
        self, name: str, argv: list[str], folder: Path, ready: Callable[[str], object], *, files: int = 0
    ) -> None:
        self.name = name
        self._ready = ready
        self._path = folder / f"{name}.log"
        command = [str(_BIN / argv[0]), *argv[1:]]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]
        if files:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$0" "$@"', *command]
        with self._path.open("wb") as output:
            self._popen = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a signal to the test run's group is not the service's
            )

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """As :class:`subprocess.Popen` has it."""
        return self._popen.poll()

    @property
    def open_sockets(self) -> int:
        """How many sockets it holds (Linux's ``/proc``)."""
        folder = Path(f"/proc/{self._popen.pid}/fd")
        count = 0
        for entry in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += str(entry.readlink()).startswith("socket:")
        return count

    async def came_up(self) -> None:
        """Waits until it is ready.

        Raises:
            RuntimeError: It ended instead; the message has its log.
        """
        async with asyncio.timeout(START_TIMEOUT_S):
            while not self._ready(self.log):
                if not self.running:
                    raise RuntimeError(f"{self.name} ended with {self.returncode}:\n{self.log}")
                await asyncio.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._popen.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL: it vanishes without a word."""
        self._popen.kill()
        await self.ended()

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Waits for its end; its exit status."""
        await until(lambda: not self.running, timeout_s=STOP_TIMEOUT_S)
        return self._popen.wait()


class Worker(Process):
    """A worker service."""

    @property
    def id(self) -> str:
        """What ``x-tierfall-worker`` says of its answers."""
        found = _WORKER_READY.search(self.log)
        assert found is not None, f"{self.name} is not ready"
        return found[1]


class Ingress(Process):
    """An ingress service, with a client of its own."""

    def __init__(
        self, name: str, folder: Path, config: Path, port: int, key: str = "", *, files: int = 0
    ) -> None:
        self.port = port
        self.url = f"http://{HOST}:{port}"
        argv = ["tierfall-ingress", "--config", str(config)]
        super().__init__(name, argv, folder, lambda _: self.listens(), files=files)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False, headers=headers)

    def listens(self) -> bool:
        """Whether somebody accepts connections there."""
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((HOST, self.port)) == 0

    async def health(self) -> dict[str, Any]:
        """``GET /health``."""
        found: dict[str, Any] = (await self.client.get("/health")).json()
        return found

    async def workers(self, tier: str) -> set[str]:
        """The ids of the workers that it knows to serve a tier."""
        tiers = (await self.health())["tiers"]
        return {worker["worker"] for worker in tiers[tier]["workers"] if worker["state"] == "up"}

    async def metric(self, name: str, **labels: str) -> float:
        """One sample of ``/metrics``; 0 for one that is not there."""
        text = (await self.client.get("/metrics")).text
        for line in text.splitlines():
            sample, _, value = line.rpartition(" ")
            named = sample.partition("{")[0] == name
            if named and all(f'{label}="{is_}"' in sample for label, is_ in labels.items()):
                return float(value)
        return 0.0


class Fleet:
    """All processes of one test, over one nats-server; use as an async context manager.

    Args:
        folder: For configs and logs.
        config: The config's text without ``nats`` and ``server``, which are added.
        server: What else ``server`` has in flow style: ``stored_keys: true``.
        key: The client key that the ingresses' own clients show.
        nats: Text for the nats-server's config, which then is without JetStream.
    """

    def __init__(self, folder: Path, config: str, *, server: str = "", key: str = "", nats: str = "") -> None:
        self.nats = NatsServer(nats, jetstream=not nats)
        self._server = f", {server}" if server else ""
        self._key = key
        self.processes: list[Process] = []
        self._folder = folder
        self._config = config

    async def __aenter__(self) -> Self:
        await self.nats.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            if isinstance(process, Ingress):
                await process.client.aclose()
            await process.kill()
        await self.nats.close()

    def start_ingress(self, port: int = 0, *, files: int = 0) -> Ingress:
        """Starts one, on this port or a free one, and does not wait for it."""
        name = f"ingress-{len(self.processes)}"
        port = port or free_port()
        ingress = Ingress(name, self._folder, self._written(name, port), port, self._key, files=files)
        self.processes.append(ingress)
        return ingress

    def start_worker(
        self, tier: str = "", kind: str = "vllm", *, nats_url: str = "", files: int = 0
    ) -> Worker:
        """Starts one, for one tier or for all of its kind, and does not wait for it.

        Args:
            tier: All of its kind when empty.
            kind: Which worker.
            nats_url: How it reaches NATS, if not directly.
            files: As a process's.
        """
        name = f"worker-{len(self.processes)}"
        argv = [f"tierfall-worker-{kind}", "--config", str(self._written(name, free_port(), nats_url))]
        if tier:
            argv += ["--tier", tier]
        worker = Worker(name, argv, self._folder, _WORKER_READY.search, files=files)
        self.processes.append(worker)
        return worker

    def start_engine(self, port: int, *, slots: int = 2, embeddings: bool = False) -> Process:
        """Starts the small local model, and does not wait for it."""
        argv = ["tierfall", "engine", "--port", str(port), "--slots", str(slots)]
        argv += ["--embeddings"] if embeddings else []
        name = f"engine-{len(self.processes)}"
        engine = Process(name, argv, self._folder, lambda log: '"message":"ready"' in log)
        self.processes.append(engine)
        return engine

    async def ingress(self, port: int = 0) -> Ingress:
        """One that listens."""
        ingress = self.start_ingress(port)
        await ingress.came_up()
        return ingress

    async def worker(self, tier: str = "", kind: str = "vllm") -> Worker:
        """One that serves."""
        worker = self.start_worker(tier, kind)
        await worker.came_up()
        return worker

    async def know(self, ingress: Ingress, tier: str, *workers: Worker) -> None:
        """Waits until an ingress knows these workers of a tier, and no other."""
        wanted = {worker.id for worker in workers}

        async def known() -> bool:
            return await ingress.workers(tier) == wanted

        await until_it_is(known)

    async def command(self, *argv: str) -> str:
        """Runs the ``tierfall`` command to its end, for this fleet's config; what it printed on stdout.

        Raises:
            AssertionError: It failed; the message is its own.
        """
        path = self._written("command", free_port())
        process = await asyncio.create_subprocess_exec(
            str(_BIN / "tierfall"),
            *argv,
            "--config",
            str(path),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode().strip()

    def logs(self) -> list[tuple[str, str]]:
        """Each process's log under its name, for the report of a failed test."""
        return [(process.name, process.log) for process in self.processes] + [("nats-server", self.nats.log)]

    def _written(self, name: str, port: int, nats_url: str = "") -> Path:
        path = self._folder / f"{name}.yaml"
        server = f"server: {{port: {port}{self._server}}}"
        path.write_text(f"nats: {{url: '{nats_url or self.nats.url}'}}\n{server}\n{self._config}")
        return path


class NewFleet(Protocol):
    """The fixture ``new_fleet``: starts a fleet's nats-server; the arguments are those of :class:`Fleet`."""

    def __call__(self, config: str, *, server: str = "", key: str = "", nats: str = "") -> Awaitable[Fleet]:
        """A fleet that ends with the test."""
