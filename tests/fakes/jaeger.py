"""Jaeger, as far as one asks it for a trace: a fake, and the real one where it is installed."""

from __future__ import annotations

import asyncio
import shutil
import socket
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import yaml
from aiohttp import web

from fakes.collector import FakeCollector
from fakes.polling import POLL_S

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.collector import SeenSpan

START_S: Final = 30.0
NS_PER_US: Final = 1000


class FakeJaeger(FakeCollector):
    """Takes OTLP, and answers ``GET /api/traces/{id}`` in Jaeger's notation, at the same address.

    Attributes:
        otlp: Where to send spans.
        query: Where to ask for traces.
    """

    def __init__(self) -> None:
        super().__init__()
        self._app.router.add_get("/api/traces/{id}", self._tell)

    async def __aenter__(self) -> Self:
        """Listens."""
        await super().__aenter__()
        self.otlp = self.query = self.url
        return self

    async def _tell(self, request: web.Request) -> web.Response:
        trace_id = request.match_info["id"]
        spans = [span for span in self.spans if span.trace_id == trace_id]
        if not spans:
            missing = {"data": None, "errors": [{"code": 404, "msg": "trace not found"}]}
            return web.json_response(missing, status=404)
        services = sorted({span.service for span in spans})
        data = {
            "traceID": trace_id,
            "spans": [_told(span, f"p{services.index(span.service)}") for span in spans],
            "processes": {f"p{at}": {"serviceName": name, "tags": []} for at, name in enumerate(services)},
        }
        return web.json_response({"data": [data], "errors": None})


class RealJaeger:
    """The ``jaeger`` program (version 2) on ports of its own, with its storage in memory.

    Args:
        folder: For its config and log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = free_ports(3)
        self.otlp, self.query, self._health = (f"http://127.0.0.1:{port}" for port in ports)
        self._config = {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query", "healthcheckv2"],
                "pipelines": {
                    "traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]},
                },
                "telemetry": {"metrics": {"level": "none"}},
            },
            "extensions": {
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": f"127.0.0.1:{ports[1]}"},
                    "grpc": {"endpoint": "127.0.0.1:0"},
                },
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 1000}}}},
                "healthcheckv2": {"use_v2": True, "http": {"endpoint": f"127.0.0.1:{ports[2]}"}},
            },
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{ports[0]}"}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        }

    @staticmethod
    def installed() -> bool:
        """Whether this machine has it."""
        return shutil.which("jaeger") is not None

    async def __aenter__(self) -> Self:
        """Starts it and waits until it answers queries."""
        config = self._folder / "jaeger.yaml"
        config.write_text(yaml.safe_dump(self._config))
        self._log = (self._folder / "jaeger.log").open("wb")
        self._process = await asyncio.create_subprocess_exec(
            "jaeger", "--config", str(config), stdout=self._log, stderr=self._log
        )
        try:
            async with asyncio.timeout(START_S), httpx.AsyncClient(trust_env=False) as client:
                while not await self._answers(client):  # noqa: ASYNC110 - it sets no event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            await self.__aexit__()
            raise TimeoutError((self._folder / "jaeger.log").read_text()[-2000:]) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._log.close()

    async def _answers(self, client: httpx.AsyncClient) -> bool:
        try:
            return (await client.get(f"{self.query}/api/services")).is_success
        except httpx.TransportError:
            return False


def _told(span: SeenSpan, process: str) -> dict[str, Any]:
    tags = {**span.attributes, "span.kind": span.kind, **({"error": True} if span.failed else {})}
    parent = [{"refType": "CHILD_OF", "traceID": span.trace_id, "spanID": span.parent_id}]
    return {
        "traceID": span.trace_id,
        "spanID": span.span_id,
        "operationName": span.name,
        "references": parent if span.parent_id else [],
        "startTime": span.start_ns // NS_PER_US,
        "duration": (span.end_ns - span.start_ns) // NS_PER_US,
        "tags": [{"key": key, "type": "any", "value": value} for key, value in tags.items()],
        "logs": [
            {"timestamp": at, "fields": [{"key": "event", "type": "string", "value": name}]}
            for at, name in enumerate(span.events)
        ],
        "processID": process,
    }


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
