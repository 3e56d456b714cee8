"""A worker's own HTTP side: metrics and probes, on the same event loop as its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from aiohttp import web

from tierfall.errors import ConfigError
from tierfall.telemetry.exposition import expose

if TYPE_CHECKING:
    from tierfall.worker.process import WorkerProcess


class WorkerHttp:
    """``GET /metrics``, ``/health/liveness`` and ``/health/readiness``; entered, it listens.

    Args:
        process: Whose metrics and state they are.
        address: ``HOST:PORT``; port 0 draws a free one.
    """

    def __init__(self, process: WorkerProcess, address: str) -> None:
        self._process = process
        self._host, self._port = split_address(address)
        app = web.Application()
        for path in ("/metrics", "/metrics/"):
            app.router.add_get(path, self._metrics)
        for path in ("/health/liveness", "/health/liveliness"):
            app.router.add_get(path, self._liveness)
        app.router.add_get("/health/readiness", self._readiness)
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> Self:
        """Listens.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"--http {self._host}:{self._port}: {error.strerror or error}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops listening."""
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port, *_ = self._runner.addresses[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = expose(self._process.meters.registry, request.headers.get("accept", ""))
        return web.Response(body=body, headers={"content-type": content_type})

    async def _liveness(self, _: web.Request) -> web.Response:
        return web.json_response("I'm alive!")

    async def _readiness(self, _: web.Request) -> web.Response:
        problem = self._process.unready_because()
        told = {
            "status": "unhealthy" if problem else "healthy",
            "worker": self._process.id,
            "backends": self._process.backends(),
            **({"reason": problem} if problem else {}),
        }
        return web.json_response(told, status=503 if problem else 200)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` (every interface).

    Raises:
        ConfigError: It is none of these.
    """
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname or "0.0.0.0", parts.port
    except ValueError:
        host, port = "", None
    if port is None or parts.netloc != address or parts.username is not None:
        raise ConfigError(f"--http {address}: write HOST:PORT, for example 0.0.0.0:9100")
    return host, port
