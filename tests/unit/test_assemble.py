"""Chunks assembled to one answer: the same, field by field, as the backend's own non-streaming answer."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from tierfall.chat import Assembly, ChunkStream, Generated
from tierfall.errors import StreamBroken

ROLE = {"role": "assistant", "content": ""}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def choice(delta: Any, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """One choice of a chunk."""
    return {"index": index, "delta": delta, "finish_reason": finish, **more}


def assembled(*chunks: dict[str, Any], n: int = 1) -> Any:
    """The answer that these chunks make, read as the official SDK reads it; a stream says the same."""
    assembly, stream = Assembly("chatcmpl-1", 1700, "first", n), ChunkStream("chatcmpl-1", 1700, "first", n)
    for chunk in chunks:
        payload = json.dumps(chunk).encode()
        assert bool(assembly.feed(payload)) is bool(stream.feed(payload))
        assert judgement(assembly) == judgement(stream)
    whole = json.loads(assembly.completion())
    ChatCompletion.model_validate(whole, strict=False)
    return whole


def judgement(answer: Generated) -> Any:
    """What the runtime is told of an answer."""
    return (
        answer.started,
        answer.complete,
        answer.outputs,
        answer.missing,
        answer.finish_reasons,
        answer.usage,
    )


def answer(*deltas: dict[str, Any], finish: str = "stop") -> Any:
    """The one choice that these deltas make."""
    parts = [{"choices": [choice(delta)]} for delta in (ROLE, *deltas)]
    return assembled(*parts, {"choices": [choice({}, finish)]})["choices"][0]


def message(*deltas: dict[str, Any], finish: str = "stop") -> Any:
    """Its message."""
    return answer(*deltas, finish=finish)["message"]


def test_a_plain_answer_has_every_field() -> None:
    """A text answer is OpenAI's, field by field, with nothing of a chunk left."""
    whole = assembled(
        {"choices": [choice(ROLE, logprobs=None)], "system_fingerprint": "fp", "service_tier": None},
        {"choices": [choice({"content": "Hel"})], "system_fingerprint": "fp"},
        {"choices": [choice({"content": "lo"})]},
        {"choices": [choice({}, "stop")]},
        {"choices": [], "usage": USAGE},
    )
    assert whole == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700,
        "model": "first",
        "system_fingerprint": "fp",
        "service_tier": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


@pytest.mark.parametrize("where", ["own", "last", "every", "none"])
def test_usage_is_found_wherever_it_is(where: str) -> None:
    """Usage on a chunk of its own, on the last, on each, or never said: then it is left out, not invented."""
    said: dict[str, Any] = {"usage": USAGE}
    whole = assembled(
        {
            "choices": [choice({"content": "a"})],
            **({"usage": {"total_tokens": 1}} if where == "every" else {}),
        },
        {"choices": [choice({}, "stop")], **(said if where in {"last", "every"} else {})},
        *([{"choices": [], **said}] if where == "own" else []),
    )
    assert whole.get("usage") == (None if where == "none" else USAGE)


def test_tool_calls_are_whole() -> None:
    """Two calls whose arguments came in pieces, interleaved: content is null, there is no index."""
    found = answer(
        {"tool_calls": [call(0, "call_a", "f", "")]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [call(1, "call_b", "g", "{"), {"index": 0, "function": {"arguments": " 01}"}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]},
        finish="tool_calls",
    )
    assert found["finish_reason"] == "tool_calls"
    assert found["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"x": 01}'}},
            {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_text_before_a_tool_call_is_kept() -> None:
    """Models that talk before they call keep what they said."""
    found = message({"content": "Let me see."}, {"tool_calls": [call(0, "a", "f", "{}")]})
    assert found["content"] == "Let me see."
    assert len(found["tool_calls"]) == 1


def test_a_call_without_arguments_or_type_gets_them() -> None:
    """A call that says neither is still one that SDKs can read."""
    found = message({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]})
    assert found["tool_calls"] == [
        {"id": "a", "function": {"name": "f", "arguments": ""}, "type": "function"}
    ]


def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    """A backend that sends whole calls one by one does not get them mixed."""
    first, second = call(0, "a", "f", "{}"), call(0, "b", "g", "{}")
    del first["index"], second["index"]
    found = message({"tool_calls": [first]}, {"tool_calls": [second]})
    assert [each["id"] for each in found["tool_calls"]] == ["a", "b"]
    assert [each["function"]["arguments"] for each in found["tool_calls"]] == ["{}", "{}"]


def test_a_custom_tools_input_grows() -> None:
    """Custom tools have no function, and their input comes in pieces too."""
    found = message(
        {"tool_calls": [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}}]},
        {"tool_calls": [{"index": 0, "custom": {"input": "y"}}]},
    )
    assert found["tool_calls"] == [{"id": "a", "type": "custom", "custom": {"name": "f", "input": "xy"}}]


