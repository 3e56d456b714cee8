"""The whole gateway in one process: a real nats-server, workers, the ingress on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from typing import TYPE_CHECKING, Any, Self

import httpx

from fakes.nats_server import NatsServer
from fakes.polling import until
from tierfall.bus import Bus, BusOptions
from tierfall.config import parse
from tierfall.telemetry import OFF
from tierfall.worker.process import WorkerProcess
from tierfall_ingress.main import Server
from tierfall_ingress.meters import Meters
from tierfall_ingress.services import Services

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tierfall.config import Config
    from tierfall.telemetry import Tracer
    from tierfall.worker import Backend
    from tierfall.worker.process import Build

ASK: dict[str, Any] = {"model": "first", "messages": [{"role": "user", "content": "Say hello."}]}


class Stack:
    """Runs a config.

    Args:
        config: The file's text; ``nats`` is added.
        backends: Tier name to the backend that serves it; a tier left out has no worker.
        builds: Kind of worker to its real ``build``, for tiers without a backend here.
        environ: For secrets.
        tracer_of: Makes the tracer of a process, by its name (``ingress``, ``worker-vllm``); its maker closes
            it.
    """

    def __init__(
        self,
        config: str,
        backends: Mapping[str, Backend] | None = None,
        *,
        builds: Mapping[str, Build] | None = None,
        environ: Mapping[str, str] | None = None,
        nats: NatsServer | None = None,
        tracer_of: Callable[[str], Tracer] = lambda _: OFF,
    ) -> None:
        self.text = config
        self._backends = dict(backends or {})
        self._builds = dict(builds or {})
        self._environ = dict(environ or {})
        self._tracer_of = tracer_of
        self._own_nats = nats is None
        self.nats = nats or NatsServer()
        self.workers: dict[str, WorkerProcess] = {}
        self._buses: dict[str, Bus] = {}
        self._serving: asyncio.Task[None] | None = None
        self._socket = socket.socket()

    async def __aenter__(self) -> Self:
        """Starts everything and waits until the tiers' workers are known."""
        if self._own_nats:
            await self.nats.start()
        self.config = self.parse(self.text)
        self._bus = await self._connect("ingress")
        self.services = Services(self._bus, self.config, Meters(), self._tracer_of("ingress"))
        await self.services.start()
        # Last, so that the ingress hears their first beats and need not wait for the next.
        for tier in self.config.tiers:
            if tier in self._backends:
                await self.add_worker(tier)
        for kind in self._builds:
            await self.add_worker(kind)
        self._socket.bind(("127.0.0.1", 0))
        self.server = Server(self.services)
        self.server.config.timeout_graceful_shutdown = 5
        self._serving = asyncio.create_task(self.server.serve(sockets=[self._socket]))
        await until(lambda: self.server.started)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.client = httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False)
        await until(lambda: all(self.state(name) != "no_workers" for name in self._served()))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops everything, in the order in which ``tierfall up`` does."""
        await self.client.aclose()
        self.server.should_exit = True
        if self._serving is not None:
            await self._serving
        await self.services.close()
        await self._bus.close()
        for name in list(self.workers):
            await self.stop_worker(name)
        if self._own_nats:
            await self.nats.close()

    def parse(self, text: str) -> Config:
        """A config of this stack."""
        return parse(f"nats: {{url: '{self.nats.url}'}}\n{text}", self._environ, "test.yaml")

    def state(self, tier: str) -> str:
        """The tier's state as the ingress sees it."""
        return self.services.roster.standing(tier).state

    async def add_worker(self, name: str, backend: Backend | None = None) -> WorkerProcess:
        """One more worker: for a tier with a backend, or for all tiers of a kind."""
        numbers = itertools.count(len(self.workers))  # after a death, a number may be taken
        key = next(key for number in numbers if (key := f"{name}-{number}") not in self.workers)
        bus = await self._connect(key)
        if name in self._builds:
            tracer = self._tracer_of(f"worker-{name}")
            process = WorkerProcess(name, self._builds[name], bus, tracer=tracer)
        else:
            served = backend or self._backends[name]
            kind = self.config.tiers[name].kind
            tracer = self._tracer_of(f"worker-{kind}")
            process = WorkerProcess(kind, lambda *_: served, bus, frozenset({name}), tracer=tracer)
        self.workers[key] = process
        self._buses[key] = bus
        await process.start(self.config)
        return process

    async def stop_worker(self, key: str) -> None:
        """Drains one worker."""
        await self.workers.pop(key).drain()
        await self._buses.pop(key).close()

    async def kill_worker(self, key: str) -> None:
        """One worker vanishes without a word: its connection is cut, as when its process is killed."""
        process = self.workers.pop(key)
        bus = self._buses.pop(key)
        wire = bus._wire  # none while NATS is away
        bus._closed = True
        bus._connected = False
        if wire is not None:
            await wire.shut()
        assert bus._keeper is not None
        bus._keeper.cancel()
        for _, station in process._stations.values():
            for task in station._tending:
                task.cancel()
        assert process._sweeping is not None
        process._sweeping.cancel()
        for job in list(process._jobs.values()):
            job.cancel()

    async def chat(self, **fields: Any) -> httpx.Response:
        """One chat request, not streamed by this client."""
        return await self.client.post("/v1/chat/completions", json={**ASK, **fields})

    @contextlib.asynccontextmanager
    async def stream(self, **fields: Any) -> Any:
        """One streamed chat request."""
        body = {**ASK, **fields, "stream": True}
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            yield response

    async def complete(self, **fields: Any) -> httpx.Response:
        """One text completion, not streamed by this client."""
        body = {"model": "first", "prompt": "Say hello.", **fields}
        return await self.client.post("/v1/completions", json=body)

    async def embed(self, **fields: Any) -> httpx.Response:
        """One embeddings request."""
        return await self.client.post("/v1/embeddings", json={"model": "first", "input": "Hello.", **fields})

    async def _connect(self, name: str) -> Bus:
        return await Bus.connect(BusOptions(servers=self.nats.url, name=name))

    def _served(self) -> set[str]:
        kinds = {name for name, tier in self.config.tiers.items() if tier.kind in self._builds}
        return (set(self._backends) & set(self.config.tiers)) | kinds
