"""The ingress as its clients see it: ready, and letting in only those it should."""

from __future__ import annotations

import asyncio
import shlex
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from tierfall import files
from tierfall.cli.doctor import nats, tiers
from tierfall.cli.doctor.finding import Finding, Level
from tierfall.cli.doctor.http import Answer, Unreachable, ask
from tierfall.cli.up.report import base_url
from tierfall.protocol.presence import CLOCK_SKEW_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tierfall.config import Config
    from tierfall.protocol.presence import Beat

ASK_S: Final = 3.0
_OK: Final = 200
_UNAUTHORIZED: Final = 401


class Ingress:
    """One ingress, by its URL.

    Args:
        config: The config that it should run.
        path: Where the config is, for the commands.
        url: Its address; that of the config when empty.
        key: A client key; the config's first when empty.
    """

    def __init__(self, config: Config, path: Path, *, url: str = "", key: str = "") -> None:
        self.url = url.rstrip("/").removesuffix("/v1") or base_url(config.server)
        self.usable = False
        """Whether it is ready and lets us in; known after :meth:`examine`."""
        self.live: set[str] = set()
        """The tiers that it sees a worker of, with its backend up; likewise."""
        self._config = config
        self._path = path
        self._given = bool(url)
        keys = config.server.api_keys
        first = next((one for one in keys if one.models is None), keys[0] if keys else None)
        self.key = key or (first.key.value if first else "")
        self._whose = "--key" if key else (first.key.source or first.name) if first else ""

    async def examine(self, beats: Mapping[str, Sequence[Beat]]) -> list[Finding]:
        """Readiness, clock, keys, and whether it has the same config and sees the same workers."""
        try:
            ready = await self._get("/health/readiness")
        except Unreachable as error:
            return [self._absent(str(error))]
        if ready.status != _OK:
            reason = str(ready.json.get("reason") or f"it answers {ready.status}")
            return [
                Finding(
                    Level.FAIL, "ingress", f"{self.url} is not ready: {reason}", f"curl {self.url}/health"
                )
            ]
        found = [Finding(Level.OK, "ingress", f"{self.url} is ready"), *_clock(ready)]
        try:
            found += await self._keys()
            if self.usable:
                found += self._health(await self._get("/health", self.key), beats)
        except Unreachable as error:
            found.append(self._absent(str(error)))
        return found

    async def _keys(self) -> list[Finding]:
        found = []
        if self._config.server.api_keys or self._config.server.stored_keys:
            bare = await self._get("/v1/models")
            if bare.status != _UNAUTHORIZED:
                text = f"answers {bare.status} without a key, though the config names keys"
                found.append(
                    Finding(Level.FAIL, "keys", text, "restart the ingress: it runs on another config")
                )
        listed = await self._get("/v1/models", self.key)
        if listed.status == _OK:
            self.usable = True
            said = f"takes {self._whose}" if self.key else "asks for no key: whoever reaches it may ask"
            return [*found, Finding(Level.OK, "keys", said), *self._same_models(listed)]
        if not self.key:
            return [*found, Finding(Level.FAIL, "keys", "wants a key, and there is none here", "--key KEY")]
        text = f"refuses {self._whose}: {listed.message or listed.status}"
        command = "restart the ingress with the variable set as here: it reads it when it starts"
        return [*found, Finding(Level.FAIL, "keys", text, command)]

    def _same_models(self, listed: Answer) -> Iterator[Finding]:
        data = listed.json.get("data")
        names = {model.get("id") for model in data or () if isinstance(model, dict)}
        missing = [name for name in self._config.models if name not in names]
        if missing:
            text = f"does not offer {', '.join(missing)}: another config, or a key that may not use them"
            yield Finding(
                Level.WARN, "models", text, f'curl -H "Authorization: Bearer $KEY" {self.url}/v1/models'
            )

    def _health(self, health: Answer, beats: Mapping[str, Sequence[Beat]]) -> Iterator[Finding]:
        store = health.json.get("store")
        if isinstance(store, dict) and store.get("state") != "ok":
            level = Level.WARN if store.get("state") == "lost" else Level.FAIL
            yield Finding(level, "store", f"the ingress says: {store.get('reason')}")
        limit = health.json.get("open_files_limit")
        if isinstance(limit, int) and limit < files.FEW:
            text = f"the ingress may have only {limit} files open, and each connection is one"
            yield Finding(Level.WARN, "files", text, files.HOW_TO_RAISE)
        listed = health.json.get("tiers")
        for name, tier in listed.items() if isinstance(listed, dict) else ():
            if tier.get("state") == "up":
                self.live.add(name)
            if tier.get("benched"):
                text = (
                    "the ingress goes past it: its last requests got no answer. It is tried again every 5 s"
                )
                yield Finding(Level.WARN, f"tier {name}", text)
            if tier.get("state") == "no_workers" and beats.get(name):
                text = "has workers that the ingress does not see: it is connected to another NATS"
                yield Finding(Level.FAIL, f"tier {name}", text, f"curl {self.url}/health")
            if not beats:  # else the workers themselves have said it
                yield from tiers.engines(name, _engines(tier))
            for worker in tier.get("workers", ()):
                if abs(ahead_s := worker.get("clock_ahead_s") or 0.0) > CLOCK_SKEW_S:
                    yield nats.compared("the ingress's", ahead_s, f"{worker['worker']} is ")

    def _absent(self, reason: str) -> Finding:
        command = f"tierfall-ingress --config {shlex.quote(str(self._path))}"
        if not self._given:
            command += ", or --url http://HOST:PORT if it runs elsewhere"
        return Finding(Level.FAIL, "ingress", f"{self.url} does not answer: {reason}", command)

    async def _get(self, path: str, key: str = "") -> Answer:
        return await asyncio.to_thread(ask, f"{self.url}{path}", key=key, timeout_s=ASK_S)


def _engines(tier: dict[str, Any]) -> list[str]:
    """What ``/health`` says of a tier's engines."""
    workers = tier.get("workers")
    return [str(worker.get("engine", "")) for worker in workers] if isinstance(workers, list) else []


def _clock(answer: Answer) -> Iterator[Finding]:
    """The ``Date`` header counts whole seconds, so it is half a second old on average."""
    try:
        ahead_s = time.time() - 0.5 - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return
    yield nats.compared("the ingress's", ahead_s)
