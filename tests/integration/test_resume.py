"""A stream that breaks after its first output goes on without a seam, or ends in an honest error."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from fakes.polling import until
from fakes.scripted import ScriptedBackend, Step, chunk, says
from fakes.stack import Stack
from tierfall.errors import BackendFault, InvalidRequest, StreamBroken
from tierfall.worker import Prefill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 2}
  b: {worker: ollama, base_url: http://127.0.0.1:1, max_in_flight: 2}
models:
  first:
    tier: a
    backend_model: model-a
    deadlines: {first_token: 2s, idle: 400ms, total: 8s}
    fallbacks: [second]
  second: {tier: b, backend_model: model-b}
  patient: {tier: a, backend_model: model-a}
  strict: {tier: a, backend_model: model-a, fallbacks: [second], on_stream_failure: error}
"""
WORDS = ["One", " two", " three", " four", " five."]
TEXT = "".join(WORDS)


class Tiers(Stack):
    """Two tiers; the first one's stream breaks."""

    def __init__(self) -> None:
        self.a, self.b = ScriptedBackend(), ScriptedBackend()
        super().__init__(CONFIG, {"a": self.a, "b": self.b})

    async def read(self, **fields: Any) -> Read:
        """One streamed answer to its end."""
        response = await self.chat(stream=True, stream_options={"include_usage": True}, **fields)
        return Read(response.text)


class Read:
    """A streamed answer as its client has it."""

    def __init__(self, text: str) -> None:
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        self.done = lines.count("[DONE]")
        self.events = [json.loads(line) for line in lines if line != "[DONE]"]
        chunks = [event for event in self.events if "choices" in event]
        self.ids = {(event["id"], event["created"]) for event in chunks}
        self.models = list(dict.fromkeys(event["model"] for event in chunks))
        choices = [choice for event in chunks for choice in event["choices"]]
        self.text = "".join(choice["delta"].get("content") or "" for choice in choices)
        self.reasoning = "".join(choice["delta"].get("reasoning_content") or "" for choice in choices)
        self.roles = [choice["delta"]["role"] for choice in choices if "role" in choice["delta"]]
        self.finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        self.usage = [event["usage"] for event in chunks if event.get("usage")]
        self.errors = [event["error"]["code"] for event in self.events if "error" in event]


def broken(*words: str, how: Step | None = None) -> list[Step]:
    """A stream that breaks after these words."""
    return [chunk("", role="assistant"), *map(chunk, words), how or StreamBroken("reset")]


def expect_seamless(read: Read, text: str = TEXT) -> None:
    """One answer: one id, one role, one finish_reason, one usage, one [DONE]."""
    assert read.text == text
    assert len(read.ids) == 1
    assert (read.roles, read.finishes, read.done, read.errors) == (["assistant"], ["stop"], 1, [])
    assert len(read.usage) == 1


@pytest.fixture
async def tiers() -> AsyncIterator[Tiers]:
    """Both tiers up."""
    async with Tiers() as running:
        yield running


@pytest.mark.parametrize("cut", range(1, 5))
async def test_same_tier_repeats(tiers: Tiers, cut: int) -> None:
    """A backend that cannot be prefilled answers anew, and only what is new of it is sent."""
    tiers.a.scripts.extend([broken(*WORDS[:cut]), says(*WORDS)])
    read = await tiers.read()
    expect_seamless(read)
    assert read.models == ["first"]


async def test_a_seam_inside_a_chunk(tiers: Tiers) -> None:
    """The new answer may be cut into other pieces than the first one."""
    tiers.a.scripts.extend([broken("One tw"), says("O", "ne t", "wo three four", " five.")])
    expect_seamless(await tiers.read())


