"""A backend without an engine: each request plays the next script. For what only the runtime decides."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from fakes.texts import VECTOR
from tierfall.errors import TierfallError
from tierfall.protocol.operation import Operation
from tierfall.worker import Ask, Health, Prefill, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

Step = bytes | Progress | TierfallError | float | asyncio.Event
"""A chunk's JSON, a sign of life, a failure, a pause in seconds, or something to wait for."""


def chunk(
    content: str | None = None,
    *,
    role: str | None = None,
    finish: str | None = None,
    index: int = 0,
    usage: dict[str, int] | None = None,
    **delta: Any,
) -> bytes:
    """One chunk as an engine would send it."""
    if role is not None:
        delta["role"] = role
    if content is not None:
        delta["content"] = content
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    body: dict[str, Any] = {
        "id": "engine-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "engine",
    }
    body["choices"] = [choice]
    if usage is not None:
        body["usage"] = usage
    return json.dumps(body).encode()


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def says(*words: str) -> list[Step]:
    """A whole answer of these words, with usage."""
    usage = json.dumps({"choices": [], "usage": USAGE}).encode()
    return [chunk("", role="assistant"), *map(chunk, words), chunk(finish="stop"), usage]


def text(words: str, *, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """One chunk of a text completion as an engine would send it."""
    choice = {"index": index, "text": words, "logprobs": None, "finish_reason": finish, **more}
    head = {"id": "engine-1", "object": "text_completion", "created": 1, "model": "engine"}
    return json.dumps({**head, "choices": [choice]}).encode()


def writes(*words: str) -> list[Step]:
    """A whole completion of these words, with usage."""
    usage = json.dumps({"choices": [], "usage": USAGE}).encode()
    return [*map(text, words), text("", finish="stop"), usage]


def vectors(count: int = 1, vector: Any = VECTOR) -> bytes:
    """Embeddings as an engine would send them."""
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return json.dumps({"object": "list", "data": data, "model": "engine", "usage": usage}).encode()


DEFAULTS: dict[Operation, list[Step]] = {
    Operation.CHAT: says("Hello", " world."),
    Operation.COMPLETIONS: writes("Hello", " world."),
    Operation.EMBEDDINGS: [vectors()],
}


class ScriptedBackend:
    """Plays scripts; remembers what it was asked and how each request ended.

    Attributes:
        scripts: The next requests' steps; when none is left, the answer is ``Hello world.``, or one vector
        health: What the next probe finds.
        asks: The requests so far.
        cancelled: How many were cut off.
        running: How many run now.
    """

    base_url = "http://127.0.0.1:1"

    def __init__(self, scripts: Iterable[list[Step]] = ()) -> None:
        self.scripts = deque(scripts)
        self.health = Health("up")
        self.asks: list[Ask] = []
        self.cancelled = 0
        self.running = 0
        self.closed = False
        self.complete: Any = self.chat
        self.embed: Any = self.chat
        self.prefill_mode = Prefill.UNSUPPORTED
        self.prefills: list[str] = []

    def without(self, operation: Operation) -> None:
        """Makes it a backend that has no such method."""
        delattr(self, {Operation.COMPLETIONS: "complete", Operation.EMBEDDINGS: "embed"}[operation])

    async def start(self) -> None:
        """Nothing to open."""

    async def probe(self) -> Health:
        """As set."""
        return self.health

    async def chat(self, ask: Ask) -> AsyncIterator[bytes | Progress]:
        """Plays the next script, whatever the operation."""
        self.asks.append(ask)
        script = self.scripts.popleft() if self.scripts else DEFAULTS[ask.operation]
        self.running += 1
        try:
            for step in script:
                if isinstance(step, TierfallError):
                    raise step.detached()
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def prefill(self, ask: Ask, text: str) -> Prefill:
        """As set; the text is kept beside the request."""
        self.prefills.append(text)
        ask.body["prefilled"] = msgspec.Raw(json.dumps(text).encode())
        return self.prefill_mode

    async def close(self) -> None:
        """Remembered."""
        self.closed = True
