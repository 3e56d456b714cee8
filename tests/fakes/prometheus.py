"""Prometheus, as far as one asks it questions: a fake, and the real one where it is installed."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import yaml
from aiohttp import web

from fakes.jaeger import free_ports
from fakes.manifests import ROOT
from fakes.polling import POLL_S

if TYPE_CHECKING:
    from pathlib import Path

START_S: Final = 30.0
RULES: Final = ROOT / "deploy" / "prometheus" / "alerts.yaml"


class FakePrometheus:
    """Answers as it is told; listens on a port of its own while entered.

    Attributes:
        families: Names of the metrics that its targets export.
        alerts: Its rules, name to expression.
        answers: Samples by expression; one that is not there is answered with none.
        refused: Expressions that it does not understand.
    """

    def __init__(self) -> None:
        self.families: set[str] = set()
        self.alerts: dict[str, str] = {}
        self.answers: dict[str, list[Any]] = {}
        self.refused: set[str] = set()
        app = web.Application()
        app.router.add_get("/api/v1/{what}", self._tell)
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> Self:
        """Listens."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops listening."""
        await self._runner.cleanup()

    async def _tell(self, request: web.Request) -> web.Response:
        data: Any
        if request.match_info["what"] == "metadata":
            data = {name: [{"type": "gauge"}] for name in self.families}
        elif request.match_info["what"] == "rules":
            rules = [{"name": name, "query": query} for name, query in self.alerts.items()]
            data = {"groups": [{"name": "all", "rules": rules}]}
        else:
            expression = request.query["query"]
            if expression in self.refused:
                return web.json_response({"status": "error", "error": "parse error"}, status=400)
            data = {"resultType": "vector", "result": self.answers.get(expression, [])}
        return web.json_response({"status": "success", "data": data})


class RealPrometheus:
    """The ``prometheus`` program with the repository's rules, on a port of its own.

    Args:
        folder: For its config, data and log.
        target: ``host:port`` of what it scrapes each second, as the job ``tierfall-ingress``.
    """

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        (port,) = free_ports(1)
        self._address = f"127.0.0.1:{port}"
        self.url = f"http://{self._address}"
        self._config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "tierfall-ingress", "static_configs": [{"targets": [target]}]}],
        }

    @staticmethod
    def installed() -> bool:
        """Whether this machine has it."""
        return shutil.which("prometheus") is not None

    async def __aenter__(self) -> Self:
        """Starts it and waits until it has scraped twice, which is what a rate needs."""
        config = self._folder / "prometheus.yaml"
        config.write_text(yaml.safe_dump(self._config))
        self._log = (self._folder / "prometheus.log").open("wb")
        self._process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._address}",
            stdout=self._log,
            stderr=self._log,
        )
        try:
            await self.until("count_over_time(up[1m]) >= 2")
        except TimeoutError:
            await self.__aexit__()
            raise TimeoutError((self._folder / "prometheus.log").read_text()[-2000:]) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._log.close()

    async def until(self, expression: str) -> None:
        """Returns once something comes of an expression.

        Raises:
            TimeoutError: Nothing did.
        """
        async with asyncio.timeout(START_S), httpx.AsyncClient(trust_env=False) as client:
            while not await self._holds(client, expression):  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(POLL_S)

    async def _holds(self, client: httpx.AsyncClient, expression: str) -> bool:
        try:
            answer = await client.get(f"{self.url}/api/v1/query", params={"query": expression})
        except httpx.TransportError:
            return False
        return answer.is_success and bool(answer.json()["data"]["result"])
