"""The upstream client against a provider that misbehaves in every way."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.behaviour import TEXT, Answer, error_body
from fakes.faults import (
    ClosesAfter,
    CutAfter,
    CutBeforeHeaders,
    CutMidEvent,
    DoneThenSilence,
    DoneWithoutFinish,
    Empty,
    ErrorFrame,
    ErrorIn200,
    Garbage,
    HalfBody,
    HeadersThenSilence,
    IgnoresStream,
    NoDone,
    Raw,
    ResetBeforeHeaders,
    RoleThenSilence,
    Silence,
    SplitEvery,
    StallAfter,
    Status,
)
from fakes.provider import FakeProvider
from tierfall.chat import ChunkStream
from tierfall.errors import (
    BackendDown,
    BackendFault,
    ConfigError,
    InvalidRequest,
    ProviderRefused,
    RateLimited,
    StreamBroken,
    TierfallError,
)
from tierfall.protocol.operation import Operation
from tierfall.upstream import OpenAIUpstream, Source, encode, prepare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.behaviour import Behaviour

BODY = json.dumps(
    {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}
).encode()


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider of its own for each test."""
    async with FakeProvider() as running:
        yield running


@pytest.fixture
async def upstream(provider: FakeProvider) -> AsyncIterator[OpenAIUpstream]:
    """A client of that provider."""
    client = OpenAIUpstream(Source("fake", provider.base_url), headers={"Authorization": "Bearer key"})
    yield client
    await client.close()


async def until(condition: Any) -> None:
    """Polls until the condition holds; the test's own timeout is the limit."""
    while not condition():  # noqa: ASYNC110 - no event tells of every condition
        await asyncio.sleep(0.005)


async def run(upstream: OpenAIUpstream) -> tuple[str, TierfallError | None, list[Any]]:
    """One chat, judged as a worker judges it: the text that came, the error after it, the chunks."""
    text, chunks, judge = "", [], ChunkStream("chatcmpl-1", 1, "first")
    try:
        async for payload in upstream.answer(Operation.CHAT, BODY):
            judge.feed(payload)
            chunk = json.loads(payload)
            chunks.append(chunk)
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    except TierfallError as error:
        return text, error, chunks
    return text, None, chunks


@pytest.mark.parametrize(
    "behaviour", [Answer(), SplitEvery(1), SplitEvery(7), NoDone(), DoneWithoutFinish(), IgnoresStream()]
)
async def test_whole_answers(provider: FakeProvider, upstream: OpenAIUpstream, behaviour: Behaviour) -> None:
    """Every form of a whole answer comes through; ``[DONE]`` itself never does."""
    provider.plan(behaviour)
    text, error, chunks = await run(upstream)
    assert error is None
    assert text == TEXT
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)


async def test_payload_bytes_are_not_touched(provider: FakeProvider, upstream: OpenAIUpstream) -> None:
    """A chunk leaves byte for byte as the backend sent it, odd spacing and unknown members included."""
    odd = '{ "choices" : [ ], "x_vendor":1e2, "t":"é\\u00e9" }'.encode()
    provider.plan(Raw(b"data: " + odd + b"\n\ndata: [DONE]\n\n"))
    assert [payload async for payload in upstream.answer(Operation.CHAT, BODY)] == [odd]


async def test_payload_is_one_line(provider: FakeProvider, upstream: OpenAIUpstream) -> None:
    """JSON that was spread over several data lines leaves on one line."""
    provider.plan(Raw(b'data: {"choices":\ndata: []}\n\ndata: [DONE]\n\n'))
    assert [payload async for payload in upstream.answer(Operation.CHAT, BODY)] == [b'{"choices": []}']


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (Status(500), BackendFault),
        (Status(429, retry_after=2), RateLimited),
        (Status(400), InvalidRequest),
        (Status(404), ProviderRefused),
        (Status(302, headers={"Location": "/elsewhere"}), ProviderRefused),
        (HalfBody(500), BackendFault),
        (ResetBeforeHeaders(), BackendFault),
        (CutBeforeHeaders(), BackendFault),
        (ErrorFrame(), BackendFault),
        (ErrorIn200(), BackendFault),
        (ErrorIn200(error_body("bad", "invalid_request_error", 400)), InvalidRequest),
        (HalfBody(200), StreamBroken),
        (Garbage(0), StreamBroken),
        (Raw(b"data: [1]\n\n"), StreamBroken),
        (Raw(b'data: {"a":"\xff"}\n\n'), StreamBroken),
        (Raw(b'data: {"error":{"message":"\xff"}}\n\n'), StreamBroken),
        (Raw(b'data: {"error":{"code":1e999}}\n\n'), StreamBroken),
        (Raw(b"<html>Welcome</html>", "text/html"), ProviderRefused),
    ],
)
async def test_failures_before_output(
    provider: FakeProvider, upstream: OpenAIUpstream, behaviour: Behaviour, expected: type[TierfallError]
) -> None:
    """Each failure before any output is exactly its class of the tree, and the client works on after it."""
    provider.plan(behaviour)
    text, error, _ = await run(upstream)
    assert type(error) is expected
    assert text == ""
    assert (await run(upstream))[1] is None


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (CutAfter(3), StreamBroken),
        (CutMidEvent(3), StreamBroken),
        (CutMidEvent(3, clean=True), StreamBroken),
        (Garbage(3), StreamBroken),
        (ErrorFrame(3), BackendFault),
        (ErrorFrame(3, body={"object": "error", "message": "x", "code": 500}), BackendFault),
    ],
)
async def test_failures_after_output(
    provider: FakeProvider, upstream: OpenAIUpstream, behaviour: Behaviour, expected: type[TierfallError]
) -> None:
    """Each failure in mid-stream is an error after the output that came before it, none of it lost."""
    provider.plan(behaviour)
    text, error, _ = await run(upstream)
    assert type(error) is expected
    assert text == "one two three "


