"""Completions and embeddings in Ollama's native terms, and back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fakes.ollama import written, wrote
from fakes.texts import VECTOR
from tierfall.config import OllamaTier
from tierfall.errors import BackendFault, InvalidRequest, StreamBroken, UnsupportedByTier
from tierfall.protocol.operation import Operation
from tierfall.worker import Ask
from tierfall_worker_ollama.completion import TextAnswer, native_completion
from tierfall_worker_ollama.embedding import as_openai, native_embedding

TIER = OllamaTier(base_url="http://127.0.0.1:1", num_ctx=4096, keep_alive="30m")


def ask(operation: Operation = Operation.COMPLETIONS, **fields: Any) -> Ask:
    """A request as the runtime hands it over."""
    text = {"prompt": "Once"} if operation is Operation.COMPLETIONS else {"input": "Once"}
    members = {"model": "m", **text, **fields}
    body = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in members.items()}
    return Ask(request_id="r", model="m", backend_model="qwen", body=body, operation=operation)


def completion(**fields: Any) -> Any:
    """The native request, decoded."""
    return json.loads(native_completion(ask(**fields), TIER).payload)


def embedding(**fields: Any) -> Any:
    """Likewise."""
    return json.loads(native_embedding(ask(Operation.EMBEDDINGS, **fields), TIER))


def test_a_prompt_goes_out_raw() -> None:
    """No chat template is put around it, and nothing of it is cut in silence."""
    assert completion(max_tokens=5, temperature=0, stop=".", user="u", stream=False) == {
        "model": "qwen",
        "prompt": "Once",
        "stream": True,
        "raw": True,
        "truncate": False,
        "shift": False,
        "options": {"num_ctx": 4096, "temperature": 0.0, "num_predict": 5, "stop": ["."]},
        "keep_alive": "30m",
    }


def test_a_suffix_needs_the_template() -> None:
    """The model's template says where the two go; an empty suffix asks for nothing."""
    native = completion(suffix="end")
    assert (native["suffix"], native["raw"]) == ("end", False)
    assert completion(suffix="")["raw"] is True
    assert "suffix" not in completion(suffix=None)


@pytest.mark.parametrize(("asked", "top"), [(0, 0), (5, 5)])
def test_log_probabilities(asked: int, top: int) -> None:
    """The number is that of the alternatives."""
    native = completion(logprobs=asked)
    assert (native["logprobs"], native["top_logprobs"]) == (True, top)
    assert "logprobs" not in completion(logprobs=None)


def test_one_prompt_in_a_list_is_a_prompt() -> None:
    """Clients that always send a list are served."""
    assert completion(prompt=["Once"])["prompt"] == "Once"


@pytest.mark.parametrize(
    ("fields", "param", "error"),
    [
        ({"prompt": ["a", "b"]}, "prompt", UnsupportedByTier),
        ({"prompt": [1, 2]}, "prompt", UnsupportedByTier),
        ({"prompt": [[1, 2]]}, "prompt", UnsupportedByTier),
        ({"prompt": ""}, "prompt", UnsupportedByTier),
        ({"n": 2}, "n", UnsupportedByTier),
        ({"best_of": 2}, "best_of", UnsupportedByTier),
        ({"echo": True}, "echo", UnsupportedByTier),
        ({"logit_bias": {"5": 1}}, "logit_bias", UnsupportedByTier),
        ({"reasoning_effort": "high"}, "reasoning_effort", UnsupportedByTier),
        ({"logprobs": 21}, "logprobs", InvalidRequest),
        ({"logprobs": True}, "logprobs", InvalidRequest),
        ({"suffix": 5}, "suffix", InvalidRequest),
        ({"max_tokens": 0}, "max_tokens", InvalidRequest),
    ],
    ids=range(13),
)
def test_what_a_completion_cannot_have(
    fields: dict[str, Any], param: str, error: type[InvalidRequest]
) -> None:
    """Refused by name; nothing is dropped in silence."""
    with pytest.raises(error) as caught:
        completion(**fields)
    assert (type(caught.value), caught.value.param) == (error, param)


def answered(*lines: dict[str, Any], logprobs: bool = False) -> list[Any]:
    """The chunks that these lines make."""
    answer = TextAnswer(logprobs=logprobs)
    return [json.loads(chunk) for line in lines for chunk in answer.feed(json.dumps(line).encode())]


def test_lines_become_chunks() -> None:
    """Text, then the reason, with the usage on the last."""
    chunks = answered(wrote("a"), wrote(), wrote("b"), written("length", prompt=7, answer=2))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert chunks[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def test_log_probabilities_have_the_form_of_completions() -> None:
    """With offsets that go on from line to line."""
    lines = [
        wrote(text, logprobs=[{"token": text, "logprob": -0.5, "bytes": [1], "top_logprobs": []}])
        for text in ("ab", "c")
    ]
    found = [chunk["choices"][0]["logprobs"] for chunk in answered(*lines, logprobs=True)]
    assert [(each["tokens"], each["text_offset"]) for each in found] == [(["ab"], [0]), (["c"], [2])]
    with pytest.raises(UnsupportedByTier):
        answered(wrote("a"), logprobs=True)


def test_a_broken_completion() -> None:
    """An error in a line and an end without a reason are no answers."""
    for line in ({"error": "boom"}, {**written(), "done_reason": ""}):
        with pytest.raises(StreamBroken):
            answered(line)


def test_an_embedding_request() -> None:
    """Texts, dimensions and the tier's settings; what does not fit is an error, not cut."""
    assert embedding(input=["a", "b"], dimensions=2, encoding_format="base64", user="u") == {
        "model": "qwen",
        "input": ["a", "b"],
        "truncate": False,
        "options": {"num_ctx": 4096},
        "dimensions": 2,
        "keep_alive": "30m",
    }


@pytest.mark.parametrize(
    ("fields", "param", "error"),
    [
        ({"input": [1, 2]}, "input", UnsupportedByTier),
        ({"input": [[1], [2]]}, "input", UnsupportedByTier),
        ({"input": ""}, "input", InvalidRequest),
        ({"input": ["a", ""]}, "input", InvalidRequest),
        ({"dimensions": 0}, "dimensions", InvalidRequest),
        ({"dimensions": "5"}, "dimensions", InvalidRequest),
    ],
    ids=range(6),
)
def test_what_embeddings_cannot_have(fields: dict[str, Any], param: str, error: type[InvalidRequest]) -> None:
    """Refused by name."""
    with pytest.raises(error) as caught:
        embedding(**fields)
    assert (type(caught.value), caught.value.param) == (error, param)


def test_vectors_in_openais_form() -> None:
    """In order, with their bytes, and the tokens counted."""
    found = json.loads(as_openai(json.dumps({"embeddings": [VECTOR] * 2, "prompt_eval_count": 4}).encode()))
    assert [(datum["index"], datum["embedding"]) for datum in found["data"]] == [(0, VECTOR), (1, VECTOR)]
    assert found["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    for garbage in (b"", b"{}", b'{"embeddings": [[1'):
        with pytest.raises(BackendFault):
            as_openai(garbage)
