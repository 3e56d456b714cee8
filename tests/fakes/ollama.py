"""A scripted Ollama: its native API on a real socket, failing on command.

A chat or a pull plays a script: a sequence of lines (dicts), raw bytes, events to wait for, ``CUT`` and
``RESET``. Like the real one, it sends status and headers with the first line only. ::

    async with FakeOllama() as ollama:
        ollama.plan(said("Hello"), done())
        ...  # talk to ollama.base_url
        assert ollama.chats[0].json["stream"] is True
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fakes.http11 import ClientHungUp, Connection, Recorded
from fakes.texts import VECTOR

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST = "127.0.0.1"
NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"
SUCCESS = {"status": "success"}
"""The last line of a pull."""


class Break(enum.Enum):
    """Ways to break a connection off."""

    CUT = "cut"
    RESET = "reset"


CUT = Break.CUT
RESET = Break.RESET


@dataclass(frozen=True)
class Refuse:
    """An HTTP error with Ollama's error object."""

    status: int
    error: str
    retry_after: str = ""

    async def play(self, request: Recorded, pulled: list[str]) -> None:
        """Sends it."""
        del pulled
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        body = json.dumps({"error": self.error}).encode()
        await request.connection.whole(self.status, body, JSON, headers)


@dataclass(frozen=True)
class Script:
    """A streamed answer, step by step; ends the body in good order unless a step broke it off."""

    steps: Sequence[dict[str, Any] | bytes | asyncio.Event | Break]

    async def play(self, request: Recorded, pulled: list[str]) -> None:
        """Plays it; a pulled model is there before its success is told."""
        connection, begun = request.connection, False
        for step in self.steps:
            match step:
                case asyncio.Event():
                    await _either(step, connection.gone)
                    continue
                case Break.CUT:
                    return connection.cut()
                case Break.RESET:
                    return connection.reset()
                case bytes():
                    data = step
                case _:
                    data = json.dumps(step).encode() + b"\n"
                    if step == SUCCESS:
                        pulled.append(request.json["model"])
            if not begun:
                begun = True
                await connection.head(200, NDJSON)
            await connection.chunk(data)
        if not begun:
            await connection.head(200, NDJSON)
        return await connection.finish()


Step = dict[str, Any] | bytes | asyncio.Event | Break


def said(content: str = "", **more: Any) -> dict[str, Any]:
    """A line with a piece of the answer; ``thinking`` and ``tool_calls`` go into its message."""
    message = {"role": "assistant", "content": content}
    message |= {name: more.pop(name) for name in ("thinking", "tool_calls") if name in more}
    return {"model": "fake", "created_at": "2025-01-01T00:00:00Z", "message": message, "done": False, **more}


def done(reason: str = "stop", prompt: int = 3, answer: int = 2) -> dict[str, Any]:
    """The last line."""
    counts = {"prompt_eval_count": prompt, "eval_count": answer, "total_duration": 1000}
    return {**said(), "done": True, "done_reason": reason, **counts}


def wrote(text: str = "", **more: Any) -> dict[str, Any]:
    """A line with a piece of a completion."""
    return {"model": "fake", "created_at": "2025-01-01T00:00:00Z", "response": text, "done": False, **more}


def written(reason: str = "stop", prompt: int = 3, answer: int = 2) -> dict[str, Any]:
    """A completion's last line."""
    counts = {"prompt_eval_count": prompt, "eval_count": answer, "total_duration": 1000}
    return {**wrote(), "done": True, "done_reason": reason, **counts}


def embedded(asked: dict[str, Any]) -> dict[str, Any]:
    """An answer with a vector for each input, one token each."""
    inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    vector = VECTOR[: asked.get("dimensions")]
    return {"model": "fake", "embeddings": [vector for _ in inputs], "prompt_eval_count": len(inputs)}


DEFAULTS: dict[str, Sequence[Step]] = {
    "/api/chat": [said("Hello"), said(" world"), done()],
    "/api/generate": [wrote("Hello"), wrote(" world"), written()],
    "/api/pull": [SUCCESS],
}