def test_the_old_function_call_is_whole() -> None:
    """The form before tools: name once, arguments in pieces, content null."""
    found = message({"function_call": {"name": "f", "arguments": "{"}}, {"function_call": {"arguments": "}"}})
    assert found == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": {"name": "f", "arguments": "{}"},
    }


def test_logprobs_of_all_chunks_are_joined() -> None:
    """Each chunk has its tokens' logprobs; the answer has them all, and null where there are none."""
    tokens = [{"token": each, "logprob": -0.5, "bytes": [1], "top_logprobs": []} for each in "abc"]
    whole = assembled(
        {"choices": [choice(ROLE, logprobs=None)]},
        {"choices": [choice({"content": "a"}, logprobs={"content": tokens[:1], "refusal": None})]},
        {"choices": [choice({"content": "bc"}, logprobs={"content": tokens[1:], "refusal": None})]},
        {"choices": [choice({}, "stop", logprobs=None)]},
    )
    assert whole["choices"][0]["logprobs"] == {"content": tokens, "refusal": None}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_joined(name: str) -> None:
    """Reasoning is text like content, under the name that the backend gives it."""
    found = message({name: "Let "}, {name: "me", "content": ""}, {"content": "Hi"})
    assert found[name] == "Let me"
    assert found["content"] == "Hi"


def test_a_refusal_leaves_content_null() -> None:
    """As OpenAI's own: a refusal has no content, and an answer no refusal."""
    found = message({"refusal": "I "}, {"refusal": "won't"})
    assert (found["content"], found["refusal"]) == (None, "I won't")
    assert message({"refusal": "", "content": "ok"})["refusal"] is None


def test_an_answer_without_a_word_is_empty_and_not_null() -> None:
    """A model that ends at once said an empty text."""
    assert message(finish="length")["content"] == ""


def test_choices_that_interleave_stay_apart() -> None:
    """Two choices, their chunks mixed and two in one chunk, come out in order of their index."""
    whole = assembled(
        {"choices": [choice({"role": "assistant", "content": "b"}, index=1)]},
        {"choices": [choice({"role": "assistant", "content": "a"}), choice({"content": "B"}, index=1)]},
        {"choices": [choice({}, "length", index=1)]},
        {"choices": [choice({"content": "A"}, "stop")]},
        n=2,
    )
    found = [(each["index"], each["message"]["content"], each["finish_reason"]) for each in whole["choices"]]
    assert found == [(0, "aA", "stop"), (1, "bB", "length")]


def test_a_backends_own_fields_are_kept() -> None:
    """The extras of vLLM: lists grow over the chunks, what is said once or last is kept."""
    whole = assembled(
        {"choices": [choice(ROLE)], "prompt_token_ids": [1, 2], "prompt_logprobs": None},
        {"choices": [choice({"content": "a"}, token_ids=[3], stop_reason=None)]},
        {"choices": [choice({"content": "b"}, "stop", token_ids=[4, 5], stop_reason=128)]},
    )
    assert whole["prompt_token_ids"] == [1, 2]
    assert whole["prompt_logprobs"] is None
    assert whole["choices"][0]["token_ids"] == [3, 4, 5]
    assert whole["choices"][0]["stop_reason"] == 128


def test_content_filter_results_are_merged() -> None:
    """Azure tells its filter's findings in objects, category by category."""
    whole = assembled(
        {"choices": [choice({"content": "a"}, content_filter_results={"hate": {"filtered": False}})]},
        {"choices": [choice({}, "stop", content_filter_results={"violence": {"filtered": False}})]},
    )
    assert set(whole["choices"][0]["content_filter_results"]) == {"hate", "violence"}


