"""The official OpenAI SDK against the gateway: what its users rely on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from fakes.gateway import BROKEN, KEYS, Gateway, sent
from fakes.polling import until
from fakes.scripted import USAGE, Step, chunk, says
from tierfall.errors import BackendFault, ContextLengthExceeded, QuotaExhausted, RateLimited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
]


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway with keys."""
    async with Gateway(KEYS) as running:
        yield running


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """The SDK with a key for every model."""
    async with AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="sk-all-1234567890", max_retries=0, timeout=20
    ) as made:
        yield made


async def test_chat(client: AsyncOpenAI) -> None:
    """A plain answer with usage, the model that answered and the request's id."""
    answer = await client.chat.completions.create(model="first", messages=HELLO)
    assert answer.choices[0].message.content == "Hello world."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "first"
    assert answer.usage is not None
    assert answer.usage.total_tokens == USAGE["total_tokens"]
    assert answer._request_id == answer.id.removeprefix("chatcmpl-")


async def test_streaming(client: AsyncOpenAI) -> None:
    """Chunks in order, and usage last."""
    stream = await client.chat.completions.create(
        model="first", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [part async for part in stream]
    assert "".join(part.choices[0].delta.content or "" for part in chunks[:-1]) == "Hello world."
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices


async def test_streamed_tool_calls_accumulate(gateway: Gateway, client: AsyncOpenAI) -> None:
    """Two calls in pieces, from an engine that repeats ids and names, are whole and parsed at the end."""
    script: list[Step] = [chunk("", role="assistant")]
    for index, city in enumerate(("Bern", "Zürich")):
        arguments = json.dumps({"city": city}, ensure_ascii=False)
        for piece in (arguments[:5], arguments[5:9], arguments[9:]):
            function = {"name": "weather", "arguments": piece}
            call = {"index": index, "id": f"call_{index}", "type": "function", "function": function}
            script.append(chunk(tool_calls=[call]))
    gateway.one.scripts.append([*script, chunk(finish="tool_calls")])
    async with client.chat.completions.stream(model="first", messages=HELLO, tools=TOOLS) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [call.id for call in calls] == ["call_0", "call_1"]
    assert [call.function.name for call in calls] == ["weather", "weather"]
    assert [call.function.parsed_arguments for call in calls] == [{"city": "Bern"}, {"city": "Zürich"}]


async def test_tool_calls_whole(gateway: Gateway, client: AsyncOpenAI) -> None:
    """Not streamed: one call, content null; the tools arrive at the backend as they were sent."""
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    gateway.one.scripts.append([chunk(tool_calls=[call]), chunk(finish="tool_calls")])
    answer = await client.chat.completions.create(model="first", messages=HELLO, tools=TOOLS)
    assert answer.choices[0].message.content is None
    assert answer.choices[0].message.tool_calls is not None
    assert answer.choices[0].message.tool_calls[0].type == "function"
    assert json.loads(sent(gateway.one.asks[0])["tools"]) == TOOLS


async def test_a_schema_is_parsed(gateway: Gateway, client: AsyncOpenAI) -> None:
    """``parse`` with a model: its schema reaches the backend, the answer becomes an instance."""

    class Event(BaseModel):
        name: str
        day: int

    gateway.one.scripts.append(says('{"name": "x', '", "day": 3}'))
    answer = await client.chat.completions.parse(model="first", messages=HELLO, response_format=Event)
    assert answer.choices[0].message.parsed == Event(name="x", day=3)
    form = json.loads(sent(gateway.one.asks[0])["response_format"])
    assert form["json_schema"]["schema"]["properties"].keys() == {"name", "day"}


async def test_vision_parts(gateway: Gateway, client: AsyncOpenAI) -> None:
    """Content parts arrive as they are, an image of several megabytes too."""
    url = "data:image/png;base64," + "A" * 2_000_000
    parts: Any = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    await client.chat.completions.create(model="first", messages=[{"role": "user", "content": parts}])
    assert json.loads(sent(gateway.one.asks[0])["messages"])[0]["content"] == parts


async def test_several_choices_and_logprobs(gateway: Gateway, client: AsyncOpenAI) -> None:
    """``n=2`` with log probabilities, whole and streamed, choice by choice."""
    logprobs = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
    parts: list[Step] = []
    for index in (0, 1):
        choice: dict[str, Any] = {"index": index, "delta": {"content": "a"}, "finish_reason": "stop"}
        choice["logprobs"] = {"content": logprobs, "refusal": None}
        parts.append(json.dumps({"choices": [choice]}).encode())
    gateway.one.scripts.extend([parts, parts])
    whole = await client.chat.completions.create(model="first", messages=HELLO, n=2, logprobs=True)
    async with client.chat.completions.stream(model="first", messages=HELLO, n=2, logprobs=True) as stream:
        streamed = await stream.get_final_completion()
    for answer in (whole, streamed):
        assert [choice.message.content for choice in answer.choices] == ["a", "a"]
        for each in answer.choices:
            assert each.logprobs is not None
            assert each.logprobs.content is not None
            assert each.logprobs.content[0].token == "a"


async def test_unknown_fields_by_extra_body(gateway: Gateway, client: AsyncOpenAI) -> None:
    """What the SDK does not know it can still send, and the backend gets it to the byte."""
    extra = {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}, "weights": [0.1, 1e-7]}
    await client.chat.completions.create(model="first", messages=HELLO, extra_body=extra)
    arrived = sent(gateway.one.asks[0])
    assert arrived["top_k"] == b"5"
    assert arrived["weights"] == b"[0.1,1e-07]"
    assert arrived["chat_template_kwargs"] == b'{"enable_thinking":false}'


