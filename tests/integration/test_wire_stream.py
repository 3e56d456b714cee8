"""The wire contract, rules 1 to 13: how answers are framed and what their chunks say. Read as raw bytes."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from fakes import faults
from fakes.behaviour import Answer
from fakes.gateway import BROKEN, SIGN_OF_LIFE, Gateway, asking
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.raw_client import RawClient, chat_request
from fakes.scripted import USAGE, ScriptedBackend, Step, chunk, says
from fakes.stack import Stack
from tierfall.protocol import subjects
from tierfall.protocol.envelope import unpack
from tierfall.protocol.failure import pack_failure
from tierfall.protocol.frames import Kind, encode
from tierfall.protocol.presence import Beat, pack_beat
from tierfall_worker_vllm.main import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from fakes.raw_client import RawAnswer
    from tierfall.bus import Message

CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway without keys."""
    async with Gateway() as running:
        yield running


async def streamed(gateway: Stack, script: Sequence[Step] | None = None, **fields: Any) -> RawAnswer:
    """One streamed request, as raw as it came."""
    if script is not None:
        assert isinstance(gateway, Gateway)
        gateway.one.scripts.append(list(script))
    async with RawClient(gateway.url) as client:
        await client.chat(asking(stream=True, **fields))
        return await client.answer()


async def test_an_event_is_one_data_line(gateway: Gateway) -> None:
    """Rule 1: events are ``data: <one line of JSON>`` and a blank line, of type text/event-stream."""
    pretty = json.dumps(json.loads(chunk("a\nb", finish="stop")), indent=1).encode()
    answer = await streamed(gateway, [chunk("x"), pretty])
    assert answer.status == 200
    assert answer.header("content-type") == "text/event-stream"
    for event in answer.events:
        assert event.startswith("data: ")
        assert "\n" not in event
        assert "\r" not in event
    assert answer.chunks[1]["choices"][0]["delta"]["content"] == "a\nb"


@pytest.mark.parametrize("include_usage", [True, False])
async def test_done_is_the_last_event_once(gateway: Gateway, include_usage: bool) -> None:
    """Rule 2: ``data: [DONE]`` comes once, last, after the usage chunk."""
    answer = await streamed(gateway, stream_options={"include_usage": include_usage})
    assert answer.events.count("data: [DONE]") == 1
    assert answer.events[-1] == "data: [DONE]"
    assert answer.body.endswith(b"}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(
    "behaviour",
    [faults.ErrorFrame(after=2), faults.DoneWithoutFinish(), faults.CutAfter(2), faults.Garbage(2)],
    ids=["error-then-done", "done-without-finish", "cut", "garbage"],
)
async def test_an_engines_done_is_not_success(behaviour: Any) -> None:
    """Rule 2: whatever an engine that failed sends at the end, its client reads no ``[DONE]`` and no stop."""
    async with FakeProvider() as provider, engine(provider) as gateway:
        provider.default = behaviour
        answer = await streamed(gateway, model="honest")
        assert answer.status == 200
        assert b"[DONE]" not in answer.body
        assert b'"stop"' not in answer.body
        assert b'"error"' in answer.body


async def test_nothing_is_committed_before_the_first_output(gateway: Gateway) -> None:
    """Rule 3: a role, signs of life: none of it commits the status, so a failure after them is a real one."""
    gateway.one.scripts.extend([[chunk("", role="assistant"), SIGN_OF_LIFE, BROKEN]] * 2)
    async with RawClient(gateway.url) as client:
        await client.chat(asking(model="alone", stream=True))
        answer = await client.answer()
    assert answer.status == 502
    assert answer.json["error"]["code"] == "stream_broken"


async def test_what_is_no_data_is_a_comment(gateway: Gateway) -> None:
    """Rule 3: signs of life in the middle of an answer are comments or nothing, never an empty event."""
    script: list[Step] = [chunk("a"), SIGN_OF_LIFE, 0.05, SIGN_OF_LIFE, chunk("b"), chunk(finish="stop")]
    answer = await streamed(gateway, script)
    for line in filter(None, answer.body.decode().split("\n")):
        assert line.startswith(":") or len(line) > len("data: ")


