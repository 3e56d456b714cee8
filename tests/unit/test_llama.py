"""llama.cpp's departures from OpenAI's API, mended or refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tierfall.errors import UnsupportedByTier
from tierfall.protocol.operation import Operation
from tierfall.worker import Ask
from tierfall_worker_vllm.llama import LlamaMender, refuse_ignored

USAGE = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7, "details": {"cached_tokens": 1}}


def ask(operation: Operation, **fields: Any) -> Ask:
    """A request as the runtime hands it over."""
    body = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields.items()}
    return Ask(request_id="r", model="m", backend_model="m", body=body, operation=operation)


def mended(mender: LlamaMender, *choices: dict[str, Any], usage: dict[str, Any] | None = None) -> Any:
    """One chunk after it."""
    chunk = {"choices": choices, **({} if usage is None else {"usage": usage})}
    return json.loads(mender.mend(json.dumps(chunk, separators=(",", ":")).encode()))


@pytest.mark.parametrize(
    ("operation", "field", "value"),
    [
        (Operation.COMPLETIONS, "echo", True),
        (Operation.COMPLETIONS, "suffix", "end"),
        (Operation.COMPLETIONS, "best_of", 3),
        (Operation.EMBEDDINGS, "dimensions", 64),
    ],
)
def test_what_it_would_ignore_is_refused(operation: Operation, field: str, value: object) -> None:
    """By name, where the client asks for something; never in a chat, where nothing is known to be ignored."""
    with pytest.raises(UnsupportedByTier) as refused:
        refuse_ignored(ask(operation, **{field: value}))
    assert refused.value.param == field
    chat = ask(Operation.CHAT, **{field: value})
    refuse_ignored(chat)
    assert field in chat.body


def test_what_asks_for_nothing_is_left_out() -> None:
    """Defaults that SDKs send along."""
    asked = ask(Operation.COMPLETIONS, echo=False, suffix="", best_of=1, top_k=5)
    refuse_ignored(asked)
    assert set(asked.body) == {"top_k"}


@pytest.mark.parametrize(
    ("operation", "fields", "needed"),
    [
        (Operation.CHAT, {}, False),
        (Operation.CHAT, {"n": 1, "logprobs": True}, False),
        (Operation.CHAT, {"n": 2}, True),
        (Operation.COMPLETIONS, {"prompt": "a"}, False),
        (Operation.COMPLETIONS, {"prompt": ["a"]}, True),
        (Operation.COMPLETIONS, {"prompt": "a", "logprobs": 0}, True),
    ],
    ids=range(6),
)
def test_the_common_answer_needs_no_mender(
    operation: Operation, fields: dict[str, Any], needed: bool
) -> None:
    """Its chunks are not even looked at."""
    assert (LlamaMender.of(ask(operation, **fields)) is not None) == needed


def test_the_usage_of_several_prompts_is_added_up() -> None:
    """Each prompt once, each answer's tokens; so the last usage is that of the request."""
    mender = LlamaMender(2)
    totals = [
        mended(mender, {"index": index, "text": "", "finish_reason": "stop"}, usage=USAGE)["usage"]
        for index in (1, 0, 2, 3)
    ]
    assert totals[0] == USAGE
    assert totals[1] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
    assert totals[3] == {"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20}


def test_the_usage_of_several_choices_of_a_chat_is_added_up() -> None:
    """They come in chunks without choices, one after the other."""
    mender = LlamaMender(2)
    assert mended(mender, usage=USAGE)["usage"] == USAGE
    assert mended(mender, usage=USAGE)["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 6,
        "total_tokens": 10,
    }


def test_log_probabilities_get_the_form_of_completions() -> None:
    """With offsets that go on over the chunks of a choice."""
    mender = LlamaMender(1)
    found = [
        mended(
            mender, {"index": 0, "text": text, "logprobs": {"content": [{"token": text, "logprob": -1.0}]}}
        )
        for text in ("ab", "c")
    ]
    told = [chunk["choices"][0]["logprobs"] for chunk in found]
    assert [(each["tokens"], each["text_offset"]) for each in told] == [(["ab"], [0]), (["c"], [2])]


def test_what_cannot_be_read_is_left_to_its_judge() -> None:
    """The mender changes nothing in it."""
    for payload in (b'{"usage"', b'{"choices":[]}', b'{"usage":null}'):
        assert LlamaMender(2).mend(payload) in {payload, b'{"usage":null}'}
