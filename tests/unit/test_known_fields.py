"""What a tier with ``extra_fields: refuse`` takes: OpenAI's API, all of it and nothing else."""

from __future__ import annotations

import asyncio
import json
import typing
from typing import Any

import msgspec
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionContentPartParam,
    ChatCompletionMessageParam,
    chat_completion_content_part_refusal_param,
    chat_completion_stream_options_param,
)
from openai.types.chat import completion_create_params as chat_create_params

from fakes.parameters import RANGE, REQUIRED
from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall.protocol.operation import Operation
from tierfall.worker import known_fields
from tierfall.worker.known_fields import refuse_unknown

ASKED: Any = {"role": "user", "content": "Hi"}
PIXEL: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def members(body: dict[str, Any]) -> dict[str, msgspec.Raw]:
    """A body as the worker decodes it."""
    return msgspec.json.decode(json.dumps(body), type=dict[str, msgspec.Raw])


def names(*params: Any) -> set[str]:
    """The members of the SDK's types."""
    return {name for each in params for name in typing.get_type_hints(each)}


def test_the_tables_are_those_of_the_sdk() -> None:
    """A new field of OpenAI's, in a newer SDK, shows here."""
    chat, text = chat_create_params, completion_create_params
    assert {
        Operation.CHAT: names(chat.CompletionCreateParamsStreaming, chat.CompletionCreateParamsNonStreaming),
        Operation.COMPLETIONS: names(
            text.CompletionCreateParamsStreaming, text.CompletionCreateParamsNonStreaming
        ),
        Operation.EMBEDDINGS: names(embedding_create_params.EmbeddingCreateParams),
    } == known_fields.FIELDS
    refusal = chat_completion_content_part_refusal_param.ChatCompletionContentPartRefusalParam
    parts = (*typing.get_args(ChatCompletionContentPartParam), refusal)
    assert names(*typing.get_args(ChatCompletionMessageParam)) == known_fields.MESSAGE - known_fields.ECHOED
    assert names(*parts) == known_fields.PARTS | known_fields.PART
    options = chat_completion_stream_options_param.ChatCompletionStreamOptionsParam
    assert names(options) == known_fields.STREAM_OPTIONS


@pytest.mark.parametrize("operation", Operation)
async def test_all_of_openais_range_passes(operation: Operation) -> None:
    """Each value that the API reference allows, and nothing of it is changed."""
    for field, values in RANGE[operation].items():
        for value in values:
            body = members({**REQUIRED[operation], field: value})
            before = {name: bytes(raw) for name, raw in body.items()}
            await refuse_unknown(body, operation)
            assert {name: bytes(raw) for name, raw in body.items()} == before


