"""A client's request in the form that each provider takes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest

from tierfall.config import CloudTier, Secret
from tierfall.errors import ConfigError, InvalidRequest, UnsupportedByTier
from tierfall_worker_cloud import PROVIDERS, Provider
from tierfall_worker_cloud.providers import provider_for
from tierfall_worker_cloud.request import shape

GPT, O3 = "gpt-4o-mini", "o3-mini"


def body(**members: Any) -> dict[str, msgspec.Raw]:
    """A client's body as the runtime hands it over."""
    found: dict[str, Any] = {
        "model": "configured",
        "messages": [{"role": "user", "content": "hi"}],
        **members,
    }
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in found.items()}


def shaped(provider: str, model: str = "m", **members: Any) -> dict[str, Any]:
    """What the provider gets."""
    decoded: dict[str, Any] = json.loads(shape(PROVIDERS[provider], body(**members), model))
    return decoded


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_common_fields_travel(provider: str) -> None:
    """Model and stream are set; ordinary and unknown fields go on untouched, to every provider."""
    members = {"temperature": 0.5, "top_p": 1, "stop": ["x"], "tools": [{"type": "function"}], "x_new": 1}
    found = shaped(provider, "their-name", **members)
    assert found["model"] == "their-name"
    assert found["stream"] is True
    assert {name: found[name] for name in members} == members
    assert ("stream_options" in found) == (provider != "mistral")


@pytest.mark.parametrize("model", ["o1", "o3-mini", "o4-mini", "gpt-5", "gpt-5-nano", "ft:o4-mini:org"])
def test_openai_reasoning_models_want_max_completion_tokens(model: str) -> None:
    """``max_tokens`` goes under its new name for the models that refuse the old one."""
    found = shaped("openai", model, max_tokens=9)
    assert found["max_completion_tokens"] == 9
    assert "max_tokens" not in found


def test_openai_other_models_take_both_names() -> None:
    """For gpt-4o neither name is touched; a name that is there already wins over a renamed one."""
    assert shaped("openai", GPT, max_tokens=9)["max_tokens"] == 9
    assert shaped("openai", GPT, max_completion_tokens=9)["max_completion_tokens"] == 9
    assert shaped("openai", O3, max_tokens=9, max_completion_tokens=5)["max_completion_tokens"] == 5


def test_mistral_renames() -> None:
    """Mistral's own names for limits, seeds and forced tools."""
    found = shaped(
        "mistral",
        max_completion_tokens=7,
        seed=3,
        tool_choice="required",
        stream_options={"include_usage": True},
    )
    assert (found["max_tokens"], found["random_seed"], found["tool_choice"]) == (7, 3, "any")
    assert not {"max_completion_tokens", "seed", "stream_options"} & set(found)
    chosen = {"type": "function", "function": {"name": "f"}}
    assert shaped("mistral", tool_choice=chosen)["tool_choice"] == chosen


@pytest.mark.parametrize(
    ("provider", "field", "value"),
    [
        ("groq", "logprobs", True),
        ("groq", "top_logprobs", 2),
        ("groq", "logit_bias", {"1": 5}),
        ("groq", "n", 2),
        ("gemini", "seed", 0),
        ("gemini", "frequency_penalty", 0.5),
        ("gemini", "logit_bias", {"1": 5}),
        ("mistral", "logprobs", True),
        ("mistral", "logit_bias", {"1": 5}),
        ("mistral", "modalities", ["text", "audio"]),
        ("mistral", "logprobs", 0),
    ],
)
def test_refused_fields_are_named(provider: str, field: str, value: Any) -> None:
    """What cannot be honoured is refused with the field's name, never dropped."""
    with pytest.raises(UnsupportedByTier) as refused:
        shaped(provider, **{field: value})
    assert refused.value.param == field
    assert provider in refused.value.message


@pytest.mark.parametrize(
    ("provider", "members"),
    [
        ("groq", {"logprobs": False, "top_logprobs": None, "logit_bias": {}, "n": 1}),
        ("gemini", {"frequency_penalty": 0, "presence_penalty": 0.0, "seed": None}),
        ("mistral", {"logprobs": None, "modalities": ["text"], "top_logprobs": 0}),
    ],
)
def test_values_that_ask_for_nothing_are_left_out(provider: str, members: dict[str, Any]) -> None:
    """A default value that an SDK sends along is no reason to refuse, nor to bother the provider."""
    assert not set(members) & set(shaped(provider, **members))


@pytest.mark.parametrize(
    ("provider", "gone"),
    [
        ("groq", {"store", "metadata"}),
        ("gemini", {"store", "metadata", "user"}),
        ("mistral", {"store", "user"}),
    ],
)
def test_labels_are_dropped(provider: str, gone: set[str]) -> None:
    """Labels that a provider would refuse are left out; OpenAI gets them all."""
    labels: dict[str, Any] = {"store": True, "metadata": {"a": "b"}, "user": "u"}
    assert set(labels) - set(shaped(provider, **labels)) == gone
    assert set(labels) <= set(shaped("openai", **labels))


