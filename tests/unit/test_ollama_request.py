"""OpenAI chat requests as Ollama's native bodies."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tierfall.config.schema import OllamaTier
from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall.worker.backend import Ask
from tierfall_worker_ollama.request import native_request

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"b": 1, "a": 2}'}}
TOOL = {"type": "function", "function": {"name": "look"}}
PIXEL = "data:image/png;base64,aGVsbG8="


def ask(**body: Any) -> Ask:
    """A request with one user message, unless it brings its own."""
    raw = json.dumps({"model": "m", "messages": [USER], **body})
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return Ask(request_id="r", model="m", backend_model="fake:1b", body=members)


def translated(tier: OllamaTier | None = None, **body: Any) -> dict[str, Any]:
    """The native body."""
    native = native_request(ask(**body), tier or OllamaTier(base_url="http://127.0.0.1:1"))
    decoded: dict[str, Any] = json.loads(native.payload)
    return decoded


def image_part(url: str) -> dict[str, Any]:
    """An image as a content part."""
    return {"type": "image_url", "image_url": {"url": url}}


def test_plain_request_is_streamed_and_never_cut() -> None:
    """The smallest request streams, names the backend's model, and forbids Ollama to cut it silently."""
    assert translated(stream=False) == {
        "model": "fake:1b",
        "messages": [USER],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {},
    }


def test_sampling_fields_become_options() -> None:
    """Every sampling field arrives under Ollama's name with its value."""
    body = translated(
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        typical_p=0.9,
        seed=42,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.2,
        repeat_last_n=16,
        max_tokens=5,
        max_completion_tokens=9,
        stop="END",
    )
    assert body["options"] == {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "typical_p": 0.9,
        "seed": 42,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repeat_penalty": 1.2,
        "repeat_last_n": 16,
        "num_predict": 9,
        "stop": ["END"],
    }
    assert translated(stop=["a", "b"])["options"] == {"stop": ["a", "b"]}


def test_of_ollama_s_own_options_a_request_may_set_those_of_sampling() -> None:
    """The tier gives num_ctx and keep_alive, which a request may only repeat."""
    tier = OllamaTier(base_url="http://127.0.0.1:1", num_ctx=8192, keep_alive="30m")
    body = translated(tier)
    assert (body["options"], body["keep_alive"]) == ({"num_ctx": 8192}, "30m")
    own = translated(tier, options={"num_ctx": 8192, "mirostat": 1}, keep_alive="30m", temperature=1)
    assert own["options"] == {"num_ctx": 8192, "mirostat": 1, "temperature": 1}
    assert own["keep_alive"] == "30m"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"options": {"num_ctx": 1_000_000}}, "options.num_ctx"),
        ({"options": {"num_gpu": 0}}, "options.num_gpu"),
        ({"options": {"temperature": 1, "num_batch": 1}}, "options.num_batch"),
        ({"options": {"use_mmap": True}}, "options.use_mmap"),
        ({"options": {"NUM_CTX": 5}}, "options.NUM_CTX"),
        ({"keep_alive": -1}, "keep_alive"),
        ({"keep_alive": "24h"}, "keep_alive"),
        ({"keep_alive": 0}, "keep_alive"),
    ],
    ids=range(8),
)
def test_what_loads_or_holds_the_model_is_the_operator_s(body: dict[str, Any], param: str) -> None:
    """One request would make Ollama load the model again, or keep it in memory, for every client."""
    with pytest.raises(UnsupportedByTier) as caught:
        translated(**body)
    assert caught.value.param == param


def test_ollama_s_own_limit_is_no_second_one() -> None:
    """``num_predict`` is read by the ingress with the other names of the limit, and travels as max_tokens."""
    assert translated(max_tokens=5, options={"num_predict": -1})["options"] == {"num_predict": 5}
    assert translated(options={"num_predict": -1, "top_k": 1})["options"] == {"top_k": 1}


def test_keep_alive_without_a_unit_is_a_number() -> None:
    """Ollama refuses the string "-1", so the config's "-1" goes out as a number."""
    assert translated(OllamaTier(base_url="http://127.0.0.1:1", keep_alive="-1"))["keep_alive"] == -1


