"""Asks the ingress how things are, until they are well or the time is up."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

from tierfall.cli.up.report import base_url, health_key

if TYPE_CHECKING:
    from tierfall.config.schema import Config

POLL_EVERY_S: Final = 0.25
ANSWER_S: Final = 2.0
"""For one answer of the ingress."""
TIERS_UP_S: Final = 10.0
"""How long the report waits for engines that are still loading."""

_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Never through a proxy: it is this machine that is asked."""


async def wait_until_ready(config: Config) -> None:
    """Returns once ``GET /health/readiness`` answers 200."""
    while await asyncio.to_thread(_get, config, "/health/readiness") is None:  # noqa: ASYNC110 - HTTP has no event
        await asyncio.sleep(POLL_EVERY_S)


async def wait_for_engines(config: Config, timeout_s: float = TIERS_UP_S) -> dict[str, Any] | None:
    """Polls ``GET /health`` until every tier has a worker, and is up if it has a ``run`` command.

    Waits for ``timeout_s`` seconds at most: a worker's first heartbeat may come after the ingress is ready.

    Returns:
        The last answer, as JSON; ``None`` when there was none.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    engines = {name for name, tier in config.tiers.items() if tier.run}
    while True:
        health = await asyncio.to_thread(_get, config, "/health")
        tiers = (health or {}).get("tiers", {})
        waiting = [
            name
            for name, tier in tiers.items()
            if (tier.get("state") == "no_workers") or (name in engines and tier.get("state") != "up")
        ]
        if (health is not None and not waiting) or loop.time() >= deadline:
            return health
        await asyncio.sleep(POLL_EVERY_S)


def _get(config: Config, path: str) -> dict[str, Any] | None:
    """The answer's JSON object (empty for a 200 that is none), ``None`` for anything but a 200."""
    request = urllib.request.Request(base_url(config.server) + path)  # noqa: S310 - always http
    if key := health_key(config.server):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with _direct.open(request, timeout=ANSWER_S) as answer:
            body = json.loads(answer.read())
    except ValueError:
        return {}
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return None
    return body if isinstance(body, dict) else {}