async def test_reset_in_mid_stream(provider: FakeProvider, upstream: OpenAIUpstream) -> None:
    """A reset in mid-stream is a broken stream; the kernel may drop what had not been read."""
    provider.plan(CutAfter(3, reset=True))
    text, error, _ = await run(upstream)
    assert type(error) is StreamBroken
    assert "one two three ".startswith(text)


async def test_what_came_before_a_cut_is_not_lost(provider: FakeProvider, upstream: OpenAIUpstream) -> None:
    """A slow consumer still gets the chunks that arrived before the connection broke."""
    provider.plan(CutAfter(8))
    stream = upstream.answer(Operation.CHAT, BODY)
    first = await anext(stream)
    await until(lambda: provider.chats[0].connection.gone.is_set() and provider.open_connections == 0)
    await asyncio.sleep(0)
    text, error = "", None
    try:
        async for payload in stream:
            text += json.loads(payload)["choices"][0]["delta"]["content"]
    except TierfallError as broken:
        error = broken
    assert json.loads(first)["choices"][0]["delta"]["role"] == "assistant"
    assert text == "one two three four five six seven eight "
    assert type(error) is StreamBroken


@pytest.mark.parametrize(
    "choice", ["1", '"finish_reason"', '{"message": "text"}', '{"message": {"tool_calls": [1]}}']
)
async def test_a_completion_of_other_fields_breaks_the_stream(
    provider: FakeProvider, upstream: OpenAIUpstream, choice: str
) -> None:
    """JSON to a streaming request whose choices are none is garbage like any other."""
    provider.plan(Raw(f'{{"choices": [{choice}]}}'.encode(), "application/json"))
    text, error, _ = await run(upstream)
    assert (text, type(error)) == ("", StreamBroken)


@pytest.mark.parametrize("code", [None, "null"])
async def test_null_error_member_is_no_error(
    provider: FakeProvider, upstream: OpenAIUpstream, code: str | None
) -> None:
    """``"error": null`` in a chunk, or the word in its text, is not taken for an error."""
    provider.plan(Answer('say "error": {} now', extra={"error": None, "code": code}))
    text, error, _ = await run(upstream)
    assert (text, error) == ('say "error": {} now', None)


async def test_refused_connection_is_a_backend_that_is_down(
    provider: FakeProvider, upstream: OpenAIUpstream
) -> None:
    """Nobody listening is BackendDown, with the address for its operator; later the same client works."""
    await provider.refuse()
    _, error, _ = await run(upstream)
    assert type(error) is BackendDown
    assert provider.base_url in error.internal
    assert "127.0.0.1" not in error.message
    await provider.resume()
    assert (await run(upstream))[1] is None


async def test_unknown_host_is_a_backend_that_is_down() -> None:
    """A name that does not resolve is BackendDown; what is no URL is refused where it is configured."""
    client = OpenAIUpstream(Source("fake", "http://nowhere.invalid/v1"))
    assert type((await run(client))[1]) is BackendDown
    await client.close()
    with pytest.raises(ConfigError, match="not a url"):
        OpenAIUpstream(Source("fake", "not a url"))


async def test_empty_stream_just_ends(provider: FakeProvider, upstream: OpenAIUpstream) -> None:
    """A stream without events ends without payloads: the caller judges."""
    provider.plan(Empty())
    assert (await run(upstream))[1:] == (None, [])


