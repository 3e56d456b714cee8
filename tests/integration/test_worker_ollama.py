"""The Ollama worker in the whole gateway: real NATS, real ingress, a scripted Ollama."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from fakes.ollama import FakeOllama, done, said
from fakes.polling import until
from fakes.stack import Stack
from tierfall_worker_ollama import OllamaBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.nats_server import NatsServer

CONFIG = """
tiers:
  small: {{worker: ollama, base_url: '{small}'}}
  large: {{worker: ollama, base_url: '{large}'}}
models:
  first:
    tier: small
    backend_model: fake:1b
    deadlines: {{first_token: 500ms, load: 30s}}
    fallbacks: [second]
  second: {{tier: large, backend_model: fake:1b}}
"""
LOOK = {"id": "call_x", "function": {"name": "look", "arguments": {"city": "Köln"}}}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture
async def small() -> AsyncIterator[FakeOllama]:
    """The first tier's Ollama."""
    async with FakeOllama() as fake:
        yield fake


@pytest.fixture
async def large() -> AsyncIterator[FakeOllama]:
    """The second tier's."""
    async with FakeOllama() as fake:
        yield fake


@pytest.fixture
async def stack(small: FakeOllama, large: FakeOllama) -> AsyncIterator[Stack]:
    """Both tiers served by real workers."""
    text = CONFIG.format(small=small.base_url, large=large.base_url)
    async with Stack(text, builds={"ollama": OllamaBackend.from_tier}) as running:
        yield running


@pytest.fixture
async def sdk(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    """The official client."""
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_a_streamed_answer_reads_as_openais(small: FakeOllama, sdk: AsyncOpenAI) -> None:
    """The official SDK sees text, reasoning, tool calls, finish_reason and usage in their places."""
    small.plan(said(thinking="hm"), said("Let me look."), said(tool_calls=[LOOK]), done(prompt=7, answer=5))
    stream = await sdk.chat.completions.create(
        model="first",
        messages=[{"role": "user", "content": "Weather?"}],
        tools=[TOOL],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert "".join(delta.content or "" for delta in deltas) == "Let me look."
    assert [extra for d in deltas if (extra := (d.model_extra or {}).get("reasoning_content"))] == ["hm"]
    assert [(c.index, c.id, c.function and c.function.name) for c in calls] == [(0, "call_x", "look")]
    assert calls[0].function is not None
    assert json.loads(calls[0].function.arguments or "") == {"city": "Köln"}
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 12
    assert {chunk.model for chunk in chunks} == {"first"}


async def test_what_one_tier_cannot_do_goes_to_the_next(
    small: FakeOllama, large: FakeOllama, stack: Stack
) -> None:
    """A model that cannot call tools hands the request on, and the client sees only the answer."""
    small.refuse(400, "fake:1b does not support tools")
    response = await stack.chat(tools=[TOOL])
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello world"
    assert response.headers["x-tierfall-tier"] == "large"
    assert len(large.chats) == 1


async def test_a_loading_model_is_waited_for(small: FakeOllama, large: FakeOllama, stack: Stack) -> None:
    """While Ollama loads the model, the load deadline runs: first_token passes and nobody escalates."""
    loop = asyncio.get_running_loop()
    held = asyncio.Event()
    small.loaded.clear()
    looks = len(small.to("/api/ps"))
    # The second look from here on is asked for after the first one's answer was read.
    await until(lambda: len(small.to("/api/ps")) >= looks + 2)
    small.plan(held, said("Worth it"), done())
    chat = asyncio.create_task(stack.chat())
    await until(lambda: small.chats)
    # Three times the model's first_token.
    patience = loop.time() + 1.5
    await until(lambda: loop.time() > patience)
    held.set()
    response = await chat
    assert response.json()["choices"][0]["message"]["content"] == "Worth it"
    assert not large.chats
    assert len(small.chats) == 1


async def test_a_silent_model_is_not_waited_for(small: FakeOllama, large: FakeOllama, stack: Stack) -> None:
    """A loaded model that says nothing within first_token is cancelled, and the next tier answers."""
    small.plan(asyncio.Event())
    response = await stack.chat()
    assert response.headers["x-tierfall-tier"] == "large"
    await until(small.chats[0].closed.is_set)
    assert len(large.chats) == 1


async def test_a_client_that_hangs_up_stops_ollama(small: FakeOllama, stack: Stack) -> None:
    """The connection to Ollama closes when the client's does."""
    small.plan(said("Hello"), asyncio.Event())
    async with stack.stream() as response:
        async for line in response.aiter_lines():
            if "Hello" in line:
                break
    await until(small.chats[0].closed.is_set)


async def test_the_command_serves_and_drains(
    small: FakeOllama, nats_server: NatsServer, tmp_path: Path
) -> None:
    """`tierfall-worker-ollama --config FILE` probes its Ollama and leaves with 0 on SIGTERM."""
    config = tmp_path / "tierfall.yaml"
    text = CONFIG.format(small=small.base_url, large=small.base_url)
    config.write_text(f"nats: {{url: '{nats_server.url}'}}\n{text}")
    command = str(Path(sys.executable).parent / "tierfall-worker-ollama")
    process = await asyncio.create_subprocess_exec(command, "--config", str(config), "--tier", "small")
    try:
        await until(lambda: len(small.to("/api/tags")) > 1 or process.returncode is not None)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
