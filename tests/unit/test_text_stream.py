"""The chunks of a text completion: relayed, mended, assembled, continued."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierfall.chat import Continuation, TextAssembly, TextStream, legacy_logprobs
from tierfall.errors import BackendFault, ContinuationDiverged, StreamBroken


def payload(*choices: dict[str, Any], **more: Any) -> bytes:
    """A chunk with these choices."""
    return json.dumps(
        {"id": "e", "object": "x", "created": 1, "model": "e", "choices": choices, **more}
    ).encode()


def choice(text: str | None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """One choice of a chunk."""
    return {"index": index, "text": text, "finish_reason": finish, **more}


def stream(choices: int = 1) -> TextStream:
    """A fresh one."""
    return TextStream("cmpl-1", 1700, "first", choices)


def fed(chunks: TextStream, *payloads: bytes) -> list[Any]:
    """What the client gets, decoded."""
    return [json.loads(out) for out in map(chunks.feed, payloads) if out]


def test_every_chunk_is_stamped() -> None:
    """id, object, created and model are ours, on the usage chunk too, and no chunk has a role or a delta."""
    chunks = stream()
    found = fed(chunks, payload(choice("a")), payload(choice("", "stop")), payload(usage={"total_tokens": 1}))
    found.append(json.loads(chunks.usage_chunk()))
    stamps = {(part["id"], part["object"], part["created"], part["model"]) for part in found}
    assert stamps == {("cmpl-1", "text_completion", 1700, "first")}
    assert not any("delta" in each for part in found for each in part["choices"])


def test_what_needs_no_mending_keeps_its_bytes() -> None:
    """The choices of a good chunk are the engine's bytes."""
    raw = b'[ {"index":0, "text":"\\u00e9 1.50","x":1.50e0 ,"finish_reason":null}]'
    assert raw in stream().feed(b'{"choices":' + raw + b',"extra":[1.0]}')


def test_an_empty_text_is_no_output() -> None:
    """The first text with something in it is; so is an end without any."""
    chunks = stream()
    chunks.feed(payload(choice("")))
    assert not chunks.started
    chunks.feed(payload(choice("a")))
    assert (chunks.started, chunks.outputs, chunks.complete) == (True, 1, False)
    ended = stream()
    ended.feed(payload(choice("", "stop")))
    assert (ended.started, ended.complete) == (True, True)


def test_rules_are_mended() -> None:
    """A missing text is empty; finish_reason comes once, and an empty one not at all."""
    chunks = stream()
    found = fed(
        chunks,
        payload({"index": 0, "finish_reason": ""}),
        payload(choice(None, "stop")),
        payload(choice("", "length")),
    )
    told = [(part["choices"][0]["text"], part["choices"][0]["finish_reason"]) for part in found]
    assert told == [("", None), ("", "stop"), ("", None)]
    assert chunks.finish_reasons == ("stop",)


def test_it_is_whole_when_every_choice_has_ended() -> None:
    """Two prompts are two choices."""
    chunks = stream(2)
    chunks.feed(payload(choice("a", "stop", 1)))
    assert (chunks.complete, chunks.missing) == (False, 1)
    chunks.feed(payload(choice("b", "stop", 0)))
    assert chunks.complete


def test_what_is_no_chunk_is_refused() -> None:
    """Garbage breaks the stream, an error object is a fault."""
    with pytest.raises(StreamBroken):
        stream().feed(b"[]")
    with pytest.raises(BackendFault):
        stream().feed(b'{"error":{"message":"x"}}')


def test_assembled() -> None:
    """Texts are joined by choice, log probabilities too, own members kept, usage last."""
    assembly = TextAssembly("cmpl-1", 1700, "first", 2)
    logprobs = [{"tokens": ["a"], "token_logprobs": [-1.0]}, {"tokens": ["c"], "token_logprobs": [-2.0]}]
    for each in (
        payload(choice("a", logprobs=logprobs[0]), choice("b", index=1)),
        payload(choice("c", logprobs=logprobs[1]), choice("d", index=1), own=5),
        payload(choice("", "length", stop_reason="x"), choice("", "stop", 1)),
    ):
        assert not assembly.complete
        assembly.feed(each)
    whole = json.loads(assembly.completion())
    assert (assembly.complete, assembly.outputs, assembly.finish_reasons) == (True, 4, ("length", "stop"))
    assert (whole["object"], whole["own"]) == ("text_completion", 5)
    assert whole["choices"] == [
        {
            "index": 0,
            "text": "ac",
            "logprobs": {"tokens": ["a", "c"], "token_logprobs": [-1.0, -2.0]},
            "finish_reason": "length",
            "stop_reason": "x",
        },
        {"index": 1, "text": "bd", "logprobs": None, "finish_reason": "stop"},
    ]


def test_a_repeated_answer_is_skipped() -> None:
    """What the client has is cut off a new answer, inside a chunk too; another answer is refused."""
    known = Continuation("one tw")
    assert known.feed(payload(choice("one "))) == b""
    assert json.loads(known.feed(payload(choice("two"))))["choices"][0]["text"] == "o"
    assert known.caught_up
    with pytest.raises(ContinuationDiverged):
        Continuation("one").feed(payload(choice("two")))
    with pytest.raises(ContinuationDiverged):
        Continuation("one").feed(payload(choice("on", "stop")))


def test_log_probabilities_from_a_chats_form() -> None:
    """Tokens, their probabilities and alternatives, and where each begins in the text."""
    positions = [
        {"token": "ab", "logprob": -0.5, "top_logprobs": [{"token": "ab", "logprob": -0.5}]},
        {"token": "c", "logprob": -1.5},
    ]
    assert legacy_logprobs(positions, 7) == {
        "text_offset": [7, 9],
        "token_logprobs": [-0.5, -1.5],
        "tokens": ["ab", "c"],
        "top_logprobs": [{"ab": -0.5}, {}],
    }
