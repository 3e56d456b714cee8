"""A fake OpenAI-compatible provider that fails on command.

In a test::

    async with FakeProvider() as provider:
        provider.plan(Status(429, retry_after=2), Answer("hello world"))
        ...  # talk to provider.base_url
        assert provider.chats[0].json["stream"] is True

As a process, controlled over HTTP (``POST /_fake/plan`` with ``{"model": ..., "behaviours": [{"kind":
"Status", "status": 500}]}``, ``GET /_fake/requests``)::

    python -m fakes.provider --port 8000
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, Self

from fakes import faults, torn
from fakes.behaviour import JSON, Answer, Behaviour, error_body, words
from fakes.http11 import ClientHungUp, Connection, Recorded
from fakes.texts import TextAnswer, Vectors

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
QUEUED = 4
"""More connections than a listening socket without a backlog takes."""


class FakeProvider:
    """A provider on a port of its own.

    Behaviours are taken first in, first out: those planned for the request's model, then those planned for
    any, then ``defaults[model]``, then ``default``.

    Args:
        port: 0 draws a free one.
        models: What ``/v1/models`` lists.
        owned_by: Whose it says that they are: ``vllm`` and ``llamacpp`` tell which engine this is.
        api_key: When set, ``/v1`` answers 401 to any other bearer token.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        models: tuple[str, ...] = ("fake-model",),
        owned_by: str = "fake",
        api_key: str | None = None,
    ) -> None:
        self.port = port
        self.models = models
        self.owned_by = owned_by
        self.api_key = api_key
        self.default: Behaviour = Answer("Hello from the fake provider.")
        self.defaults: dict[str, Behaviour] = {}
        self.text: Behaviour | None = TextAnswer()
        """What ``/completions`` does by default; ``None``: there is no such path."""
        self.vectors: Behaviour | None = Vectors()
        """Likewise, ``/embeddings``."""
        self.health: Behaviour | None = faults.Status(200, body=b"")
        """What ``/health`` does; ``None``: there is no such path."""
        self.model_list: Behaviour | None = None
        """What ``/models`` does instead of listing ``models``."""
        self.version: str | None = None
        """What vLLM's ``/version`` and llama.cpp's ``/props`` say; ``None``: there are no such paths."""
        self.tokenizer: str = ""
        """``vllm`` or ``llama``: which engine's ``/tokenize`` there is."""
        self.requests: list[Recorded] = []
        self._plans: dict[str, deque[Behaviour]] = defaultdict(deque)
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._blocking: list[socket.socket] = []

    @property
    def root(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """The root with ``/v1``."""
        return f"{self.root}/v1"

    @property
    def chats(self) -> list[Recorded]:
        """The chat requests so far."""
        return [request for request in self.requests if request.path.endswith("/chat/completions")]

    def to(self, path: str) -> list[Recorded]:
        """The requests to one path behind ``/v1`` so far."""
        return [request for request in self.requests if request.path == f"/v1{path}"]

    @property
    def listening(self) -> bool:
        """Whether a connection would be taken."""
        return self._server is not None

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed."""
        return sum(not connection.gone.is_set() for connection in self._connections)

    def plan(self, *behaviours: Behaviour, model: str = "") -> None:
        """Queues behaviours, for one model or for any."""
        self._plans[model].extend(behaviours)

    def forget(self) -> None:
        """Drops what was planned and what was asked."""
        self._plans.clear()
        self.requests.clear()

    async def __aenter__(self) -> Self:
        await self.resume()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.refuse()

    async def resume(self) -> None:
        """Listens (again), on the port that it had."""
        await self.refuse()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._serve, self._connections.add), HOST, self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Closes the listening socket and breaks off every connection: the next one is refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            await connection.stop()
        self._connections.clear()
        for blocking in self._blocking:
            blocking.close()
        self._blocking.clear()

    async def vanish(self) -> None:
        """As :meth:`refuse`, but the next connection is not even refused: nothing answers it."""
        await self.refuse()
        address = (HOST, self.port)
        full = socket.create_server(address, backlog=0)  # Linux drops who comes while its queue is full
        self._blocking.append(full)
        for _ in range(QUEUED):
            waiting = socket.socket()
            waiting.setblocking(False)  # noqa: FBT003 - the standard library's signature
            waiting.connect_ex(address)
            self._blocking.append(waiting)

    async def _serve(self, request: Recorded) -> None:
        path = request.path.partition("?")[0]
        if path.startswith("/_fake/"):
            await self._control(request, path)
            return
        self.requests.append(request)
        behaviour = self._route(request, path)
        with contextlib.suppress(ClientHungUp):
            await behaviour.play(request)

    def _route(self, request: Recorded, path: str) -> Behaviour:
        missing = faults.Status(404, body=error_body(f"no path {path}", "not_found"))
        if path.endswith("/health"):
            return self.health or missing
        if self.version is not None and path in {"/version", "/props"}:
            member = "version" if path == "/version" else "build_info"
            return faults.Status(200, body={member: self.version})
        if self.tokenizer and path in {"/tokenize", "/apply-template"}:
            return self._tokens(request, path)
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return faults.Status(401, body=error_body("Incorrect API key provided", code="invalid_api_key"))
        if path.endswith("/models"):
            listed = [{"id": model, "object": "model", "owned_by": self.owned_by} for model in self.models]
            return self.model_list or faults.Status(200, body={"object": "list", "data": listed})
        default = self._default_of(path)
        return missing if default is None else self._next(str(request.json.get("model", "")), default)

    def _default_of(self, path: str) -> Behaviour | None:
        if path.endswith("/chat/completions"):
            return self.default
        if path.endswith("/embeddings"):
            return self.vectors
        return self.text if path.endswith("/completions") else None

    def _next(self, model: str, default: Behaviour) -> Behaviour:
        for queue in (self._plans.get(model), self._plans.get("")):
            if queue:
                return queue.popleft()
        return self.defaults.get(model, default)

    def _tokens(self, request: Recorded, path: str) -> Behaviour:
        """One token a word of the messages, as vLLM's or llama.cpp's server reports them."""
        asked = request.json
        if path == "/apply-template":
            text = " ".join(str(message["content"]) for message in asked["messages"])
            return faults.Status(200, body={"prompt": text})
        if self.tokenizer == "vllm":
            if "prompt" in asked:
                count = len(words(asked["prompt"]))
                return faults.Status(200, body={"count": count, "tokens": list(range(count))})
            if "messages" not in asked:
                return faults.Status(400)
            count = sum(len(words(str(message["content"]))) for message in asked["messages"])
            return faults.Status(200, body={"count": count, "tokens": list(range(count))})
        count = len(words(asked.get("content", "")))
        return faults.Status(200, body={"tokens": list(range(count))})

    async def _control(self, request: Recorded, path: str) -> None:
        if path == "/_fake/plan":
            asked = request.json
            self.plan(*map(behaviour_from, asked["behaviours"]), model=asked.get("model", ""))
            body: Any = {"planned": len(asked["behaviours"])}
        else:
            body = [
                {"path": seen.path, "closed": seen.closed.is_set(), "answered": seen.answered}
                for seen in self.requests
            ]
        await request.connection.whole(200, json.dumps(body).encode(), JSON)


def behaviour_from(spec: dict[str, Any]) -> Behaviour:
    """A behaviour from its JSON form: its class's name as ``kind``, its fields beside it."""
    fields: dict[str, Any] = {
        name: Answer(**value) if name == "answer" else value for name, value in spec.items()
    }
    kind: str = fields.pop("kind")
    known = {"Answer": Answer, **vars(torn), **vars(faults)}
    found: Callable[..., Behaviour] | None = known.get(kind)
    if found is None:
        raise ValueError(f"no behaviour is called {kind}")
    return found(**fields)


async def _main(arguments: argparse.Namespace) -> None:
    models = tuple(arguments.models.split(","))
    async with FakeProvider(arguments.port, models=models, api_key=arguments.api_key) as provider:
        provider.default = Answer(arguments.text, tokens_per_s=arguments.tokens_per_s)
        sys.stdout.write(f"listening on {provider.base_url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--models", default="fake-model", help="names, separated by commas")
    parser.add_argument("--api-key")
    parser.add_argument("--text", default=Answer.text)
    parser.add_argument("--tokens-per-s", type=float, default=0.0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))
