"""Chunks of providers that depart from OpenAI's format."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tierfall.errors import StreamBroken
from tierfall_worker_cloud.chunks import ChunkMender, GeminiMender, GroqMender, MistralMender

if TYPE_CHECKING:
    from collections.abc import Callable


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


def mended(mender: ChunkMender, *chunks: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks after one mender."""
    return [json.loads(mender.mend(json.dumps(each).encode())) for each in chunks]


def call(name: str | None, arguments: str, **more: Any) -> dict[str, Any]:
    """One tool call of a delta."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"function": function, **more}


@pytest.mark.parametrize("make", [GroqMender, GeminiMender, MistralMender])
def test_plain_chunks_keep_their_bytes(make: Callable[[], ChunkMender]) -> None:
    """What needs no mending is not written anew."""
    payload = b'{ "choices":[{"index":0,"delta":{"content":"hi \\u00e9"},"finish_reason":null}] }'
    assert make().mend(payload) is payload


def test_gemini_calls_get_their_indexes() -> None:
    """Calls without an index, or all with 0, are told apart; their thought signatures survive."""
    signature = {"google": {"thought_signature": "abc"}}
    first = call("a", '{"x":1}', id="1", type="function", extra_content=signature)
    second = call("b", "{}", id="2", index=0)
    one, two, end = mended(
        GeminiMender(), chunk({"tool_calls": [first]}), chunk({"tool_calls": [second]}), chunk({}, "stop")
    )
    found = [each["choices"][0]["delta"]["tool_calls"][0] for each in (one, two)]
    assert [(each["index"], each["id"], each["type"]) for each in found] == [
        (0, "1", "function"),
        (1, "2", "function"),
    ]
    assert found[0]["extra_content"] == signature
    assert end["choices"][0]["finish_reason"] == "tool_calls"


def test_gemini_two_calls_in_one_chunk() -> None:
    """Calls beside each other in one delta are told apart too, and empty ids are filled."""
    both = chunk({"tool_calls": [call("a", "{}", id=""), call("b", "{}", id="")]}, "stop")
    found = mended(GeminiMender(), both)[0]["choices"][0]
    assert [each["index"] for each in found["delta"]["tool_calls"]] == [0, 1]
    assert len({each["id"] for each in found["delta"]["tool_calls"]} - {""}) == 2
    assert found["finish_reason"] == "tool_calls"


def test_gemini_arguments_in_parts() -> None:
    """Further arguments without a name go on with the last call; a repeated id or name is taken off."""
    parts = [
        chunk({"tool_calls": [call("a", '{"x"', id="1")]}),
        chunk({"tool_calls": [call(None, ":1")]}),
        chunk({"tool_calls": [call("a", "}", id="1", type="function")]}),
    ]
    found = [each["choices"][0]["delta"]["tool_calls"][0] for each in mended(GeminiMender(), *parts)]
    assert [each["index"] for each in found] == [0, 0, 0]
    assert found[2] == {"function": {"arguments": "}"}, "index": 0}


def test_gemini_text_keeps_its_finish_reason() -> None:
    """An answer without tool calls still ends with ``stop``."""
    assert mended(GeminiMender(), chunk({"content": "x"}, "stop"))[0]["choices"][0]["finish_reason"] == "stop"


def test_groq_usage_and_error() -> None:
    """Usage is taken from ``x_groq`` when it is nowhere else; an error there breaks the stream."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert mended(GroqMender(), chunk({}, "stop", x_groq={"usage": usage}))[0]["usage"] == usage
    own = {"prompt_tokens": 9}
    assert mended(GroqMender(), chunk({}, "stop", usage=own, x_groq={"usage": usage}))[0]["usage"] == own
    assert "usage" not in mended(GroqMender(), chunk({}, x_groq={"id": "req"}))[0]
    with pytest.raises(StreamBroken, match="over capacity"):
        mended(GroqMender(), chunk({}, x_groq={"error": "over capacity"}))


def test_mistral_reasoning_parts() -> None:
    """A content array is split into text and reasoning."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    parts = [
        chunk({"content": [thinking]}),
        chunk({"content": [thinking, {"type": "text", "text": "yes"}]}),
        chunk({"content": [{"type": "text", "text": "no"}]}),
    ]
    deltas = [each["choices"][0]["delta"] for each in mended(MistralMender(), *parts)]
    assert deltas == [
        {"content": "", "reasoning_content": "hm"},
        {"content": "yes", "reasoning_content": "hm"},
        {"content": "no"},
    ]


def test_mistral_finish_reasons() -> None:
    """``model_length`` is OpenAI's ``length``; ``error`` is a broken stream; the words in text are text."""
    assert mended(MistralMender(), chunk({}, "model_length"))[0]["choices"][0]["finish_reason"] == "length"
    with pytest.raises(StreamBroken):
        mended(MistralMender(), chunk({}, "error"))
    assert mended(MistralMender(), chunk({"content": "error"})) == [chunk({"content": "error"})]


@pytest.mark.parametrize("make", [GroqMender, GeminiMender, MistralMender])
@pytest.mark.parametrize("garbage", [b"%b[", b"[%b]", b'{"a":"\xff",%b:1}'])
def test_garbage_is_a_broken_stream(make: type[ChunkMender], garbage: bytes) -> None:
    """What a mender has to take apart and cannot is no chunk; it is no defect of ours."""
    for word in (b'"x_groq"', b'"tool_calls"', b'"model_length"'):
        payload = garbage % word
        with contextlib.suppress(StreamBroken):
            assert make().mend(payload) == payload
