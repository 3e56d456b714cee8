"""Chunks on their way to the client: what is relayed as it is, what is mended, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfall.chat import ChunkStream
from tierfall.errors import BackendFault, StreamBroken


def payload(*choices: dict[str, Any], **more: Any) -> bytes:
    """A chunk with these choices."""
    return json.dumps(
        {"id": "e", "object": "x", "created": 1, "model": "e", "choices": choices, **more}
    ).encode()


def choice(
    delta: dict[str, Any] | None, finish: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    """One choice of a chunk."""
    return {"index": index, "delta": delta, "finish_reason": finish, **more}


def stream(choices: int = 1) -> ChunkStream:
    """A fresh one."""
    return ChunkStream("chatcmpl-1", 1700, "first", choices)


def fed(chunks: ChunkStream, *payloads: bytes) -> list[Any]:
    """What the client gets, decoded."""
    return [json.loads(out) for out in map(chunks.feed, payloads) if out]


def test_every_chunk_is_stamped() -> None:
    """id, object, created and model are ours on every chunk and on the usage chunk."""
    chunks = stream()
    found = fed(
        chunks,
        payload(choice({"role": "assistant", "content": ""})),
        payload(choice({"content": "a"}), model="other", id="other", created=2),
        payload(choice({}, "stop")),
        payload(usage={"total_tokens": 1}),
    )
    found.append(json.loads(chunks.usage_chunk()))
    stamps = {(part["id"], part["object"], part["created"], part["model"]) for part in found}
    assert stamps == {("chatcmpl-1", "chat.completion.chunk", 1700, "first")}


def test_what_needs_no_mending_keeps_its_bytes() -> None:
    """The choices of a good chunk are the engine's bytes, spaces, escapes and number forms included."""
    chunks = stream()
    chunks.feed(payload(choice({"role": "assistant"})))
    raw = b'[ {"index":0, "delta":{"content":"\\u00e9 1.50"},"x":1.50e0 ,"finish_reason":null}]'
    assert raw in chunks.feed(b'{"choices":' + raw + b',"extra":[1.0]}')


def test_the_role_is_said_first_and_once_per_choice() -> None:
    """A first delta without a role gets one; a repeated role is taken out, for each choice by itself."""
    found = fed(
        stream(2),
        payload(choice({"content": "a"})),
        payload(choice({"role": "assistant", "content": "b"}), choice({"content": "c"}, index=1)),
        payload(choice({"role": "assistant", "content": "d"}, index=1)),
    )
    roles = [[each["delta"].get("role") for each in chunk["choices"]] for chunk in found]
    assert roles == [["assistant"], [None, "assistant"], [None]]
    assert [each["delta"]["content"] for chunk in found for each in chunk["choices"]] == list("abcd")


def test_the_finish_reason_is_said_once() -> None:
    """A repeated or empty finish_reason becomes null."""
    chunks = stream()
    found = fed(
        chunks,
        payload(choice({"role": "assistant", "content": "a"}, "")),
        payload(choice({}, "stop")),
        payload(choice({}, "stop")),
    )
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None, "stop", None]
    assert chunks.finish_reasons == ("stop",)


def test_an_empty_finish_reason_does_not_complete() -> None:
    """Engines that send an empty string where null belongs have not finished."""
    chunks = stream()
    chunks.feed(payload(choice({"role": "assistant", "content": "a"}, "")))
    assert not chunks.complete


def test_a_missing_delta_becomes_an_empty_one() -> None:
    """SDKs read choice.delta without looking whether it is there."""
    found = fed(
        stream(),
        payload(choice({"role": "assistant"})),
        payload({"index": 0, "delta": None, "finish_reason": "stop"}),
        payload({"index": 0}),
    )
    assert [chunk["choices"][0]["delta"] for chunk in found] == [{"role": "assistant"}, {}, {}]


def test_a_missing_index_or_finish_reason_is_said() -> None:
    """SDKs read both of every choice: an engine that leaves them out means the first choice, and null."""
    chunks = stream()
    first, last = fed(
        chunks,
        payload({"delta": {"role": "assistant", "content": "a"}}),
        payload({"index": None, "delta": {}, "finish_reason": "stop"}),
    )
    assert first["choices"] == [choice({"role": "assistant", "content": "a"})]
    assert last["choices"] == [choice({}, "stop")]
    assert chunks.complete