@pytest.mark.parametrize(
    ("operation", "extra", "param"),
    [
        (Operation.CHAT, {"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
        (Operation.CHAT, {"guided_json": {}}, "guided_json"),
        (Operation.CHAT, {"chat_template": ""}, "chat_template"),
        (Operation.CHAT, {"chat_template_kwargs": {}}, "chat_template_kwargs"),
        (Operation.CHAT, {"extra_body": {"top_k": 1}}, "extra_body"),
        (Operation.CHAT, {"options": {"num_ctx": 9}}, "options"),
        (Operation.CHAT, {"top_k": False}, "top_k"),
        (Operation.CHAT, {"Temperature": 1}, "Temperature"),
        (Operation.CHAT, {"prompt": "x"}, "prompt"),
        (Operation.CHAT, {"x" * 5000: 1}, "x" * 64 + "..."),
        (
            Operation.CHAT,
            {"stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        (
            Operation.CHAT,
            {"response_format": {"type": "structural_tag", "format": {}}},
            "response_format.type",
        ),
        (Operation.CHAT, {"response_format": {"type": ["text"]}}, "response_format.type"),
        (Operation.CHAT, {"messages": [ASKED, {**ASKED, "task": "x"}]}, "messages[1].task"),
        (
            Operation.CHAT,
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            Operation.CHAT,
            {"messages": [{"role": "user", "content": [PIXEL, {"type": "prompt_embeds"}]}]},
            "messages[0].content[1].type",
        ),
        (
            Operation.CHAT,
            {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
            "messages[0].content[0].type",
        ),
        (
            Operation.CHAT,
            {"messages": [{"role": "user", "content": [{**PIXEL, "uuid": "x"}]}]},
            "messages[0].content[0].uuid",
        ),
        (Operation.COMPLETIONS, {"prompt_embeds": "AA=="}, "prompt_embeds"),
        (Operation.COMPLETIONS, {"messages": [ASKED]}, "messages"),
        (Operation.COMPLETIONS, {"max_completion_tokens": 1}, "max_completion_tokens"),
        (Operation.EMBEDDINGS, {"truncate_prompt_tokens": -1}, "truncate_prompt_tokens"),
        (Operation.EMBEDDINGS, {"stream_options": {}}, "stream_options"),
    ],
)
async def test_anything_else_is_refused_by_name(
    operation: Operation, extra: dict[str, Any], param: str
) -> None:
    """In the body, its messages, their parts, and the two objects with engines' extensions."""
    with pytest.raises(UnsupportedByTier) as caught:
        await refuse_unknown(members({**REQUIRED[operation], **extra}), operation)
    assert caught.value.param == param
    assert len(caught.value.message) < 200


async def test_null_asks_for_nothing() -> None:
    """Clients that write every field of theirs, with null where they want nothing, are not refused."""
    body = members({**REQUIRED[Operation.CHAT], "top_k": None, "messages": [{**ASKED, "task": None}]})
    await refuse_unknown(body, Operation.CHAT)
    assert body.keys() == {"model", "messages"}


async def test_an_answer_may_be_sent_back() -> None:
    """With the reasoning that this gateway hands out."""
    said = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "annotations": []}
    await refuse_unknown(members({"model": "m", "messages": [ASKED, said, ASKED]}), Operation.CHAT)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": {"type": "video_url"}}]}, "messages[0].content"),
        ({"stream_options": [1]}, "stream_options"),
        ({"response_format": "json_object"}, "response_format"),
    ],
)
async def test_another_form_cannot_hide_a_field(extra: dict[str, Any], param: str) -> None:
    """What cannot be looked into is no form of OpenAI's."""
    with pytest.raises(InvalidRequest) as caught:
        await refuse_unknown(members({**REQUIRED[Operation.CHAT], **extra}), Operation.CHAT)
    assert caught.value.param == param


@pytest.mark.parametrize("number", [b"1e999", b"9" * 400])
async def test_a_number_that_no_parser_takes_is_refused_like_any_other(number: bytes) -> None:
    """It is valid JSON; the worker must not take it for its own defect."""
    for text in (
        b'{"messages": [{"role": "user", "content": [{"type": %b}]}]}',
        b'{"messages": [], "response_format": {"type": %b}}',
    ):
        body = msgspec.json.decode(text % number, type=dict[str, msgspec.Raw])
        with pytest.raises(UnsupportedByTier):
            await refuse_unknown(body, Operation.CHAT)


@pytest.mark.parametrize("part", [False, True], ids=["message", "part"])
async def test_a_crowd_of_unknown_members_costs_nothing(part: bool) -> None:
    """No object is made of each, whatever they hold; some are looked at, by name."""
    crowd: Any = {**({"type": "text"} if part else ASKED), **dict.fromkeys(map(str, range(100_000)))}
    message = {"role": "user", "content": [crowd]} if part else crowd
    with pytest.raises(InvalidRequest, match="more than 65536 bytes"):
        await refuse_unknown(members({"messages": [message]}), Operation.CHAT)


async def test_other_work_goes_on_while_a_large_body_is_looked_at() -> None:
    """Requests of a worker share one event loop."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    parts = [{"type": "text", "text": "x"}] * 5000
    messages = [
        {"role": "user", "content": parts},
        *([ASKED] * 5000),
        {"role": "user", "content": "x" * 10**6},
    ]
    await refuse_unknown(members({"messages": messages}), Operation.CHAT)
    counting.cancel()
    assert turns > 10
