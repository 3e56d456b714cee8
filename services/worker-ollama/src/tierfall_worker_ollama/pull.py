"""Pulling the configured models that Ollama does not have, one after the other, in the background."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.errors import BackendError, BackendFault
from tierfall_worker_ollama.client import StatusRefusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall_worker_ollama.client import OllamaClient

SILENCE_S: Final = 600.0
"""Ollama says nothing while it checks a large file's digest."""
RETRY_FIRST_S: Final = 1.0
RETRY_LONGEST_S: Final = 60.0
TEXT_LIMIT: Final = 200
LOG_EVERY_S: Final = 10.0
LOG_EVERY_PERCENT: Final = 10

_log: Final = logging.getLogger("tierfall.worker.ollama")


class _Line(msgspec.Struct):
    status: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0
    error: str | None = None


class Download:
    """How far one pull is; its layers come one after the other, the largest as a rule first."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._layers: dict[str, tuple[int, int]] = {}
        self._logged_at = float("-inf")
        self._logged_percent = -LOG_EVERY_PERCENT

    @property
    def percent(self) -> int:
        """Of the bytes that Ollama has spoken of so far."""
        total = sum(size for _, size in self._layers.values())
        return 100 * sum(done for done, _ in self._layers.values()) // total if total else 0

    def feed(self, payload: bytes) -> bool:
        """One line of ``/api/pull``; returns whether it says that the model is there.

        Raises:
            BackendFault: Ollama gave up.
        """
        try:
            line = msgspec.json.decode(payload, type=_Line)
        except (msgspec.DecodeError, RecursionError):
            raise BackendFault("Ollama's answer to a pull is no JSON") from None
        if line.error is not None:
            raise BackendFault(line.error)
        if line.digest and line.total:
            self._layers[line.digest] = (line.completed, line.total)
        return line.status == "success"

    def log(self, now: float) -> None:
        """Logs every ten percent, and every ten seconds on a slow line."""
        if self.percent >= self._logged_percent + LOG_EVERY_PERCENT or now >= self._logged_at + LOG_EVERY_S:
            self._logged_at, self._logged_percent = now, self.percent
            _log.info("pulling %s: %d %%", self._model, self.percent)


class Puller:
    """At most one pull at a time; a failed one is tried again, and Ollama goes on where it stopped.

    Args:
        client: The way to Ollama.
        retry_s: Seconds before the second try; doubled each time up to :data:`RETRY_LONGEST_S`.
    """

    def __init__(self, client: OllamaClient, retry_s: float = RETRY_FIRST_S) -> None:
        self._client = client
        self._retry_s = retry_s
        self._task: asyncio.Task[None] | None = None
        self._states: dict[str, str] = {}

    def want(self, models: Iterable[str]) -> None:
        """Starts pulling these unless a pull is under way; what is not among them is no longer reported."""
        self._states = {name: self._states.get(name, f"pulling {name}: 0 %") for name in models}
        if self._states and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._pull_all(), name="ollama pull")

    def state(self, model: str) -> str:
        """``pulling qwen2.5:3b: 43 %``, or why not; empty for a model that nobody wants pulled."""
        return self._states.get(model, "")

    async def close(self) -> None:
        """Stops; Ollama keeps what it has and goes on from there the next time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _pull_all(self) -> None:
        wait_s = self._retry_s
        while self._states:
            failed = [model for model in tuple(self._states) if not await self._pulled(model)]
            if failed:
                _log.warning("next try to pull %s in %.0f s", ", ".join(failed), wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_LONGEST_S)

    async def _pulled(self, model: str) -> bool:
        reason = await self._pull(model)
        if reason is None:
            _log.info("pulled %s", model)
            self._states.pop(model, None)
            return True
        _log.warning("pulling %s failed: %s", model, reason)
        self._tell(model, f"pulling {model} failed, trying again: {reason}")
        return False

    def _tell(self, model: str, state: str) -> None:
        if model in self._states:
            self._states[model] = state

    async def _pull(self, model: str) -> str | None:
        """One try; returns why it failed."""
        now = asyncio.get_running_loop().time
        download = Download(model)
        payload = msgspec.json.encode({"model": model, "stream": True})
        try:
            async with aclosing(self._client.lines("/api/pull", payload, silence_s=SILENCE_S)) as lines:
                async for line in lines:
                    if download.feed(line):
                        return None
                    self._tell(model, f"pulling {model}: {download.percent} %")
                    download.log(now())
        except BackendError as error:
            return error.message
        except StatusRefusal as refusal:
            return f"status {refusal.status}: {refusal.text[:TEXT_LIMIT]}"
        return "Ollama stopped without saying that it was done"
