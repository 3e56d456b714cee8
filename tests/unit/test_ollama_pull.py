"""Pulling what the config names and Ollama does not have."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.ollama import CUT, SUCCESS, FakeOllama
from fakes.polling import until
from tierfall.config.schema import OllamaTier
from tierfall.errors import BackendDown
from tierfall.worker.backend import Ask
from tierfall_worker_ollama import OllamaBackend
from tierfall_worker_ollama.client import OllamaClient
from tierfall_worker_ollama.pull import Puller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODEL = "qwen2.5:3b"


@pytest.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    """An Ollama that has nothing."""
    async with FakeOllama(pulled=()) as fake:
        yield fake


@pytest.fixture
async def client(ollama: FakeOllama) -> AsyncIterator[OllamaClient]:
    """A client of it."""
    client = OllamaClient(ollama.base_url)
    yield client
    await client.close()


def layer(completed: int, digest: str = "sha256:a") -> dict[str, object]:
    """A progress line of one layer of 200 bytes."""
    return {"status": f"pulling {digest}", "digest": digest, "total": 200, "completed": completed}


async def test_probe_pulls_and_tells_how_far(ollama: FakeOllama) -> None:
    """With pull: true the tier loads, says how far, refuses chats meanwhile, and is up when it is there."""
    held = asyncio.Event()
    ollama.plan_pull({"status": "pulling manifest"}, layer(86), held, layer(200), SUCCESS)
    backend = OllamaBackend("cpu", OllamaTier(base_url=ollama.base_url, pull=True), [MODEL])
    await backend.start()
    async with asyncio.timeout(15):
        while (health := await backend.probe()).reason != "pulling qwen2.5:3b: 43 %":
            assert health.state == "loading"
    body = {"messages": msgspec.Raw(b'[{"role":"user","content":"Hi"}]')}
    with pytest.raises(BackendDown, match="43 %"):
        await anext(backend.chat(Ask(request_id="r", model="m", backend_model=MODEL, body=body)))
    held.set()
    async with asyncio.timeout(15):
        while (health := await backend.probe()).state != "up":
            assert health.state == "loading"
    assert health.reason == ""
    assert ollama.to("/api/pull")[0].json["model"] == MODEL
    await backend.close()


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (({"status": "pulling manifest"}, {"error": "no space left on device"}), "no space left on device"),
        ((layer(86), CUT), "broke in the middle"),
        ((layer(86),), "without saying that it was done"),
        ((b"<html>\n",), "no JSON"),
    ],
    ids=["error line", "cut", "no success", "no JSON"],
)
async def test_a_failed_pull_is_tried_again(
    ollama: FakeOllama, client: OllamaClient, steps: tuple[Any, ...], reason: str
) -> None:
    """Whatever stops a pull, its reason is told and the pull begins again until the model is there."""
    held = asyncio.Event()
    ollama.plan_pull(*steps)
    ollama.plan_pull(held, SUCCESS)
    puller = Puller(client, retry_s=0.01)
    puller.want([MODEL])
    await until(lambda: reason in puller.state(MODEL))
    held.set()
    await until(lambda: MODEL in ollama.pulled)
    await until(lambda: puller.state(MODEL) == "")
    assert len(ollama.to("/api/pull")) == 2
    await puller.close()


async def test_a_model_that_cannot_be_pulled_does_not_hold_up_another(
    ollama: FakeOllama, client: OllamaClient
) -> None:
    """The next missing model has its turn while the first waits for its next try."""
    ollama.plan_pull({"error": "pull model manifest: file does not exist"})
    puller = Puller(client, retry_s=3600)
    puller.want(["no-such-model", MODEL])
    await until(lambda: ollama.pulled == [MODEL])
    assert "file does not exist" in puller.state("no-such-model")
    await puller.close()


async def test_layers_are_added_up_and_every_tenth_percent_is_logged(
    ollama: FakeOllama, client: OllamaClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Progress is of all layers together; the log has a line for ten percent, not for each of Ollama's."""
    small = {"status": "pulling b", "digest": "sha256:b", "total": 200, "completed": 0}
    ollama.plan_pull(*(layer(size) for size in range(0, 201, 2)), small, SUCCESS)
    puller = Puller(client)
    with caplog.at_level(logging.INFO, logger="tierfall"):
        puller.want([MODEL])
        await until(lambda: "pulled qwen2.5:3b" in caplog.messages)
    progress = [message for message in caplog.messages if message.startswith("pulling")]
    assert progress == [f"pulling qwen2.5:3b: {percent} %" for percent in range(0, 101, 10)]
    await puller.close()


async def test_closing_stops_a_pull(ollama: FakeOllama, client: OllamaClient) -> None:
    """Closing breaks the pull's connection off, so that Ollama stops too, and leaves no task."""
    before = asyncio.all_tasks()
    ollama.plan_pull(layer(2), asyncio.Event())
    puller = Puller(client)
    puller.want([MODEL])
    await until(lambda: puller.state(MODEL) == "pulling qwen2.5:3b: 1 %")
    await puller.close()
    await until(ollama.to("/api/pull")[0].closed.is_set)
    await until(lambda: ollama.open_connections == 0)
    await until(lambda: asyncio.all_tasks() <= before)