def test_annotations_are_collected() -> None:
    """A list of a delta is a piece of a longer list."""
    one, two = ({"type": "url_citation", "url_citation": url(each)} for each in "ab")
    found = message({"annotations": [one]}, {"content": "x"}, {"annotations": [two]})
    assert found["annotations"] == [one, two]


def test_audio_is_joined() -> None:
    """Its transcript as text; its data as the bytes that each piece stands for."""
    pieces = [base64.b64encode(part).decode() for part in (b"a", b"bc")]
    found = message(
        {"audio": {"id": "audio_1", "transcript": "He"}},
        {"audio": {"id": "audio_1", "transcript": "llo", "data": pieces[0]}},
        {"audio": {"data": pieces[1], "expires_at": 9}},
    )
    audio = found["audio"]
    assert (audio["id"], audio["transcript"], audio["expires_at"]) == ("audio_1", "Hello", 9)
    assert base64.b64decode(audio["data"]) == b"abc"


def test_content_in_parts_stays_in_parts() -> None:
    """Content that comes as a list of parts and goes on as text loses neither."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}
    assembly = Assembly("i", 1, "m")
    for delta in (ROLE, {"content": [thinking]}, {"content": "Hel"}, {"content": "lo"}):
        assembly.feed(json.dumps({"choices": [choice(delta)]}).encode())
    found = json.loads(assembly.completion())["choices"][0]["message"]["content"]
    assert found == [thinking, {"type": "text", "text": "Hello"}]


def test_an_unknown_text_field_of_a_delta_grows() -> None:
    """A string of a delta is a piece, whatever its name: so do the official SDKs take it."""
    assert message({"thoughts": "a"}, {"thoughts": "b"})["thoughts"] == "ab"


@pytest.mark.parametrize(
    "chunk",
    [
        b'{"choices":[{"delta":{"tool_calls":[1]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":"0"}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":0,"function":"f"}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":""}}]}',
        b'{"choices":[{"delta":[1]}]}',
        b'{"choices":[{"delta":false}]}',
        b'{"choices":[{"index":false}]}',
        b'{"choices":0}',
        b'{"choices":[{"index":"0"}]}',
        b'{"choices":[{"finish_reason":1}]}',
        b'{"choices":{"0":{}}}',
        b"[]",
        b'{"choices":[{"delta":{"x":' + b"[" * 5000 + b"]" * 5000 + b"}}]}",
    ],
    ids=[
        "call",
        "number",
        "function",
        "calls",
        "delta",
        "falsy",
        "bool",
        "zero",
        "index",
        "reason",
        "choices",
        "array",
        "deep",
    ],
)
def test_fields_of_wrong_types_break_the_stream(chunk: bytes) -> None:
    """What cannot be assembled is the backend's failure, not a crash; a stream refuses it, too."""
    for answer in (Assembly("i", 1, "m"), ChunkStream("i", 1, "m")):
        with pytest.raises(StreamBroken):
            answer.feed(chunk)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_split_assembles_to_the_same(data: st.DataObject) -> None:
    """However an answer's text, reasoning and arguments are cut into deltas, the message is the same."""
    texts = {
        name: data.draw(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
        for name in ("reasoning_content", "content", "arguments")
    }
    deltas: list[dict[str, Any]] = [{"tool_calls": [call(0, "call_1", "f", "")]}]
    for name, text in texts.items():
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece = text[start:end]
            deltas.append(
                {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
                if name == "arguments"
                else {name: piece}
            )
    found = message(*deltas)
    assert found["content"] == texts["content"]
    assert found["reasoning_content"] == texts["reasoning_content"]
    assert found["tool_calls"][0]["function"] == {"name": "f", "arguments": texts["arguments"]}


def call(index: int, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A tool call's first delta."""
    return {
        "index": index,
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def url(name: str) -> dict[str, Any]:
    """What a citation points to."""
    return {"url": f"http://{name}.example", "title": name, "start_index": 0, "end_index": 1}
