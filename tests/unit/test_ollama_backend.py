"""The Ollama backend against a scripted Ollama: health, streams, failures, cancelling."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import tierfall_worker_ollama.backend
from fakes.ollama import CUT, RESET, FakeOllama, done, said
from fakes.polling import until
from tierfall.config.schema import Config, Model, OllamaTier, VllmTier
from tierfall.errors import (
    BackendDown,
    BackendFault,
    ConfigError,
    ContextLengthExceeded,
    InvalidRequest,
    ProviderRefused,
    RateLimited,
    StreamBroken,
    TierBusy,
    TierfallError,
    UnsupportedByTier,
    UnsupportedOperation,
)
from tierfall.worker.backend import Ask, Progress
from tierfall_worker_ollama import OllamaBackend
from tierfall_worker_ollama.library import VERSION_EVERY_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
THINK = {"reasoning_effort": "low"}


@pytest.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    """An Ollama that has fake:1b, loaded."""
    async with FakeOllama() as fake:
        yield fake


@pytest.fixture
async def backend(ollama: FakeOllama) -> AsyncIterator[OllamaBackend]:
    """A backend whose config names fake:1b."""
    backend = made(ollama)
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress comes each 10 ms."""
    monkeypatch.setattr(tierfall_worker_ollama.backend, "PROGRESS_EVERY_S", 0.01)


def made(ollama: FakeOllama, *models: str) -> OllamaBackend:
    """A backend for these models, by way of the config."""
    tier = OllamaTier(base_url=ollama.base_url)
    names = models or ("fake:1b",)
    config = Config(
        tiers={"cpu": tier}, models={name: Model(tier="cpu", backend_model=name) for name in names}
    )
    return OllamaBackend.from_tier("cpu", tier, config)


@asynccontextmanager
async def opened(ollama: FakeOllama, num_ctx: int | None) -> AsyncIterator[OllamaBackend]:
    """A backend whose tier says how large the window is, and that has found Ollama's version."""
    backend = OllamaBackend("cpu", OllamaTier(base_url=ollama.base_url, num_ctx=num_ctx), ["fake:1b"])
    await backend.start()
    await backend.probe()
    yield backend
    await backend.close()


def ask(model: str = "fake:1b", **body: Any) -> Ask:
    """A request with one user message."""
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **body})
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return Ask(request_id="r", model="m", backend_model=model, body=members, traceparent="00-ab-cd-01")


async def items(backend: OllamaBackend, request: Ask | None = None) -> list[bytes | Progress]:
    """Everything that one chat yields."""
    return [item async for item in backend.chat(request or ask())]


async def gather(backend: OllamaBackend, into: list[bytes | Progress]) -> None:
    """As :func:`items`, but keeps what came before an error."""
    async for item in backend.chat(ask()):
        into.append(item)  # noqa: PERF401 - a comprehension would lose it


def text(yielded: list[bytes | Progress]) -> str:
    """The answer's content."""
    chunks = [json.loads(item) for item in yielded if isinstance(item, bytes)]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


# Health