class FakeOllama:
    """An Ollama on a port of its own.

    Attributes:
        pulled: Names that ``/api/tags`` lists; a pull that ends in ``success`` adds its model.
        remote: Those of them that Ollama would reach over the network.
        loaded: Names that ``/api/ps`` lists.
        window: Their context windows as it tells them; ``None`` leaves the field out, as old versions do.
        capabilities: What ``/api/show`` says of every model; ``None`` leaves the field out.
        version: What ``/api/version`` says; ``None``: there is no such path.
        silent: Set to make tags and ps hang.
        requests: Every request so far.
    """

    def __init__(self, pulled: Sequence[str] = ("fake:1b",), loaded: Sequence[str] = ("fake:1b",)) -> None:
        self.port = 0
        self.pulled = list(pulled)
        self.window: int | None = None
        self.remote: set[str] = set()
        self.loaded = list(loaded)
        self.capabilities: list[str] | None = ["completion"]
        self.version: str | None = "0.17.1"
        self.silent = False
        self.requests: list[Recorded] = []
        self._plans: dict[str, deque[Script | Refuse]] = defaultdict(deque)
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://{HOST}:{self.port}"

    @property
    def chats(self) -> list[Recorded]:
        """The chat requests so far."""
        return self.to("/api/chat")

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed."""
        return sum(not connection.gone.is_set() for connection in self._connections)

    def to(self, path: str) -> list[Recorded]:
        """The requests to one path so far."""
        return [request for request in self.requests if request.path == path]

    def plan(self, *steps: Step, path: str = "/api/chat") -> None:
        """Queues one request's script; without any, chats and completions say "Hello world"."""
        self._plans[path].append(Script(steps))

    def refuse(self, status: int, error: str, retry_after: str = "", path: str = "/api/chat") -> None:
        """Queues an HTTP error for one request."""
        self._plans[path].append(Refuse(status, error, retry_after))

    def plan_pull(self, *steps: Step) -> None:
        """Queues one pull's script; without any, pulls succeed at once."""
        self._plans["/api/pull"].append(Script(steps))

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._serve, self._connections.add), HOST, self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Closes the listening socket and every connection: the next one is refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            await connection.stop()
        self._connections.clear()

    async def _serve(self, request: Recorded) -> None:
        self.requests.append(request)
        with contextlib.suppress(ClientHungUp):
            await self._answer(request)

    async def _answer(self, request: Recorded) -> None:
        match request.path:
            case "/api/tags" | "/api/ps" if self.silent:
                await request.connection.wait_gone()
            case "/api/tags":
                listed = [{"name": name, **self._remote_of(name)} for name in self.pulled]
                await _whole(request, {"models": listed})
            case "/api/ps":
                window = {} if self.window is None else {"context_length": self.window}
                await _whole(request, {"models": [{"name": name, **window} for name in self.loaded]})
            case "/api/version" if self.version is not None:
                await _whole(request, {"version": self.version})
            case "/api/show":
                known = {} if self.capabilities is None else {"capabilities": self.capabilities}
                await _whole(request, {"details": {}, **known})
            case "/api/embed" if not self._plans["/api/embed"]:
                await _whole(request, embedded(request.json))
            case "/api/chat" | "/api/generate" | "/api/embed" | "/api/pull":
                await self._play(request)
            case _:
                await request.connection.whole(404, b"404 page not found", "text/plain")

    async def _play(self, request: Recorded) -> None:
        plan = self._plans[request.path]
        script = plan.popleft() if plan else Script(DEFAULTS[request.path])
        await script.play(request, self.pulled)

    def _remote_of(self, name: str) -> dict[str, str]:
        return {"remote_host": "https://elsewhere.example"} if name in self.remote else {}


async def _whole(request: Recorded, body: dict[str, Any]) -> None:
    await request.connection.whole(200, json.dumps(body).encode(), JSON)


async def _either(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