async def test_utf_8_survives_any_cut(gateway: Gateway) -> None:
    """Rule 4: text in several-byte characters arrives whole though its event is cut into many messages."""
    text = "é€\U0001f600" * 300_000
    answer = await streamed(gateway, [chunk(text), chunk(finish="stop")])
    assert answer.chunks[0]["choices"][0]["delta"]["content"] == text


async def test_every_byte_may_come_alone() -> None:
    """Rule 4: an engine whose bytes come one by one, cut within characters, is read as any other."""
    async with FakeProvider() as provider, engine(provider) as gateway:
        provider.default = faults.SplitEvery(1, Answer("héllo \U0001f600 wörld"))
        answer = await streamed(gateway)
        said = "".join(each["choices"][0]["delta"].get("content") or "" for each in answer.chunks)
        assert said == "héllo \U0001f600 wörld"


async def test_an_error_stands_in_an_event_of_its_own(gateway: Gateway) -> None:
    """Rule 5: a worker that fails in the middle of an event does not spoil the error that follows."""

    def respond(message: Message) -> None:
        stream = unpack(message.data)[0].stream
        whole = b"data: " + chunk("whole") + b"\n\n"
        frames = [
            (Kind.ACCEPTED, b"by-hand"),
            (Kind.CHUNK, whole),
            (Kind.PART, b'data: {"half'),
            (Kind.ERROR, pack_failure(BROKEN)),
        ]
        encoded = [encode(kind, stream, number, payload) for number, (kind, payload) in enumerate(frames)]
        bus.publish(message.reply, b"".join(encoded))

    await gateway.stop_worker(next(key for key in gateway.workers if key.startswith("one")))
    bus = await gateway._connect("by-hand")
    subscription = await bus.subscribe(subjects.chat("one"), respond, queue=subjects.QUEUE_GROUP)
    beat = Beat(worker="by-hand", tier="one", kind="vllm", slots=1, in_flight=0, backend="up")
    bus.publish(subjects.presence("one", "by-hand"), pack_beat(beat))
    await until(lambda: gateway.state("one") == "up")
    try:
        answer = await streamed(gateway, model="honest")
    finally:
        await subscription.close()
        await bus.close()
    assert len(answer.events) == 2
    assert answer.chunks[0]["choices"][0]["delta"]["content"] == "whole"
    assert answer.chunks[1]["error"]["code"] == "stream_broken"


async def test_a_stream_is_not_cached_buffered_or_compressed(gateway: Gateway) -> None:
    """Rule 6: no-cache, no buffering in proxies, no gzip even for who takes it, no delay in TCP."""
    async with RawClient(gateway.url) as client:
        await client.chat(asking(stream=True), "Accept-Encoding: gzip, br")
        answer = await client.answer()
        connection = next(iter(gateway.server.server_state.connections))
        server_socket = connection.transport.get_extra_info("socket")
        assert server_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert answer.header("cache-control") == "no-cache"
    assert answer.header("x-accel-buffering") == "no"
    assert answer.header("content-encoding") is None


async def test_a_token_leaves_at_once(gateway: Gateway) -> None:
    """Rule 6: a token is with the client before the next one exists."""
    read = [asyncio.Event() for _ in range(3)]
    gateway.one.scripts.append(
        [
            chunk("0", role="assistant"),
            read[0],
            chunk("1"),
            read[1],
            chunk("2"),
            read[2],
            chunk(finish="stop"),
        ]
    )
    async with RawClient(gateway.url) as client:
        await client.chat(asking(stream=True))
        assert (await client.head())[0] == 200
        for number, event in enumerate(read):
            assert f'"content": "{number}"'.encode() in await client.piece()
            event.set()
        assert b"stop" in await client.piece()


