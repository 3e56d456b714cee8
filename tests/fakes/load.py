"""Clients in numbers: what each of them got, and whether it was whole."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REFUSED_PAUSE_S: Final = 0.02
REFUSED_TRIES: Final = 500


@dataclass
class Reading:
    """One answer as its client has it, while it comes and afterwards."""

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    text: str = ""
    ids: set[str] = field(default_factory=set)
    models: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    usage: list[dict[str, int]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    outputs: int = 0
    """Chunks with text, so far."""
    done: int = 0
    """How often ``[DONE]`` came."""
    broken: str = ""
    """Why the connection ended early, if it did."""

    @property
    def whole(self) -> bool:
        """Whether the answer came to a good end, once."""
        good = self.status == httpx.codes.OK and not self.errors and not self.broken
        return good and len(self.finishes) == 1 and self.done == 1

    def take_event(self, data: str) -> None:
        """One SSE event's data."""
        if data == "[DONE]":
            self.done += 1
            return
        event = json.loads(data)
        if "error" in event:
            self.errors.append(event["error"])
            return
        self._take_head(event)
        for choice in event["choices"]:
            self._take(choice, choice["delta"])

    def take_body(self, body: bytes) -> None:
        """A whole JSON answer, or an error."""
        answer = json.loads(body)
        if "error" in answer:
            self.errors.append(answer["error"])
            return
        self._take_head(answer)
        self.done = 1
        for choice in answer["choices"]:
            self._take(choice, choice["message"])

    def _take_head(self, event: dict[str, Any]) -> None:
        self.ids.add(f"{event['id']} {event['created']}")
        if event["model"] not in self.models:
            self.models.append(event["model"])
        if event.get("usage"):
            self.usage.append(event["usage"])

    def _take(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        if "role" in delta:
            self.roles.append(delta["role"])
        if delta.get("content"):
            self.text += delta["content"]
            self.outputs += 1
        if choice["finish_reason"]:
            self.finishes.append(choice["finish_reason"])


async def read_chat(
    client: httpx.AsyncClient,
    reading: Reading,
    body: dict[str, Any],
    *,
    base: str = "",
    on_output: Callable[[], object] = int,
) -> Reading:
    """Sends one chat request and reads its answer into ``reading``.

    Args:
        client: Asks.
        reading: Filled while the answer comes.
        body: The request.
        base: The gateway's address, unless the client has it as its base URL.
        on_output: Called after each event of a stream.

    Raises:
        httpx.ConnectError: Nobody listens there.
    """
    try:
        async with client.stream("POST", f"{base}/v1/chat/completions", json=body) as response:
            reading.status, reading.headers = response.status_code, response.headers
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                reading.take_body(await response.aread())
                return reading
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    reading.take_event(line.removeprefix("data: "))
                    on_output()
    except httpx.ConnectError:
        raise
    except httpx.TransportError as error:
        reading.broken = f"{type(error).__name__}: {error}"
    return reading


class RoundRobin:
    """A small load balancer: the next address each time, and the one after it when that one refuses.

    Only a refused connection is tried elsewhere: whatever else happens to a request is its result. Each
    request has a connection of its own. Use as an async context manager.

    Args:
        urls: The addresses.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = itertools.cycle(urls)
        self._count = len(urls)
        self._client = httpx.AsyncClient(
            timeout=60, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self.refused = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def chat(self, body: dict[str, Any]) -> Reading:
        """One request and its answer.

        Raises:
            httpx.ConnectError: All addresses refuse, for a long time.
        """
        for number in range(REFUSED_TRIES):
            try:
                return await read_chat(self._client, Reading(), body, base=next(self._urls))
            except httpx.ConnectError:
                self.refused += 1
                if number % self._count == self._count - 1:
                    await asyncio.sleep(REFUSED_PAUSE_S)
        raise httpx.ConnectError("every address refuses")


class Load:
    """Clients that ask one request after another until told to stop.

    Args:
        ask: Sends the numbered request and returns its answer.
        clients: How many ask at a time.
    """

    def __init__(self, ask: Callable[[int], Any], clients: int) -> None:
        self._ask = ask
        self._clients = clients
        self._numbers = itertools.count()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.readings: list[Reading] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._go_on()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Lets what is under way finish; drops it when the test has failed."""
        self._stopping = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        found = await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            for each in found:
                if isinstance(each, BaseException):
                    raise each

    async def _go_on(self) -> None:
        while not self._stopping:
            self.readings.append(await self._ask(next(self._numbers)))