def test_roles_and_parts() -> None:
    """The developer is the system, text parts are joined, images become base64 and their place is kept."""
    request = ask(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "text", "text": "what?"}, image_part(PIXEL)]},
        ]
    )
    native = native_request(request, OllamaTier(base_url="http://127.0.0.1:1"))
    assert json.loads(native.payload)["messages"] == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "what?", "images": ["aGVsbG8="]},
    ]
    assert native.image == "messages[1].content[1].image_url"


def test_tool_calls_and_their_answers() -> None:
    """Arguments become an object in their order, and the answer learns its tool's name from the call."""
    messages = translated(
        messages=[
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
            {"role": "tool", "tool_call_id": "call_0", "content": "43"},
        ]
    )["messages"]
    function = {"index": 0, "name": "look", "arguments": {"b": 1, "a": 2}}
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"id": "call_1", "function": function}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "call_1", "tool_name": "look"},
        {"role": "tool", "content": "43", "tool_call_id": "call_0"},
    ]
    assert list(messages[1]["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]


def test_tools() -> None:
    """Tools pass with parameters filled in; tool_choice none takes them away, auto does not."""
    native = {
        "type": "function",
        "function": {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    assert translated(tools=[TOOL])["tools"] == [native]
    assert translated(tools=[TOOL], tool_choice="auto", parallel_tool_calls=True)["tools"] == [native]
    assert "tools" not in translated(tools=[TOOL], tool_choice="none")
    assert "tools" not in translated(tools=[])


@pytest.mark.parametrize(
    ("wanted", "native"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            {"type": "object"},
        ),
    ],
)
def test_response_format(wanted: dict[str, Any], native: Any) -> None:
    """response_format becomes format; the request's own format wins."""
    assert translated(response_format=wanted).get("format") == native
    assert translated(response_format=wanted, format="json")["format"] == "json"


@pytest.mark.parametrize(
    ("body", "think"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "high"}, "high"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"thinking": True}, "reasoning_effort": "low"}, True),
        ({"think": "medium", "reasoning_effort": "none"}, "medium"),
        ({"think": False}, False),
        ({}, None),
    ],
)
def test_thinking(body: dict[str, Any], think: bool | str | None) -> None:
    """Each way to ask for thinking reaches ``think``; the more exact one wins."""
    assert translated(**body).get("think") == think


def test_logprobs() -> None:
    """Wanted logprobs pass, and the request remembers that the answer owes them."""
    body = translated(logprobs=True, top_logprobs=3)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    assert native_request(ask(logprobs=True), OllamaTier(base_url="x")).logprobs


def test_fields_without_a_bearing_are_left_out() -> None:
    """Metadata, nulls and values that ask for nothing neither fail nor reach Ollama."""
    plain = translated()
    body = translated(
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        stream=True,
        stream_options={"include_usage": True},
        parallel_tool_calls=False,
        n=1,
        logit_bias={},
        modalities=["text"],
        audio=None,
        temperature=None,
        logprobs=False,
        something_new=1,
    )
    assert body == plain


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [TOOL, {"type": "custom"}]}, "tools[1].type"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"chat_template_kwargs": {"lang": "de"}}, "chat_template_kwargs.lang"),
        (
            {"messages": [{"role": "user", "content": [image_part("https://x.example/a.png")]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0].input_audio",
        ),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "assistant", "content": None, "function_call": {}}]},
            "messages[0].function_call",
        ),
    ],
)
def test_what_ollama_cannot_do_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    """Nothing that would change the answer is dropped: the field is named, and another tier may try."""
    with pytest.raises(UnsupportedByTier) as caught:
        translated(**body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": [1]}, "stop[0]"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning_effort": "immense"}, "reasoning_effort"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"options": []}, "options"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [image_part("data:image/png;base64,???")]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[1]"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_wrong_values_name_their_place(body: dict[str, Any], param: str) -> None:
    """A wrong type or value is the client's error, with the path of the field; no other tier is tried."""
    with pytest.raises(InvalidRequest) as caught:
        translated(**body)
    assert type(caught.value) is InvalidRequest
    assert caught.value.param == param