async def test_id_and_created_are_the_answers(gateway: Gateway) -> None:
    """Rule 7: one id, one created, one model in all chunks, though an engine changes them."""
    changed = json.dumps({**json.loads(chunk("b")), "id": "x", "created": 99, "model": "y"}).encode()
    answer = await streamed(
        gateway, [chunk("a"), changed, *says("c")], stream_options={"include_usage": True}
    )
    assert len({(each["id"], each["created"], each["model"]) for each in answer.chunks}) == 1
    assert answer.chunks[0]["model"] == "first"


async def test_a_later_tier_says_who_it_is(gateway: Gateway) -> None:
    """Rule 7: after an escalation every chunk and every header tells of the tier that answers."""
    gateway.one.scripts.extend([[chunk("", role="assistant"), BROKEN]] * 2)
    answer = await streamed(gateway)
    assert {each["model"] for each in answer.chunks} == {"second"}
    assert len({each["id"] for each in answer.chunks}) == 1
    assert answer.header("x-tierfall-tier") == "two"
    assert answer.header("x-tierfall-attempts") == "one=stream_broken;one=stream_broken;two=ok"


async def test_two_tiers_make_one_answer(gateway: Gateway) -> None:
    """Rule 7: a stream that another tier goes on with keeps id, created and one role; usage comes last."""
    gateway.one.scripts.extend([[chunk("Hello", role="assistant"), BROKEN], [BROKEN], [BROKEN]])
    answer = await streamed(gateway, stream_options={"include_usage": True})
    assert len({(each["id"], each["created"]) for each in answer.chunks}) == 1
    assert {each["model"] for each in answer.chunks} == {"first", "second"}
    deltas = [each["choices"][0]["delta"] for each in answer.chunks if each["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello world."
    assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
    assert answer.chunks[-1]["choices"] == []
    assert answer.events[-1] == "data: [DONE]"


async def test_the_first_delta_of_a_choice_has_the_role(gateway: Gateway) -> None:
    """Rule 8: each choice's first delta carries the role, no other; choices interleave by index."""
    script = [
        chunk("b", index=1),
        chunk("a", index=0),
        chunk("B", index=1, role="assistant"),
        chunk("A", index=0, role="assistant"),
        chunk(finish="stop", index=1),
        chunk(finish="length", index=0),
    ]
    answer = await streamed(gateway, script, n=2)
    seen: dict[int, list[str | None]] = {0: [], 1: []}
    for each in answer.chunks:
        seen[each["choices"][0]["index"]].append(each["choices"][0]["delta"].get("role"))
    assert seen == {0: ["assistant", None, None], 1: ["assistant", None, None]}
    assert [each["choices"][0]["index"] for each in answer.chunks] == [1, 0, 1, 0, 1, 0]


async def test_a_choice_that_begins_late_is_waited_for(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 8: an engine that makes its choices one after the other is not cut off after the first."""
    monkeypatch.setattr("tierfall.worker.job.TAIL_S", 0.02)
    first, second = [chunk("a"), chunk(finish="stop")], [chunk("b", index=1), chunk(finish="stop", index=1)]
    gateway.one.scripts.append([*first, 0.3, *second])
    answer = await gateway.chat(n=2)
    assert [each["message"]["content"] for each in answer.json()["choices"]] == ["a", "b"]


@pytest.mark.parametrize("stream", [True, False])
async def test_choices_that_never_come_are_refused(gateway: Gateway, stream: bool) -> None:
    """Rule 15: a backend that ignores ``n`` is not passed off as one that honours it."""
    gateway.one.scripts.append(says("one"))
    async with RawClient(gateway.url) as client:
        await client.chat(asking(model="alone", n=2, stream=stream))
        answer = await client.answer()
    error = answer.chunks[-1]["error"] if stream else answer.json["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "n")
    assert b"[DONE]" not in answer.body


async def test_the_finish_reason_comes_once(gateway: Gateway) -> None:
    """Rule 9: null before the end, then the reason, then never again."""
    answer = await streamed(gateway, [chunk("a", finish=""), chunk(finish="length"), chunk(finish="length")])
    assert [each["choices"][0]["finish_reason"] for each in answer.chunks] == [None, "length", None]


@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("where", ["own", "every"])
async def test_usage_is_a_chunk_of_its_own_if_asked_for(
    gateway: Gateway, include_usage: bool, where: str
) -> None:
    """Rule 10: asked for, usage is one extra chunk without choices; not asked for, it is nowhere."""
    script = says("a") if where == "own" else [chunk("a", usage=USAGE), chunk(finish="stop", usage=USAGE)]
    answer = await streamed(gateway, script, stream_options={"include_usage": include_usage})
    told = [each for each in answer.chunks if "usage" in each]
    assert [(each["choices"], each["usage"]) for each in told] == ([([], USAGE)] if include_usage else [])
    assert all(each["choices"] for each in answer.chunks if "usage" not in each)


async def test_tool_deltas_are_relayed_as_text(gateway: Gateway) -> None:
    """Rule 11: deltas keyed by index, names said once, arguments as they come, even if they are no JSON."""
    second = {"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": '{"b'}}
    pieces = ['{"a": ', "01,", "\n }"]
    script: list[Step] = [chunk(role="assistant", tool_calls=[CALL])]
    script += [chunk(tool_calls=[{**CALL, "function": {"name": "f", "arguments": part}}]) for part in pieces]
    script += [chunk(tool_calls=[second]), chunk(finish="tool_calls")]
    answer = await streamed(gateway, script)
    calls = [call for each in answer.chunks for call in each["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in calls if call["index"] == 0) == "".join(pieces)
    assert [call.get("id") for call in calls] == ["call_1", None, None, None, "call_2"]
    assert [call["function"].get("name") for call in calls] == ["f", None, None, None, "g"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "behaviour",
    [faults.ErrorFrame(), faults.ErrorIn200(), faults.ErrorFrame(then_done=False)],
    ids=["event-then-done", "body", "event"],
)
async def test_an_error_inside_a_200_escalates(behaviour: Any, stream: bool) -> None:
    """Rule 12: an engine's error after its 200, as first event or whole body, is a failure like any other."""
    async with FakeProvider() as provider, engine(provider) as gateway:
        provider.default = behaviour
        gateway_answer = await gateway.chat(model="first", stream=stream)
        assert gateway_answer.status_code == 200
        assert gateway_answer.headers["x-tierfall-tier"] == "two"
        assert "Hello" in gateway_answer.text


async def test_a_whole_answer_has_its_nulls(gateway: Gateway) -> None:
    """Rule 13: logprobs and refusal are null where there are none; content is null beside tool calls."""
    plain = (await gateway.chat()).json()["choices"][0]
    assert plain["logprobs"] is None
    assert plain["message"] == {"role": "assistant", "content": "Hello world.", "refusal": None}
    gateway.one.scripts.append([chunk("", role="assistant", tool_calls=[CALL]), chunk(finish="tool_calls")])
    called = (await gateway.chat()).json()["choices"][0]
    assert called["message"]["content"] is None
    assert called["message"]["refusal"] is None
    assert called["message"]["tool_calls"][0]["id"] == "call_1"


async def test_a_whole_answer_is_one_json_body(gateway: Gateway) -> None:
    """Rule 13: not streaming, the answer has a length, a JSON type and usage, and is a chat.completion."""
    answer = await gateway.raw(chat_request(asking()))
    assert answer.header("content-type") == "application/json"
    assert answer.header("content-length") == str(len(answer.body))
    assert (answer.json["object"], answer.json["usage"]) == ("chat.completion", USAGE)


def engine(provider: FakeProvider) -> Stack:
    """A gateway whose first tier is the real vLLM worker before a fake engine, the second scripted."""
    config = f"""
tiers:
  one: {{worker: vllm, base_url: '{provider.base_url}'}}
  two: {{worker: ollama, base_url: 'http://127.0.0.1:1'}}
models:
  first: {{tier: one, backend_model: fake-model, fallbacks: [second]}}
  honest: {{tier: one, backend_model: fake-model, on_stream_failure: error}}
  second: {{tier: two, backend_model: x}}
"""
    return Stack(config, {"two": ScriptedBackend()}, builds={"vllm": build})
