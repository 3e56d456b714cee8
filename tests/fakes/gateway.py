"""The gateway as its HTTP clients see it: two scripted tiers, every kind of model name, optional keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fakes.raw_client import RawAnswer, RawClient
from fakes.scripted import ScriptedBackend
from fakes.stack import ASK, Stack
from tierfall.errors import StreamBroken
from tierfall.worker import Progress

if TYPE_CHECKING:
    from tierfall.worker import Ask

MAX_BODY_BYTES = 3 * 1024 * 1024
TIERS = """
tiers:
  one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1', max_in_flight: 4}
  two: {worker: ollama, base_url: 'http://127.0.0.1:1'}
models:
  first: {tier: one, backend_model: engine/first, fallbacks: [second]}
  second: {tier: two, backend_model: qwen2.5:3b}
  alone: {tier: one, backend_model: engine/alone, deadlines: {first_token: 300ms, total: 20s, budget: 25s}}
  honest: {tier: one, backend_model: engine/alone, on_stream_failure: error}
  hurried: {tier: one, backend_model: engine/alone, deadlines: {first_token: 100ms, budget: 200ms}}
  idle: {tier: one, backend_model: engine/alone, deadlines: {first_token: 20s, idle: 200ms}}
  groq/llama-3.3-70b-versatile: {tier: one, backend_model: llama}
  qwen2.5:3b: {tier: two, backend_model: qwen2.5:3b}
"""
SERVER = f"server: {{max_body: {MAX_BODY_BYTES}}}\n"
KEYS = (
    f"server: {{max_body: {MAX_BODY_BYTES}, api_keys: "
    "[{key: '${ALL_KEY}', name: all}, {key: '${ONE_KEY}', models: [first, alone]}]}\n"
)
ENVIRON = {"ALL_KEY": "sk-all-1234567890", "ONE_KEY": "sk-one-1234567890"}


class Gateway(Stack):
    """The stack of the tests of the HTTP side; ``one`` and ``two`` are its tiers' backends."""

    def __init__(self, server: str = SERVER) -> None:
        self.one, self.two = ScriptedBackend(), ScriptedBackend()
        super().__init__(server + TIERS, {"one": self.one, "two": self.two}, environ=ENVIRON)

    async def raw(self, *requests: bytes) -> RawAnswer:
        """Bytes sent on a connection of their own, and the response to them."""
        async with RawClient(self.url) as client:
            for request in requests:
                await client.send(request)
            return await client.answer()

    @property
    def idle(self) -> bool:
        """Whether nothing is left of any request, in the ingress and in the workers."""
        return (
            self.services.switchboard.open_lines == 0
            and not any(process._jobs for process in self.workers.values())
            and self.one.running == self.two.running == 0
        )


def asking(content: Any = "Say hello.", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {**ASK, "messages": [{"role": "user", "content": content}], **fields}


def sent(ask: Ask) -> dict[str, bytes]:
    """The members of the body that a backend was asked with, as bytes."""
    return {name: bytes(value) for name, value in ask.body.items()}


SIGN_OF_LIFE = Progress("working")
BROKEN = StreamBroken("the engine went away")