@pytest.mark.parametrize("behaviour", [Silence(), HeadersThenSilence(), RoleThenSilence(), StallAfter(3)])
async def test_cancel_closes_the_backends_connection(
    provider: FakeProvider, upstream: OpenAIUpstream, behaviour: Behaviour
) -> None:
    """Cancelling a chat, wherever it stands, closes the connection: the engine sees it within a second."""
    provider.plan(behaviour)
    task = asyncio.create_task(run(upstream))
    await until(lambda: provider.chats)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    async with asyncio.timeout(1):
        await provider.chats[0].closed.wait()


async def test_closing_the_generator_closes_the_connection(
    provider: FakeProvider, upstream: OpenAIUpstream
) -> None:
    """So does closing the generator between two chunks."""
    provider.plan(StallAfter(3))
    stream = upstream.answer(Operation.CHAT, BODY)
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(1):
        await provider.chats[0].closed.wait()


async def test_connection_is_kept_for_the_next_request(provider: FakeProvider) -> None:
    """Where connections are kept, answers that end in good order share one."""
    client = OpenAIUpstream(Source("fake", provider.base_url), keepalive_s=30)
    for _ in range(3):
        await run(client)
        await until(lambda: not client._lingering)
    assert len({id(request.connection) for request in provider.chats}) == 1
    await client.close()


async def test_connections_that_the_engine_closes_cost_one_request_at_most(
    provider: FakeProvider, upstream: OpenAIUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that closes after each answer, unannounced, may swallow what is sent at that moment, once."""
    monkeypatch.setattr("tierfall.upstream.connection.HASTY_CLOSE_S", 30.0)  # however slow the machine is
    provider.default = ClosesAfter()
    found = [(await run(upstream))[:2] for _ in range(20)]
    whole = [text for text, error in found if error is None]
    assert set(whole) == {TEXT}
    assert len(whole) >= 19
    assert found[-1] == (TEXT, None)


async def test_done_is_the_end_even_if_the_body_is_not(
    provider: FakeProvider, upstream: OpenAIUpstream
) -> None:
    """After ``[DONE]`` the answer is over, and a connection that stays open is given up soon."""
    provider.plan(DoneThenSilence())
    assert (await run(upstream))[0] == TEXT
    await provider.chats[0].closed.wait()


async def test_close_leaves_nothing_behind(provider: FakeProvider) -> None:
    """Closing the client also ends a connection that lingers after ``[DONE]``."""
    client = OpenAIUpstream(Source("fake", provider.base_url))
    provider.plan(DoneThenSilence())
    await run(client)
    await client.close()
    await until(lambda: provider.open_connections == 0)


async def test_headers(provider: FakeProvider, upstream: OpenAIUpstream) -> None:
    """The tier's key and a request's own headers are sent; compression and cookies are not asked for."""
    async for _ in upstream.answer(Operation.CHAT, BODY, {"traceparent": "00-1-2-01"}):
        pass
    sent = provider.chats[0].headers
    assert sent["authorization"] == "Bearer key"
    assert sent["traceparent"] == "00-1-2-01"
    assert sent["accept-encoding"] == "identity"
    assert sent["content-type"] == "application/json"
    assert "cookie" not in sent


async def test_ask_has_a_timeout(provider: FakeProvider, upstream: OpenAIUpstream) -> None:
    """A side request that is not answered in time is a TimeoutError, and its connection is closed."""
    provider.health = Silence()
    with pytest.raises(TimeoutError):
        await upstream.ask("GET", f"{provider.root}/health", timeout_s=0.05)
    await provider.requests[0].closed.wait()


def test_prepare_changes_three_members_and_keeps_the_rest() -> None:
    """Model, stream and include_usage are set; every other member keeps its bytes."""
    raw = (
        b'{"top_k":  5,"messages":[ ],"temperature":1.0,"stream":false,"stream_options":{"x": 1},"model":"a"}'
    )
    body = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    prepare(body, "org/name")
    assert encode(body) == (
        b'{"top_k":5,"messages":[ ],"temperature":1.0,"stream":true,'
        b'"stream_options":{"x":1,"include_usage":true},"model":"org/name"}'
    )


def test_prepare_refuses_odd_stream_options() -> None:
    """``stream_options`` that are no object are the client's mistake; null is none at all."""
    with pytest.raises(InvalidRequest) as refused:
        prepare({"stream_options": msgspec.Raw(b"3")}, "m")
    assert refused.value.param == "stream_options"
    body = {"stream_options": msgspec.Raw(b"null")}
    prepare(body, "m")
    assert b'"include_usage":true' in encode(body)