async def test_a_field_of_an_answer_that_the_sdk_does_not_know(gateway: Gateway, client: AsyncOpenAI) -> None:
    """Reasoning is no field of the SDK's types, and is there all the same."""
    gateway.one.scripts.append([chunk(reasoning_content="Hm"), *says("Hi")])
    answer = await client.chat.completions.create(model="first", messages=HELLO)
    assert answer.choices[0].message.model_dump()["reasoning_content"] == "Hm"


async def test_models(client: AsyncOpenAI) -> None:
    """List and retrieve, for names with a slash and a colon too."""
    names = {model.id async for model in client.models.list()}
    assert {"first", "groq/llama-3.3-70b-versatile", "qwen2.5:3b"} <= names
    for name in names:
        assert (await client.models.retrieve(name)).id == name
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("groq/nope")


async def test_error_classes(gateway: Gateway, client: AsyncOpenAI) -> None:
    """Each failure arrives as the class that SDK users catch, with its code, param and request id."""

    async def failure(model: str = "alone", **fields: Any) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model=model, messages=HELLO, **fields)
        assert caught.value.request_id
        return caught.value

    missing = await failure("nope")
    assert isinstance(missing, openai.NotFoundError)
    assert (missing.code, missing.param, missing.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    assert isinstance(await failure(n=0), openai.BadRequestError)
    gateway.one.scripts.append([RateLimited("slow down", retry_after=60)])
    limited = await failure()
    assert isinstance(limited, openai.RateLimitError)
    assert limited.response.headers["retry-after"] == "60"
    gateway.one.scripts.append([ContextLengthExceeded("too long")])
    long = await failure()
    assert isinstance(long, openai.BadRequestError)
    assert long.code == "context_length_exceeded"
    gateway.one.scripts.extend([[BROKEN]] * 2)
    assert isinstance(await failure(), openai.InternalServerError)
    stranger = client.with_options(api_key="nope")
    with pytest.raises(openai.AuthenticationError) as refused:
        await stranger.chat.completions.create(model="first", messages=HELLO)
    assert refused.value.code == "invalid_api_key"
    limited_key = client.with_options(api_key="sk-one-1234567890")
    with pytest.raises(openai.PermissionDeniedError):
        await limited_key.chat.completions.create(model="second", messages=HELLO)


async def test_an_error_in_mid_stream_is_raised(gateway: Gateway, client: AsyncOpenAI) -> None:
    """The SDK raises it after the chunks that came before, with its message and code."""
    gateway.one.scripts.append([chunk("a", role="assistant"), BROKEN])
    stream = await client.chat.completions.create(model="honest", messages=HELLO, stream=True)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].delta.content == "a"
    with pytest.raises(openai.APIError) as caught:
        await anext(chunks)
    assert caught.value.code == "stream_broken"
    assert not isinstance(caught.value, openai.APIStatusError)


async def test_the_caller_chooses_the_request_id(client: AsyncOpenAI) -> None:
    """An id of the caller's comes back in the header and in the answer's id."""
    answer = await client.chat.completions.create(
        model="first", messages=HELLO, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert answer._request_id == "mine-1"
    assert answer.id == "chatcmpl-mine-1"


async def test_retries_only_what_may_help(gateway: Gateway, client: AsyncOpenAI) -> None:
    """A fault is tried again by the SDK and then answered; a spent quota is not asked for a second time."""
    retrying = client.with_options(max_retries=1)
    gateway.one.scripts.extend([[BackendFault("boom")]] * 2)
    answer = await retrying.chat.completions.create(model="alone", messages=HELLO)
    assert answer.choices[0].message.content == "Hello world."
    assert len(gateway.one.asks) == 3
    gateway.one.scripts.append([QuotaExhausted("spent")])
    with pytest.raises(openai.RateLimitError) as caught:
        await retrying.chat.completions.create(model="alone", messages=HELLO)
    assert caught.value.code == "insufficient_quota"
    assert len(gateway.one.asks) == 4


async def test_closing_a_stream_stops_the_backend(gateway: Gateway, client: AsyncOpenAI) -> None:
    """Leaving the loop over a stream is enough."""
    gateway.one.scripts.append([*map(chunk, "abc"), 60.0])
    stream = await client.chat.completions.create(model="first", messages=HELLO, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await client.close()
    await until(lambda: gateway.one.cancelled == 1 and gateway.idle)