def test_a_tool_calls_id_type_and_name_are_said_once() -> None:
    """What SDKs would join to itself is taken out of later deltas; arguments stay as they are."""
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a'},
    }
    again = {**call, "function": {"name": "f", "arguments": '": 01}'}}
    other = {**call, "index": 1, "id": "call_2"}
    found = fed(
        stream(),
        payload(choice({"role": "assistant", "tool_calls": [call]})),
        payload(choice({"tool_calls": [again, other]})),
    )
    second = found[1]["choices"][0]["delta"]["tool_calls"]
    assert second == [{"index": 0, "function": {"arguments": '": 01}'}}, other]


def test_output_is_told_from_ceremony() -> None:
    """A role, an empty string, an empty list is not output; text, reasoning, a tool call, a refusal is."""
    ceremonies: list[dict[str, Any]] = [
        {"role": "assistant"},
        {"role": "assistant", "content": ""},
        {"tool_calls": []},
        {},
    ]
    for empty in ceremonies:
        chunks = stream()
        chunks.feed(payload(choice(empty)))
        assert not chunks.started, empty
    for real in (
        {"content": "a"},
        {"reasoning_content": "a"},
        {"reasoning": "a"},
        {"refusal": "a"},
        {"tool_calls": [{"index": 0}]},
        {"function_call": {"name": "f"}},
        {"audio": {"id": "a"}},
        {"content": [{"type": "text", "text": "a"}]},
    ):
        chunks = stream()
        chunks.feed(payload(choice(real)))
        assert chunks.started, real
        assert chunks.outputs == 1


@pytest.mark.parametrize("separate", [True, False])
def test_usage_is_kept_aside(separate: bool) -> None:
    """Usage never travels on a chunk; the last one said is kept, wherever it was."""
    chunks = stream()
    first, last = {"total_tokens": 1}, {"total_tokens": 2}
    found = fed(
        chunks,
        payload(choice({"role": "assistant", "content": "a"}), usage=first),
        payload(choice({}, "stop"), usage=None if separate else last),
        *([payload(usage=last)] if separate else []),
    )
    assert len(found) == 2
    assert all("usage" not in chunk for chunk in found)
    assert chunks.usage is not None
    assert json.loads(bytes(chunks.usage)) == last
    assert json.loads(chunks.usage_chunk())["choices"] == []


def test_complete_means_every_choice_asked_for() -> None:
    """One finished choice of two is not a whole answer, even while the second has not begun."""
    chunks = stream(2)
    chunks.feed(payload(choice({"role": "assistant", "content": "a"}, "stop")))
    assert not chunks.complete
    assert chunks.missing == 1
    chunks.feed(payload(choice({"role": "assistant", "content": "b"}, index=1)))
    assert not chunks.complete
    assert chunks.missing == 0
    chunks.feed(payload(choice({}, "length", index=1)))
    assert chunks.complete
    assert chunks.finish_reasons == ("stop", "length")


def test_a_line_break_between_tokens_never_reaches_the_client() -> None:
    """An engine that prints its JSON on several lines would otherwise end the event in its middle."""
    pretty = json.dumps(json.loads(payload(choice({"content": "a\nb"}), more={"x": [1]})), indent=2).encode()
    out = stream().feed(pretty.replace(b"\n", b"\r\n"))
    assert b"\n" not in out
    assert b"\r" not in out
    assert json.loads(out)["choices"][0]["delta"]["content"] == "a\nb"


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"choices":{}}',
        b'{"choices":[1]}',
        b'{"choices":[{"index":"a"}]}',
        b'{"choices":[{"delta":"a"}]}',
        b'{"choices":[],"x":NaN}',
        b'{"choices":[{"delta":{"content":"\xff"}}]}',
        b'{"choices":[],"skipped":"\xff"}',
        b'{"choices":[{"delta":{"content":' + b"[" * 5000 + b"]" * 5000 + b"}}]}",
        b'{"skipped":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=range(12),
)
def test_what_is_no_chunk_breaks_the_stream(bad: bytes) -> None:
    """Garbage is a broken stream, never passed on and never a crash."""
    with pytest.raises(StreamBroken):
        stream().feed(bad)


def test_an_error_object_in_a_chunks_place_is_a_fault() -> None:
    """A backend that yields its engine's error as if it were a chunk does not lose it."""
    with pytest.raises(BackendFault):
        stream().feed(b'{"error":{"message":"boom","code":500}}')