def test_mistral_knows_reasoning_on_and_off() -> None:
    """The levels between go to their neighbours."""
    efforts = ("none", "minimal", "low", "medium", "high", "xhigh")
    found = [shaped("mistral", reasoning_effort=effort)["reasoning_effort"] for effort in efforts]
    assert found == ["none", "none", "high", "high", "high", "high"]


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_nulls_are_left_out(provider: str) -> None:
    """Of the request and of its messages; an assistant's empty content is one that stays."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    echoed = {"role": "assistant", "content": None, "tool_calls": [call], "function_call": None}
    found = shaped(provider, stop=None, tools=None, messages=[echoed])
    assert not {"stop", "tools"} & set(found)
    assert found["messages"] == [{"role": "assistant", "content": None, "tool_calls": [call]}]


def test_groq_is_not_sent_reasoning() -> None:
    """It refuses what clients echo of a reasoning model's answer."""
    answer = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    assert shaped("groq", messages=[answer])["messages"] == [{"role": "assistant", "content": "x"}]


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0].type"),
    ],
)
@pytest.mark.parametrize("provider", ["groq", "gemini", "mistral"])
def test_what_is_no_function_and_no_text_is_named(provider: str, members: dict[str, Any], param: str) -> None:
    """With its place; OpenAI gets it all."""
    with pytest.raises(UnsupportedByTier) as refused:
        shaped(provider, **members)
    assert refused.value.param == param
    assert members.items() <= shaped("openai", **members).items()


@pytest.mark.parametrize("provider", ["groq", "mistral"])
def test_message_names_are_refused(provider: str) -> None:
    """A message's name is refused with its place; a tool's name only repeats its call and stays."""
    named = [{"role": "system", "content": "x"}, {"role": "user", "name": "ann", "content": "hi"}]
    with pytest.raises(UnsupportedByTier) as refused:
        shaped(provider, messages=named)
    assert refused.value.param == "messages[1].name"
    tool = [{"role": "tool", "name": "f", "tool_call_id": "1", "content": "2"}]
    assert shaped(provider, messages=tool)["messages"] == tool


def test_messages_that_need_nothing_keep_their_bytes() -> None:
    """Messages are only written anew when something in them has to change."""
    raw = b'[ {"role":"user",  "content":"\\u00e9"} ]'
    sent = shape(PROVIDERS["mistral"], {"messages": msgspec.Raw(raw)}, "m")
    assert raw in sent


def test_messages_are_put_into_the_providers_form() -> None:
    """``developer`` becomes ``system``; what SDKs echo from an answer is left out, the rest stays."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    signed = {**call, "extra_content": {"google": {"thought_signature": "abc"}}}
    echoed = {"role": "assistant", "content": None, "refusal": None, "audio": None, "tool_calls": [signed]}
    found = shaped("gemini", messages=[{"role": "developer", "content": "x"}, echoed])["messages"]
    assert found == [
        {"role": "system", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [signed]},
    ]
    assert (
        shaped("openai", messages=[{"role": "developer", "content": "x"}])["messages"][0]["role"]
        == "developer"
    )


def test_odd_messages_are_the_clients_mistake() -> None:
    """Messages that are no array of objects are a 400; none at all is the provider's to say."""
    with pytest.raises(InvalidRequest) as refused:
        shaped("mistral", messages="hi")
    assert refused.value.param == "messages"
    assert "messages" not in json.loads(shape(PROVIDERS["mistral"], {}, "m"))


def test_a_new_provider_is_ten_lines_of_data() -> None:
    """Everything that sets a provider apart can be said in one literal."""
    new = Provider(
        name="new", base_url="https://llm.example/v1", dropped=("store",), roles={"developer": "user"}
    )
    sent = json.loads(shape(new, body(store=True, messages=[{"role": "developer", "content": ""}]), "m"))
    assert sent["messages"][0]["role"] == "user"
    assert "store" not in sent


def tier(provider: str, base_url: str = "") -> CloudTier:
    """A tier of that provider."""
    return CloudTier(provider=provider, base_url=base_url, api_key=Secret("k", "KEY"))


def test_provider_of_a_tier() -> None:
    """A known provider's URL can be overridden, its quirks stay; an unknown one needs a URL."""
    assert provider_for("t", tier("groq")) == PROVIDERS["groq"]
    moved = provider_for("t", tier("groq", "http://proxy/v1"))
    assert (moved.base_url, moved.refused) == ("http://proxy/v1", PROVIDERS["groq"].refused)
    assert provider_for("t", tier("other", "http://x/v1")) == Provider(name="other", base_url="http://x/v1")
    with pytest.raises(ConfigError, match=r"tiers\.t\.base_url.*gemini, groq, mistral, openai"):
        provider_for("t", tier("other"))


OUT_OF_RANGE = msgspec.Raw(b"1e999")


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
@pytest.mark.parametrize(
    "members",
    [
        {field: OUT_OF_RANGE}
        for field in (
            "tool_choice",
            "logprobs",
            "logit_bias",
            "n",
            "seed",
            "reasoning_effort",
            "service_tier",
        )
    ]
    + [
        {"tools": msgspec.Raw(b'[{"type": "function", "function": {"parameters": {"maximum": 1e999}}}]')},
        {"messages": msgspec.Raw(b'[{"role": "user", "content": [{"type": 1e999}]}]')},
        {"messages": msgspec.Raw(b'[{"role": "user", "content": [{"type": []}]}]')},
        {"messages": msgspec.Raw(b'[{"role": 1e999, "content": null}]')},
    ],
)
def test_what_the_ingress_does_not_read_is_the_clients(
    provider: str, members: dict[str, msgspec.Raw]
) -> None:
    """Numbers out of range, and types that are none, are valid JSON: refused or sent, and no defect."""
    with contextlib.suppress(InvalidRequest):
        shape(PROVIDERS[provider], {**body(), **members}, "m")
