"""Ollama's native lines as OpenAI's chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.ollama import done, said
from tierfall.errors import StreamBroken, UnsupportedByTier
from tierfall_worker_ollama.answer import Answer

LOOK = {"function": {"name": "look", "arguments": {"z": 1, "a": "ü"}}}


def chunks(*lines: dict[str, Any], logprobs: bool = False) -> list[dict[str, Any]]:
    """What a whole answer becomes."""
    answer = Answer(logprobs=logprobs)
    made = [json.loads(chunk) for line in lines for chunk in answer.feed(json.dumps(line).encode())]
    assert answer.done == bool(lines[-1].get("done"))
    return made


def deltas(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The deltas of the only choice."""
    return [chunk["choices"][0]["delta"] for chunk in made]


def test_text_finish_and_usage() -> None:
    """The first delta has the role, the last chunk the reason and the usage, empty lines make nothing."""
    made = chunks(said("Hello"), said(""), said(" you"), done(prompt=5, answer=2))
    assert deltas(made) == [{"role": "assistant", "content": "Hello"}, {"content": " you"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in made] == [None, None, "stop"]
    assert made[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert {chunk["object"] for chunk in made} == {"chat.completion.chunk"}


def test_text_on_the_last_line_is_not_lost() -> None:
    """Ollama flushes what its tool parser held back on the line that ends the answer."""
    made = chunks({**done(), "message": {"role": "assistant", "content": "rest"}})
    assert deltas(made) == [{"role": "assistant", "content": "rest"}, {}]


def test_an_empty_answer_has_a_role_and_a_reason() -> None:
    """An answer without text is an answer."""
    assert deltas(chunks(done())) == [{"role": "assistant"}]


def test_thinking_is_reasoning_content() -> None:
    """Thinking goes into reasoning_content, apart from the text."""
    made = chunks(said(thinking="hm"), said("Yes"), done())
    assert deltas(made)[:2] == [{"role": "assistant", "reasoning_content": "hm"}, {"content": "Yes"}]


def test_tool_calls_are_numbered_over_lines() -> None:
    """Calls on several lines count on, have ids, arguments as JSON text in order, and set finish_reason."""
    named = {"id": "call_abc", **LOOK}
    made = chunks(said(tool_calls=[named]), said(tool_calls=[LOOK, LOOK]), done())
    calls = [call for delta in deltas(made) for call in delta.get("tool_calls", [])]
    assert [call["index"] for call in calls] == [0, 1, 2]
    assert calls[0]["id"] == "call_abc"
    assert len({call["id"] for call in calls}) == 3
    assert all(call["id"].startswith("call_") and call["type"] == "function" for call in calls)
    assert json.loads(calls[1]["function"]["arguments"]) == {"z": 1, "a": "ü"}
    assert calls[1]["function"]["arguments"].index("z") < calls[1]["function"]["arguments"].index("a")
    assert made[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("reason", "finish"), [("stop", "stop"), ("load", "stop"), ("length", "length")])
def test_done_reasons(reason: str, finish: str) -> None:
    """Ollama's reasons in OpenAI's words."""
    assert chunks(said("x"), done(reason))[-1]["choices"][0]["finish_reason"] == finish


def test_an_answer_cut_by_its_length_says_so_even_with_tool_calls() -> None:
    """Calls may be missing after the limit, so the limit is what the client must hear."""
    made = chunks(said(tool_calls=[LOOK]), done("length"))
    assert made[-1]["choices"][0]["finish_reason"] == "length"


def test_logprobs() -> None:
    """Positions keep token, bytes and alternatives, in OpenAI's place; alternatives are never missing."""
    other = {"token": "Hey", "logprob": -2.5, "bytes": [72]}
    position = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    made = chunks(said("Hi", logprobs=[{**position, "top_logprobs": [other]}]), done(), logprobs=True)
    content = made[0]["choices"][0]["logprobs"]["content"]
    assert content == [{**position, "top_logprobs": [other]}]
    bare = chunks(said("Hi", logprobs=[{"token": "Hi", "logprob": -0.5}]), done(), logprobs=True)
    assert bare[0]["choices"][0]["logprobs"]["content"] == [
        {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    ]


def test_an_ollama_without_logprobs_is_refused_before_any_output() -> None:
    """A version that ignores the wish must not answer as if it had been honoured."""
    with pytest.raises(UnsupportedByTier) as caught:
        chunks(said("Hi"), logprobs=True)
    assert caught.value.param == "logprobs"


@pytest.mark.parametrize(
    "line",
    [
        b'{"error": "model runner has unexpectedly stopped"}',
        b'{"message": {"content": "Hal',
        b"[]",
        b"<html>",
    ],
)
def test_a_broken_line_is_a_broken_stream(line: bytes) -> None:
    """An error in mid-stream, half a line or foreign text is never an end."""
    answer = Answer()
    list(answer.feed(json.dumps(said("x")).encode()))
    with pytest.raises(StreamBroken):
        list(answer.feed(line))
    assert not answer.done


@pytest.mark.parametrize(
    "line",
    [
        b'{"message":{"content":"\xca"}}',
        b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"\xca":1}}}]}}',
    ],
)
def test_bad_utf8_is_a_broken_stream(line: bytes) -> None:
    """Also within a call's arguments, which are passed on unread."""
    with pytest.raises(StreamBroken, match="cut off or is no JSON"):
        list(Answer().feed(line))


def test_an_end_without_a_reason_is_a_broken_stream() -> None:
    """Ollama leaves the reason out when its runner lost the connection: the answer may be cut."""
    line = done()
    del line["done_reason"]
    with pytest.raises(StreamBroken):
        chunks(said("x"), line)
