"""What is read of a chat request, and what is refused before any tier hears of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierfall.errors import InvalidRequest
from tierfall.protocol.operation import Operation
from tierfall_ingress.ask import MAX_CHOICES, parse_ask

GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "CANARY"}]}


def body(**fields: Any) -> bytes:
    """A good body with these fields changed or added."""
    return json.dumps({**GOOD, **fields}).encode()


def refused(raw: bytes) -> InvalidRequest:
    """The refusal, which never repeats what was in the body."""
    with pytest.raises(InvalidRequest) as caught:
        parse_ask(raw)
    assert "CANARY" not in caught.value.message
    assert caught.value.status == 400
    return caught.value


def test_only_what_routing_needs_is_read() -> None:
    """The raw body travels, to the byte; unknown fields of any type are no matter."""
    raw = body(top_k=5, chat_template_kwargs={"a": [1.50, None]}, n=2, temperature=None)
    ask = parse_ask(raw)
    assert ask.body is raw
    assert (ask.model, ask.streaming, ask.include_usage) == ("m", False, False)


@pytest.mark.parametrize(
    ("fields", "streaming", "include_usage"),
    [
        ({"stream": True}, True, False),
        ({"stream": None, "stream_options": None, "n": None}, False, False),
        ({"stream": True, "stream_options": {"include_usage": True, "x": 1}}, True, True),
        ({"stream": True, "stream_options": {"include_usage": None}}, True, False),
        ({"stream": True, "stream_options": {}}, True, False),
    ],
    ids=range(5),
)
def test_streaming_and_usage(fields: dict[str, Any], streaming: bool, include_usage: bool) -> None:
    """Null is as good as absent."""
    ask = parse_ask(body(**fields))
    assert (ask.streaming, ask.include_usage) == (streaming, include_usage)


@pytest.mark.parametrize(
    ("raw", "param", "says"),
    [
        (b"", None, "empty"),
        (b" \n", None, "empty"),
        (b"[]", None, "object"),
        (b'"CANARY"', None, "object"),
        (b"CANARY", None, "JSON"),
        (body()[:-1], None, "JSON"),
        (body() + b"CANARY", None, "JSON"),
        (b"\xef\xbb\xbf" + body(), None, "byte order mark"),
        (body().replace(b'"CANARY"', b"NaN"), None, "JSON"),
        (body().replace(b'"CANARY"', b"-Infinity"), None, "JSON"),
        (body().replace(b'"CANARY"', b"01"), None, "JSON"),
        (body().replace(b"CANARY", b"CANARY\xff"), None, "UTF-8"),
        (body().replace(b'"m"', b'"\xff"'), None, "UTF-8"),
        (body().replace(b"CANARY", b"CANARY\\ud800"), None, "JSON"),
        (body().replace(b'"m"', b'"\\ud800"'), None, "JSON"),
        (body().replace(b"CANARY", b"CANARY\n"), None, "JSON"),
        (body().replace(b'"CANARY"', b"[" * 100_000 + b"]" * 100_000), None, "nested"),
        (body(x=1).replace(b": 1", b": " + b"[" * 100_000 + b"]" * 100_000), None, "nested"),
        (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "messages[0]", "object"),
        (b'{"messages":[{}]}', "model", "model"),
        (b'{"model":"m"}', "messages", "messages"),
        (body(model=5), "model", "str"),
        (body(model=""), "model", "empty"),
        (body(model=None), "model", "null"),
        (body(messages=[]), "messages", "empty"),
        (body(messages="CANARY"), "messages", "array"),
        (body(messages=None), "messages", "null"),
        (body(messages=[{}, "CANARY"]), "messages[1]", "object"),
        (body(stream="CANARY"), "stream", "bool"),
        (body(stream_options={}), "stream_options", "stream"),
        (body(stream=True, stream_options=["CANARY"]), "stream_options", "object"),
        (
            body(stream=True, stream_options={"include_usage": "CANARY"}),
            "stream_options.include_usage",
            "bool",
        ),
        (body(n=0), "n", "1 to"),
        (body(n=MAX_CHOICES + 1), "n", "1 to"),
        (body(n=1.5), "n", "int"),
        (body(n="CANARY"), "n", "int"),
        (body(n=1).replace(b'"n": 1', b'"n": ' + b"9" * 5000), "n", "range"),
    ],
    ids=range(37),
)
def test_what_no_backend_could_use_is_refused(raw: bytes, param: str | None, says: str) -> None:
    """A 400 that names the field where there is one, and says what is wrong without quoting the body."""
    error = refused(raw)
    assert error.param == param
    assert says in error.message


def test_text_of_every_plane_passes() -> None:
    """Escaped pairs, raw UTF-8 and escaped control characters are ordinary text."""
    for text in ("\U0001f600", "é", "\u0000", "\u2028"):
        for escaped in (True, False):
            messages = [{"role": "user", "content": text}]
            raw = json.dumps({"model": "m", "messages": messages}, ensure_ascii=escaped).encode()
            assert parse_ask(raw).body == raw


def test_a_huge_integer_in_an_unknown_field_passes() -> None:
    """What is not read cannot be too large."""
    assert parse_ask(body(seed=1).replace(b'"seed": 1', b'"seed": ' + b"9" * 5000)).model == "m"


def test_of_a_repeated_member_the_last_counts() -> None:
    """As in other parsers; so a proxy in front that checks the model checks the one that is used."""
    assert parse_ask(b'{"model":"a","messages":[{}],"model":"b"}').model == "b"


def test_thousands_of_messages_pass() -> None:
    """A long conversation is no fault."""
    assert parse_ask(body(messages=GOOD["messages"] * 20_000)).model == "m"


TEXT: dict[str, Any] = {"model": "m", "prompt": "CANARY"}
EMBED: dict[str, Any] = {"model": "m", "input": "CANARY"}


@pytest.mark.parametrize(
    ("prompt", "n", "choices"),
    [
        ("a", None, 1),
        ("", None, 1),
        (["a"], None, 1),
        (["a", "b"], 3, 6),
        ([1, 2, 3], 2, 2),
        ([[1, 2], [3]], None, 2),
    ],
    ids=range(6),
)
def test_a_completions_choices(prompt: object, n: int | None, choices: int) -> None:
    """Each prompt has ``n`` of them; a list of tokens is one prompt. The body travels to the byte."""
    raw = json.dumps({**TEXT, "prompt": prompt, "n": n, "stream": True, "suffix": "x"}).encode()
    ask = parse_ask(raw, Operation.COMPLETIONS)
    assert (ask.choices, ask.streaming, ask.body) == (choices, True, raw)
    assert ask.operation is Operation.COMPLETIONS


@pytest.mark.parametrize(
    ("asked", "inputs"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2)], ids=range(4)
)
def test_the_inputs_of_embeddings(asked: object, inputs: int) -> None:
    """A list of tokens is one input; embeddings never stream."""
    fields = {"input": asked, "encoding_format": "base64", "stream": False, "dimensions": 5}
    ask = parse_ask(json.dumps({**EMBED, **fields}).encode(), Operation.EMBEDDINGS)
    assert (ask.choices, ask.streaming, ask.include_usage) == (inputs, False, False)


@pytest.mark.parametrize(
    ("operation", "fields", "param", "says"),
    [
        (Operation.COMPLETIONS, {"prompt": []}, "prompt", "empty"),
        (Operation.COMPLETIONS, {"prompt": None}, "prompt", "null"),
        (Operation.COMPLETIONS, {"prompt": 5}, "prompt", "int"),
        (Operation.COMPLETIONS, {"n": 0}, "n", "1 to"),
        (Operation.COMPLETIONS, {"stream_options": {}}, "stream_options", "stream"),
        (Operation.COMPLETIONS, {"model": ""}, "model", "empty"),
        (Operation.EMBEDDINGS, {"input": []}, "input", "empty"),
        (Operation.EMBEDDINGS, {"input": {"CANARY": 1}}, "input", "object"),
        (Operation.EMBEDDINGS, {"encoding_format": "CANARY"}, "encoding_format", "base64"),
        (Operation.EMBEDDINGS, {"stream": True}, "stream", "one piece"),
        (Operation.EMBEDDINGS, {"model": ""}, "model", "empty"),
    ],
    ids=range(11),
)
def test_what_the_other_operations_refuse(
    operation: Operation, fields: dict[str, Any], param: str, says: str
) -> None:
    """Their own fields with their own places, and never a value of the body."""
    good = TEXT if operation is Operation.COMPLETIONS else EMBED
    with pytest.raises(InvalidRequest) as caught:
        parse_ask(json.dumps({**good, **fields}).encode(), operation)
    assert caught.value.param == param
    assert says in caught.value.message
    assert "CANARY" not in caught.value.message


@pytest.mark.parametrize(
    ("operation", "field"), [(Operation.COMPLETIONS, "prompt"), (Operation.EMBEDDINGS, "input")]
)
def test_the_text_is_required(operation: Operation, field: str) -> None:
    """A body without it, and one without anything, say which field is missing."""
    for raw in (b"", b'{"model":"m"}'):
        with pytest.raises(InvalidRequest) as caught:
            parse_ask(raw, operation)
        assert field in caught.value.message
