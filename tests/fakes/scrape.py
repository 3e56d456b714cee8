"""What a page of metrics says, as a Prometheus server reads it."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    import httpx

PROMTOOL = shutil.which("promtool")
NO_PROMTOOL = "promtool is not installed here (Debian: apt install prometheus): metrics are not linted"


class Page:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    @classmethod
    async def get(cls, client: httpx.AsyncClient, url: str = "/metrics") -> Page:
        """Scrapes a server."""
        response = await client.get(url)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain; version=")
        return cls(response.text)

    def __call__(self, name: str, /, **labels: str) -> float | None:
        """The value of one series, given all its labels; ``None`` if there is none."""
        values = [sample.value for sample in self._samples if (sample.name, sample.labels) == (name, labels)]
        return values[0] if values else None

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of all series of a name."""
        return [sample.labels for sample in self._samples if sample.name == name]

    async def complaints(self) -> str:
        """What ``promtool check metrics`` has to say about it; empty when it is content."""
        assert PROMTOOL is not None
        pipe = asyncio.subprocess.PIPE
        linter = await asyncio.create_subprocess_exec(
            PROMTOOL, "check", "metrics", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await linter.communicate(self.text.encode())
        return said.decode() + (f"exit status {linter.returncode}" if linter.returncode else "")
