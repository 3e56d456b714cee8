"""Whether a provider can be used: it is there, and it takes the key."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tierfall.errors import BackendDown, BackendError, ProviderRefused, TierfallError
from tierfall.upstream import KEY_REFUSED
from tierfall.upstream.failure import from_answer
from tierfall.worker import Health

if TYPE_CHECKING:
    from tierfall.config import Secret
    from tierfall.upstream import OpenAIUpstream

CHECK_TIMEOUT_S: Final = 4.0
"""Below the worker runtime's own limit on a probe."""
CHECK_EVERY_S: Final = 60.0
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 30.0

_OK: Final = 200
_SERVER_ERROR: Final = 500


class Account:
    """A provider as one key sees it. ``GET /models`` is asked seldom: it counts towards some rate limits.

    Args:
        upstream: The provider's HTTP client.
        key: Its API key.
    """

    def __init__(self, upstream: OpenAIUpstream, key: Secret) -> None:
        self._upstream = upstream
        self._missing = f"{key.source} is not set" if key.source and not key.value else ""
        self._health = Health("down", "not asked yet")
        self._asked = False
        self._due = 0.0
        self._retry_s = FIRST_RETRY_S
        self._doubted = False
        """A chat found the key refused, and none has worked since. Some providers list models to anybody."""

    @property
    def down_because(self) -> str:
        """Why it was last found useless, for its operator; empty when it was not."""
        if self._missing:
            return self._missing
        return self._health.reason if self._asked and self._health.state == "down" else ""

    async def probe(self) -> Health:
        """What is known, asked anew when that is due."""
        if self._missing:
            return Health("down", self._missing)
        if time.monotonic() >= self._due:
            self._keep(await self._ask())
        return self._health

    def note(self, error: TierfallError) -> None:
        """Learns from a chat that failed: a refused key or connection concerns the whole tier."""
        if isinstance(error, BackendDown):
            self._keep(Health("down", error.internal))
        elif isinstance(error, ProviderRefused) and error.code == KEY_REFUSED:
            self._doubted = True
            self._keep(Health("down", self._refused_key()))

    def works(self) -> None:
        """Learns from a chat that got an answer."""
        self._doubted = False

    def _keep(self, health: Health) -> None:
        self._health = health
        self._asked = True
        if health.state == "up":
            self._due = time.monotonic() + CHECK_EVERY_S
            if not self._doubted:
                self._retry_s = FIRST_RETRY_S
        else:
            self._due = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    async def _ask(self) -> Health:
        source = self._upstream.source
        try:
            reply = await self._upstream.ask(
                "GET", f"{self._upstream.base_url}/models", timeout_s=CHECK_TIMEOUT_S
            )
        except TimeoutError:
            return Health("down", f"{source.base_url} does not answer within {CHECK_TIMEOUT_S:g} s")
        except BackendError as error:
            return Health("down", error.internal)
        if reply.status >= _SERVER_ERROR:
            return Health("down", f"{source.name} answers {reply.status} to GET /models")
        if reply.status != _OK:
            refusal = from_answer(source, reply.status, {}, reply.body)
            if refusal.code == KEY_REFUSED:
                return Health("down", self._refused_key())
        return Health("up", "", _names(reply.json))  # 404 or 429: it is there, and takes the key

    def _refused_key(self) -> str:
        source = self._upstream.source
        return f"{source.name} refused the key (401): check {source.key}"


def _names(listed: object) -> tuple[str, ...]:
    """The ids of an OpenAI model list; Google puts ``models/`` before its names."""
    data = listed.get("data") if isinstance(listed, dict) else None
    found = [each.get("id") for each in data or () if isinstance(each, dict)]
    return tuple(name.removeprefix("models/") for name in found if isinstance(name, str))