async def test_probe_lists_what_ollama_has(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """With its models there, the tier is up and says what Ollama serves, in Ollama's names."""
    ollama.pulled.append("Other:7B")
    health = await backend.probe()
    assert (health.state, health.reason, health.models) == ("up", "", ("fake:1b", "Other:7B"))


async def test_probe_tells_that_nobody_listens(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """A refused connection is down, with a reason that says what to do."""
    await ollama.stop()
    health = await backend.probe()
    assert health.state == "down"
    assert health.reason == "Ollama does not answer: connection refused; is `ollama serve` running?"


@pytest.mark.parametrize("name", ["qwen2.5", "Qwen2.5:latest", "library/qwen2.5"])
async def test_names_of_one_model_are_one(ollama: FakeOllama, name: str) -> None:
    """The tag :latest, the default namespace and case do not make another model."""
    ollama.pulled = ["qwen2.5:latest"]
    backend = made(ollama, name)
    await backend.start()
    assert (await backend.probe()).state == "up"
    await backend.close()


async def test_the_only_model_missing_is_down(ollama: FakeOllama) -> None:
    """Without any configured model the tier is down and says both ways out; a chat fails at once."""
    backend = made(ollama, "qwen2.5:3b")
    await backend.start()
    health = await backend.probe()
    assert health.state == "down"
    assert health.reason == (
        "qwen2.5:3b is not pulled: run `ollama pull qwen2.5:3b`, or set tiers.cpu.pull: true"
    )
    with pytest.raises(ProviderRefused, match=r"ollama pull qwen2\.5:3b"):
        await items(backend, ask("qwen2.5:3b"))
    assert not ollama.chats
    await backend.close()


async def test_one_model_missing_of_two_is_up_with_a_reason(ollama: FakeOllama) -> None:
    """The tier serves what it can and names what it cannot."""
    backend = made(ollama, "fake:1b", "qwen2.5:3b")
    await backend.start()
    health = await backend.probe()
    assert health.state == "up"
    assert "ollama pull qwen2.5:3b" in health.reason
    assert text(await items(backend)) == "Hello world"
    await backend.close()


async def test_slow_probes_do_not_take_a_busy_ollama_down(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """Inference may hold every core: only the third probe without an answer means down."""
    assert (await backend.probe()).state == "up"
    ollama.silent = True
    assert [(await backend.probe()).state for _ in range(3)] == ["up", "up", "down"]
    ollama.silent = False
    assert (await backend.probe()).state == "up"


async def test_probe_knows_what_is_not_ollama(ollama: FakeOllama) -> None:
    """Another server at base_url is down, with the setting named."""
    tier = OllamaTier(base_url=f"{ollama.base_url}/elsewhere")
    backend = OllamaBackend("cpu", tier, ["fake:1b"])
    await backend.start()
    health = await backend.probe()
    assert health.state == "down"
    assert "tiers.cpu.base_url" in health.reason
    with pytest.raises(ProviderRefused, match="not Ollama"):
        await items(backend)
    await backend.close()


def test_config_mistakes_are_told_at_the_start() -> None:
    """Another kind of tier, or the URL of Ollama's OpenAI endpoint, is a config error with its path."""
    vllm = VllmTier(base_url="http://127.0.0.1:8000/v1")
    with pytest.raises(ConfigError, match=r"tiers\.gpu\.worker"):
        OllamaBackend.from_tier("gpu", vllm, Config(tiers={"gpu": vllm}, models={}))
    tier = OllamaTier(base_url="http://127.0.0.1:11434/v1/")
    with pytest.raises(ConfigError, match=r"tiers\.cpu\.base_url"):
        OllamaBackend.from_tier("cpu", tier, Config(tiers={"cpu": tier}, models={}))


# Streams


async def test_chat_streams_and_closes_its_connection(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """A loaded model answers without progress; the trace goes along; no connection stays."""
    yielded = await items(backend)
    assert text(yielded) == "Hello world"
    assert not any(isinstance(item, Progress) for item in yielded)
    assert ollama.chats[0].headers["traceparent"] == "00-ab-cd-01"
    await until(lambda: ollama.open_connections == 0)


async def test_lines_may_come_in_any_pieces(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """A line split within a character, two lines at once, and a last line without its end are read right."""
    first, second, last = (
        json.dumps(line, ensure_ascii=False).encode() for line in (said("grü"), said("ße"), done())
    )
    cut = first.index("ü".encode()) + 1
    ollama.plan(first[:cut], first[cut:] + b"\n" + second + b"\n", last)
    assert text(await items(backend)) == "grüße"


async def test_text_arrives_before_the_next_line_exists(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """Nothing is held back: each line is yielded while Ollama still works on the next."""
    held = asyncio.Event()
    ollama.plan(said("Hello"), held, said(" world"), done())
    async with aclosing(backend.chat(ask())) as stream:
        assert text([await anext(stream)]) == "Hello"
        held.set()
        assert text([item async for item in stream]) == " world"


@pytest.mark.usefixtures("hurried")
async def test_loading_is_told_at_once_and_again(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """While a model that was not in memory has said nothing, progress says loading, on one request."""
    ollama.loaded.clear()
    held = asyncio.Event()
    ollama.plan(held, said("Hello"), done())
    async with aclosing(backend.chat(ask())) as stream:
        for _ in range(3):
            assert await anext(stream) == Progress("loading")
            # The real one lists a model from the moment that it begins to load it.
            ollama.loaded = ["fake:1b"]
        held.set()
        rest = [item async for item in stream]
    assert text(rest) == "Hello"
    assert len(ollama.chats) == 1


@pytest.mark.usefixtures("hurried")
async def test_reading_the_prompt_is_told(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """A loaded model that reads a long prompt is prefilling, which stretches no deadline."""
    held = asyncio.Event()
    ollama.plan(held, said("Hello"), done())
    async with aclosing(backend.chat(ask())) as stream:
        assert await anext(stream) == Progress("prefilling")
        held.set()
        assert text([item async for item in stream]) == "Hello"


async def test_a_remote_model_is_never_loading(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """What Ollama reaches over the network has nothing to load."""
    ollama.loaded.clear()
    ollama.remote = {"fake:1b"}
    assert not any(isinstance(item, Progress) for item in await items(backend))


# Failures


@pytest.mark.parametrize(
    ("status", "said_by_ollama", "body", "expected", "param"),
    [
        (400, "fake:1b does not support tools", {}, UnsupportedByTier, "tools"),
        (400, '"fake:1b" does not support thinking', THINK, UnsupportedByTier, "reasoning_effort"),
        (
            400,
            'think value "low" is not supported for this model',
            THINK,
            UnsupportedByTier,
            "reasoning_effort",
        ),
        (400, "the input length exceeds the context length", {}, ContextLengthExceeded, "messages"),
        (400, "json: cannot unmarshal", {}, InvalidRequest, None),
        (400, '"fake:1b" does not support chat', {}, UnsupportedOperation, None),
        (401, "unauthorized", {}, ProviderRefused, None),
        (404, "model 'fake:1b' not found", {}, ProviderRefused, None),
        (429, "slow down", {}, RateLimited, None),
        (500, "invalid JSON schema in format", {}, InvalidRequest, "response_format"),
        (500, 'option "top_k" must be of type integer', {}, InvalidRequest, "options"),
        (500, "model runner has unexpectedly stopped", {}, BackendFault, None),
        (500, "model requires more system memory (9 GiB) than is available", {}, ProviderRefused, None),
        (503, "server busy, please try again.  maximum pending requests exceeded", {}, TierBusy, None),
        (503, "something else", {}, BackendFault, None),
    ],
)
async def test_refusals(  # noqa: PLR0917 - a table's columns
    ollama: FakeOllama,
    backend: OllamaBackend,
    status: int,
    said_by_ollama: str,
    body: dict[str, Any],
    expected: type[TierfallError],
    param: str | None,
) -> None:
    """Each of Ollama's errors is the class that makes the ladder do the right thing."""
    ollama.refuse(status, said_by_ollama, retry_after="7")
    with pytest.raises(TierfallError) as caught:
        await items(backend, ask(**body))
    assert (type(caught.value), caught.value.param) == (expected, param)
    assert caught.value.retry_after == (7 if expected is RateLimited else None)


async def test_missing_model_names_the_command(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """A model that vanished since the last probe says how to get it."""
    ollama.refuse(404, "model 'fake:1b' not found")
    with pytest.raises(ProviderRefused, match="run: ollama pull fake:1b"):
        await items(backend)


async def test_connection_refused(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """Nobody listening is a backend that is down."""
    await ollama.stop()
    with pytest.raises(BackendDown):
        await items(backend)


async def test_reset_before_the_answer(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """A connection reset before any answer is a fault that may be tried again, not a broken stream."""
    ollama.plan(RESET)
    with pytest.raises(BackendFault) as caught:
        await items(backend)
    assert type(caught.value) is BackendFault


@pytest.mark.parametrize(
    "steps",
    [
        (said("Hal"), CUT),
        (said("Hal"), RESET),
        (said("Hal"),),
        (said("Hal"), b'{"message": {"content": "f'),
        (said("Hal"), {"error": "an error was encountered while running the model"}),
        (),
    ],
    ids=["cut", "reset", "no last line", "half a line", "error line", "empty"],
)
async def test_an_answer_without_its_end_is_a_broken_stream(
    ollama: FakeOllama, backend: OllamaBackend, steps: tuple[Any, ...]
) -> None:
    """However an answer stops before its last line, the end is an error and never a finish_reason."""
    ollama.plan(*steps)
    yielded: list[bytes | Progress] = []
    with pytest.raises(StreamBroken):
        await gather(backend, yielded)
    assert text(yielded) == ("Hal" if steps else "")
    assert not any(json.loads(c)["choices"][0]["finish_reason"] for c in yielded if isinstance(c, bytes))


async def test_a_wrong_request_never_reaches_ollama(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """What cannot be translated costs no round trip."""
    with pytest.raises(UnsupportedByTier):
        await items(backend, ask(n=2))
    assert not ollama.requests


async def test_images_for_a_model_without_eyes(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """Ollama drops such images without a word, so they are refused by their place before it can."""
    request = ask(messages=[{"role": "user", "content": [PIXEL]}])
    with pytest.raises(UnsupportedByTier) as caught:
        await items(backend, request)
    assert caught.value.param == "messages[0].content[0].image_url"
    assert not ollama.chats


@pytest.mark.parametrize("capabilities", [["completion", "vision"], None])
async def test_images_for_a_model_with_eyes(
    ollama: FakeOllama, backend: OllamaBackend, capabilities: list[str] | None
) -> None:
    """A model that sees gets them; an Ollama too old to tell is believed, and asked once."""
    ollama.capabilities = capabilities
    for _ in range(2):
        await items(backend, ask(messages=[{"role": "user", "content": [PIXEL]}]))
    assert ollama.chats[1].json["messages"][0]["images"] == ["aGVsbG8="]
    assert len(ollama.to("/api/show")) == 1


# Cancelling


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("begun", [False, True], ids=["before the first line", "in mid-stream"])
async def test_cancel_closes_the_connection(ollama: FakeOllama, backend: OllamaBackend, begun: bool) -> None:
    """Cancelling the reader closes Ollama's connection, which stops its work; nothing is left running."""
    ollama.plan(*([said("Hello")] if begun else []), asyncio.Event())
    reader = asyncio.create_task(items(backend))
    await until(lambda: ollama.chats)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until(ollama.chats[0].closed.is_set)
    await until(lambda: ollama.open_connections == 0)


@pytest.mark.usefixtures("hurried")
async def test_closing_the_generator_closes_the_connection(
    ollama: FakeOllama, backend: OllamaBackend
) -> None:
    """A reader that stops at a progress item leaves neither a connection nor a task."""
    before = asyncio.all_tasks()
    ollama.plan(asyncio.Event())
    stream = backend.chat(ask())
    assert await anext(stream) == Progress("prefilling")
    await stream.aclose()
    await until(ollama.chats[0].closed.is_set)
    await until(lambda: ollama.open_connections == 0)
    await until(lambda: asyncio.all_tasks() <= before)


# Its version


async def test_the_version_is_asked_for_seldom(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """At the start, and again when Ollama was away: another one may have come back."""
    ollama.version = "0.12.3"
    for _ in range(3):
        assert (await backend.probe()).engine == "Ollama 0.12.3"
    assert len(ollama.to("/api/version")) == 1
    await ollama.stop()
    assert (await backend.probe()).engine == ""
    ollama.version = "0.40.2"
    async with ollama:
        assert (await backend.probe()).engine == "Ollama 0.40.2"


async def test_an_update_between_two_probes_is_seen(
    ollama: FakeOllama, backend: OllamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ollama restarts faster than probes come, so it is asked again after a while."""
    ollama.version = "0.12.3"
    assert (await backend.probe()).engine == "Ollama 0.12.3"
    ollama.version = "0.40.2"
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now + VERSION_EVERY_S + 1)
    health = await backend.probe()
    assert (health.state, health.engine) == ("up", "Ollama 0.40.2")


@pytest.mark.parametrize("version", [None, "", "<html>"])
async def test_an_unknown_version_changes_nothing(
    ollama: FakeOllama, backend: OllamaBackend, version: str | None
) -> None:
    """A server that does not say, or says nonsense, is as healthy as before."""
    ollama.version = version
    for _ in range(2):
        health = await backend.probe()
        assert (health.state, health.engine) == ("up", "")
    assert len(ollama.to("/api/version")) == 1


LONG = "word " * 3000


@pytest.mark.parametrize(
    ("num_ctx", "body"),
    [
        (None, {}),
        (4500, {}),
        (None, {"tools": [{"type": "function", "function": {"name": "look", "description": LONG}}]}),
    ],
)
async def test_an_old_ollama_gets_nothing_that_it_would_cut(
    ollama: FakeOllama, num_ctx: int | None, body: dict[str, Any]
) -> None:
    """It is refused as too long, so that the ladder finds a larger window, and nothing is sent."""
    ollama.version = "0.12.3"
    content = "Hi" if "tools" in body else LONG
    async with opened(ollama, num_ctx) as backend:
        with pytest.raises(ContextLengthExceeded, match="would cut them without an error") as caught:
            await items(backend, ask(messages=[{"role": "user", "content": content}], **body))
    assert caught.value.param == "messages"
    assert ollama.chats == []


async def test_the_window_of_a_loaded_model_counts(ollama: FakeOllama, backend: OllamaBackend) -> None:
    """``OLLAMA_CONTEXT_LENGTH`` may have made it larger than Ollama's own; what the tier says beats both."""
    ollama.version, ollama.window = "0.12.3", 8192
    await backend.probe()
    long = [{"role": "user", "content": LONG}]
    await items(backend, ask(messages=long))
    assert len(ollama.chats) == 1
    async with opened(ollama, 4096) as smaller:
        with pytest.raises(ContextLengthExceeded):
            await items(smaller, ask(messages=long))


@pytest.mark.parametrize(
    ("version", "num_ctx", "body"),
    [
        ("0.12.6", None, {}),
        (None, None, {}),
        ("0.12.3", 8192, {}),
        ("0.12.3", None, {"truncate": True}),
        (
            "0.12.3",
            None,
            {"messages": [{"role": "user", "content": [PIXEL, {"type": "text", "text": "Hi"}]}]},
        ),
    ],
)
async def test_what_would_not_be_cut_is_sent(
    ollama: FakeOllama, version: str | None, num_ctx: int | None, body: dict[str, Any]
) -> None:
    """A newer Ollama judges itself; a larger window, the client's own wish, and images are no reason."""
    ollama.version, ollama.capabilities = version, ["completion", "vision"]
    async with opened(ollama, num_ctx) as backend:
        await items(backend, ask(**{"messages": [{"role": "user", "content": LONG}], **body}))
    assert len(ollama.chats) == 1