def test_the_role_is_said_once_whatever_is_remembered() -> None:
    """Several choices whose every chunk names the role: only the first of each keeps it."""
    chunks = ChunkStream("chatcmpl-1", 1700, "first", 2)
    roles = []
    for index, text in [(0, "aa"), (1, "bb"), (1, "cc"), (0, "dd"), (1, "ee")]:
        out = chunks.feed(payload(choice({"role": "assistant", "content": text}, None, index)))
        roles.append("role" in json.loads(out)["choices"][0]["delta"])
    assert roles == [True, True, False, False, False]


def test_text_that_an_engine_escapes_breaks_nothing() -> None:
    """Our own form of a text may stand elsewhere in a chunk: there it is not taken for the text."""
    chunks = stream()
    found = ""
    for text in (b"a", b"b", b"\\u003a{", b"c"):
        raw = b'{"id":"e","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}' % text
        found += json.loads(chunks.feed(raw))["choices"][0]["delta"]["content"]
    assert found == "ab:{c"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3))
def test_any_text_and_any_extra_field_arrives(text: str, extra: dict[str, int]) -> None:
    """Whatever the text, and whatever else is on the delta, the client reads the same."""
    known = {"role", "content", "reasoning_content", "reasoning", "refusal"}
    known |= {"tool_calls", "function_call", "audio"}
    extra = {name: value for name, value in extra.items() if name not in known}
    delta = {"role": "assistant", "content": text, **extra}
    out = stream().feed(payload(choice(delta)))
    assert json.loads(out)["choices"][0]["delta"] == delta


_texts = st.sampled_from(["a", "é", '"choices": [', "}]", "", '{"usage": 1}'])
_deltas = st.fixed_dictionaries({}, optional={"role": st.just("assistant"), "content": _texts, "x": _texts})
_choice_lists = st.lists(
    st.builds(choice, _deltas, st.sampled_from([None, None, None, "stop", ""]), st.integers(0, 1)), max_size=2
)
_around_them = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["e", "f", '"choices": [']),
        "usage": st.sampled_from([None, {"total_tokens": 1}]),
        "nested": st.builds(lambda choices: {"choices": choices}, _choice_lists),
    },
)
_payloads = st.builds(
    lambda choices, more, last: json.dumps(
        {"id": "e", **({} if last else {"choices": choices}), "object": "x", **more}
        | ({"choices": choices} if last else {}),
        ensure_ascii=False,
    ).encode(),
    _choice_lists,
    _around_them,
    st.booleans(),
)


_raws = st.sampled_from(
    [
        b'"a"',
        b'"b"',
        b'"c d"',
        b'"\\u00e9"',
        b'""',
        b"1",
        b"null",
        b'\n"a"',
        b'"a","reasoning":"b"',
        b'"\xff"',
        b'"',
    ]
)
_alike = st.builds(
    lambda around, raws: [around % raw for raw in raws],
    st.sampled_from(
        [
            b'{"id":"e","choices":[{"index":0,"delta":{"content":%b},"finish_reason":null}],"x":"a"}',
            b'{"id":"e","choices":[{"index":0,"delta":{"content":%b,"reasoning":"b"},"finish_reason":null}]}',
            b'{"choices":[{"index":0,"delta":{"content":%b},"finish_reason":null}],"usage":null}',
            b'{"choices":[{"index":0,"delta":{"refusal":%b},"finish_reason":null}]}',
        ]
    ),
    st.lists(_raws, max_size=8),
)
_any = st.lists(st.one_of(_payloads, st.sampled_from([b'{"choices": [}', b"[]", b"\xff"])), max_size=8)


@given(st.one_of(_any, st.lists(_alike, max_size=3).map(lambda runs: [raw for run in runs for raw in run])))
def test_a_chunk_like_the_last_one_means_what_it_would_mean_alone(payloads: list[bytes]) -> None:
    """What is remembered of earlier chunks saves time and changes nothing, for whatever order and shape."""

    def seen(chunks: ChunkStream, raw: bytes) -> tuple[object, ...]:
        try:
            out = chunks.feed(raw)
            assert b"\n" not in out
            told: object = json.loads(out) if out else None
        except (BackendFault, StreamBroken) as error:
            told = type(error)
        usage = None if chunks.usage is None else bytes(chunks.usage)
        return told, chunks.started, chunks.outputs, chunks.complete, chunks.finish_reasons, usage

    with_memory, without = stream(), stream()
    without._to_learn = 0
    for raw in payloads:
        without._choices_frame = without._text_frame = None
        assert seen(with_memory, raw) == seen(without, raw)