async def test_silent_prefill(tiers: Tiers) -> None:
    """A backend that goes on from a given beginning sends the rest, and usage is of the whole answer."""
    tiers.a.prefill_mode = Prefill.SILENT
    tiers.a.scripts.extend([broken(*WORDS[:2]), says(*WORDS[2:])])
    read = await tiers.read(max_tokens=10)
    expect_seamless(read)
    assert tiers.a.prefills == ["One two"]
    # The scripts count 3 prompt and 2 completion tokens; two of the prompt are the answer's beginning.
    assert read.usage == [{"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}]
    assert json.loads(bytes(tiers.a.asks[1].body["max_tokens"])) == 8


async def test_echoed_prefill(tiers: Tiers) -> None:
    """A backend that repeats the given beginning is heard from its end on."""
    tiers.a.prefill_mode = Prefill.ECHOED
    tiers.a.scripts.extend([broken(*WORDS[:2]), says("One two", *WORDS[2:])])
    expect_seamless(await tiers.read())


async def test_refused_prefill_repeats(tiers: Tiers) -> None:
    """A backend that turns out not to take a prefill is asked anew."""
    tiers.a.prefill_mode = Prefill.SILENT
    tiers.a.scripts.extend([broken(*WORDS[:2]), [InvalidRequest("no such thing")], says(*WORDS)])
    expect_seamless(await tiers.read())


async def test_next_tier_goes_on(tiers: Tiers) -> None:
    """When its own tier cannot, the next tier goes on, under its own name and the same id."""
    tiers.a.scripts.extend([broken(*WORDS[:3]), [BackendFault("500")], [BackendFault("500")]])
    tiers.b.scripts.append(says(*WORDS))
    read = await tiers.read()
    expect_seamless(read)
    assert read.models == ["first", "second"]


async def test_a_reload_in_mid_stream_changes_nothing(tiers: Tiers) -> None:
    """A request lives by the config that it began with, also when its model is gone by the time it breaks."""
    go_on = asyncio.Event()
    tiers.a.scripts.extend([[*broken(*WORDS[:2])[:-1], go_on, StreamBroken("reset")], says(*WORDS)])
    pending = asyncio.create_task(tiers.read())
    await until(lambda: tiers.a.running == 1)
    tiers.services.apply(tiers.parse(CONFIG.replace("  first:", "  renamed:")))
    go_on.set()
    expect_seamless(await pending)


async def test_another_break_is_resumed_too(tiers: Tiers) -> None:
    """A stream may break again and again, as long as somebody goes on."""
    tiers.a.scripts.extend([broken(*WORDS[:1]), broken(*WORDS[:3]), says(*WORDS)])
    expect_seamless(await tiers.read())


async def test_a_stalled_stream_moves_on(tiers: Tiers) -> None:
    """Silence in the middle ends the attempt at its idle deadline, and another tier goes on."""
    tiers.a.scripts.append(broken(*WORDS[:2], how=asyncio.Event()))
    tiers.b.scripts.append(says(*WORDS))
    read = await tiers.read()
    expect_seamless(read)
    assert len(tiers.a.asks) == 1
    await until(lambda: tiers.a.cancelled == 1)


async def test_a_killed_worker_is_replaced(tiers: Tiers) -> None:
    """A worker that dies in mid-stream is replaced by another one of its tier."""
    spare = ScriptedBackend()
    tiers.a.scripts.append(broken(*WORDS[:2], how=asyncio.Event()))
    pending = asyncio.create_task(tiers.read(model="patient"))  # its idle clock leaves it to the lease
    await until(lambda: tiers.a.running == 1)
    await tiers.add_worker("a", spare)
    spare.scripts.append(says(*WORDS))
    await tiers.kill_worker("a-0")
    read = await pending
    expect_seamless(read)
    assert read.models == ["patient"]


async def test_reasoning_is_not_said_twice(tiers: Tiers) -> None:
    """Reasoning that the client has is skipped like text."""
    thought: list[Step] = [
        chunk(role="assistant", reasoning_content="Let me"),
        chunk(reasoning_content=" see."),
    ]
    tiers.a.scripts.append([*thought, chunk("One"), StreamBroken("reset")])
    tiers.a.scripts.append([*thought, *map(chunk, WORDS), chunk(finish="stop", usage={"total_tokens": 9})])
    read = await tiers.read()
    expect_seamless(read)
    assert read.reasoning == "Let me see."
    assert tiers.a.prefills == []


async def test_a_different_answer_is_never_spliced(tiers: Tiers) -> None:
    """When every new answer differs, the client keeps what it has and gets an error frame."""
    tiers.a.scripts.extend([broken(*WORDS[:2]), says("Something", " else")])
    tiers.b.scripts.append(says("One", " three"))
    read = await tiers.read()
    assert (read.text, read.done, read.finishes) == ("One two", 0, [])
    assert read.errors == ["stream_broken"]


async def test_a_shorter_answer_is_never_spliced(tiers: Tiers) -> None:
    """A new answer that ends before the client's part does is another answer."""
    tiers.a.scripts.extend([broken(*WORDS[:3]), says("One")])
    tiers.b.scripts.append(says("One two"))
    read = await tiers.read()
    assert (read.text, read.done, read.errors) == ("One two three", 0, ["stream_broken"])


async def test_broken_behind_the_finish_is_whole(tiers: Tiers) -> None:
    """An answer whose finish_reason has arrived is whole, whatever happens to its connection."""
    tiers.a.scripts.append([chunk(TEXT, role="assistant"), chunk(finish="stop"), StreamBroken("reset")])
    response = await tiers.chat(stream=True)
    read = Read(response.text)
    assert (read.text, read.finishes, read.done, read.errors) == (TEXT, ["stop"], 1, [])


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"structured_outputs": {"regex": "a*"}},
        {"model": "strict"},
    ],
    ids=str,
)
async def test_what_is_never_resumed(tiers: Tiers, fields: dict[str, Any]) -> None:
    """Several choices, log probabilities, bound output and models that say so end in an error frame."""
    tiers.a.scripts.append(broken("One"))
    read = await tiers.read(**fields)
    assert (read.text, read.done, read.errors) == ("One", 0, ["stream_broken"])
    assert len(tiers.a.asks) == 1
    assert not tiers.b.asks


async def test_tool_calls_are_never_resumed(tiers: Tiers) -> None:
    """Half a tool call is never completed by another model."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
    tiers.a.scripts.append([chunk(role="assistant", tool_calls=[call]), StreamBroken("reset")])
    read = await tiers.read()
    assert (read.done, read.errors) == (0, ["stream_broken"])
    assert len(tiers.a.asks) == 1


async def test_hanging_up_while_it_is_resumed(tiers: Tiers) -> None:
    """A client that leaves during a resume leaves nothing behind."""
    tiers.a.scripts.extend([broken("One"), [asyncio.Event()]])
    async with tiers.stream() as response:
        events = response.aiter_raw()
        await anext(events)
        await until(lambda: len(tiers.a.asks) == 2 and tiers.a.running == 1)
        await events.aclose()
    await until(lambda: tiers.a.running == 0)
    await until(lambda: tiers.services.switchboard.open_lines == 0)
