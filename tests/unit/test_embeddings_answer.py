"""A backend's embeddings: stamped, put into the form that was asked for, and held against the request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.scripted import vectors
from fakes.texts import VECTOR, packed
from tierfall.embeddings import EmbeddingsAnswer
from tierfall.errors import BackendFault, StreamBroken


def fed(payload: bytes, inputs: int = 1, wanted: bytes = b"null") -> Any:
    """What the client gets, decoded."""
    return json.loads(EmbeddingsAnswer("embed", inputs, wanted).mend(payload))


def test_the_model_is_the_configured_one() -> None:
    """Whatever the backend calls it; usage and unknown members stay."""
    answer = EmbeddingsAnswer("embed", 1)
    body = json.loads(vectors())
    found = json.loads(answer.feed(answer.mend(json.dumps({**body, "own": [1]}).encode())))
    assert (found["model"], found["object"], found["own"]) == ("embed", "list", [1])
    assert answer.usage is not None
    assert json.loads(bytes(answer.usage)) == found["usage"] == body["usage"]
    assert answer.complete


def test_what_needs_no_mending_keeps_its_bytes() -> None:
    """Vectors in the right form are the backend's bytes."""
    raw = b'[ {"index":0,"object":"embedding", "embedding":[1.50, -2e-1]}]'
    assert raw in EmbeddingsAnswer("embed", 1).mend(b'{"data":' + raw + b"}")


@pytest.mark.parametrize("sent", ["float", "base64"])
@pytest.mark.parametrize(("wanted", "expected"), [(b"null", VECTOR), (b'"float"', VECTOR)])
def test_numbers_are_what_comes_without_a_wish(sent: str, wanted: bytes, expected: object) -> None:
    """From a backend that sends either form."""
    vector = VECTOR if sent == "float" else packed(VECTOR)
    assert fed(vectors(1, vector), 1, wanted)["data"][0]["embedding"] == expected


@pytest.mark.parametrize("sent", ["float", "base64"])
def test_base64_is_binary32_in_little_endian(sent: str) -> None:
    """From a backend that sends either form."""
    vector = VECTOR if sent == "float" else packed(VECTOR)
    found = fed(vectors(2, vector), 2, b'"base64"')
    assert [datum["embedding"] for datum in found["data"]] == [packed(VECTOR)] * 2


def test_order_and_index_are_mended() -> None:
    """Vectors come in the order of their inputs and say which is which."""
    data = [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [0.0]}]
    found = fed(json.dumps({"data": data}).encode(), 2)["data"]
    assert [(datum["index"], datum["embedding"]) for datum in found] == [(0, [0.0]), (1, [1.0])]
    unnumbered = [{"embedding": [float(number)]} for number in range(3)]
    found = fed(json.dumps({"data": unnumbered}).encode(), 3)["data"]
    assert [(datum["object"], datum["index"]) for datum in found] == [("embedding", n) for n in range(3)]


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"[]", StreamBroken),
        (b'{"data":[{"embedding":[1', StreamBroken),
        (b'{"data":[{"index":0}]}', StreamBroken),
        (b'{"error":{"message":"CANARY"}}', BackendFault),
        (b"{}", BackendFault),
        (vectors(2), BackendFault),
        (vectors(0), BackendFault),
    ],
    ids=range(7),
)
def test_other_answers_are_faults(payload: bytes, fault: type[BackendFault]) -> None:
    """Also an answer with more or fewer vectors than there were inputs."""
    with pytest.raises(fault):
        fed(payload)


@pytest.mark.parametrize("vector", ["no base64", "AAA=", ["x"], [None], None, {}], ids=range(6))
def test_a_vector_that_cannot_be_turned_is_a_fault(vector: object) -> None:
    """A string where numbers are wanted has to be base64 of whole numbers, a list has to hold numbers."""
    wanted = b"null" if isinstance(vector, str) else b'"base64"'
    with pytest.raises(BackendFault):
        fed(vectors(1, vector), 1, wanted)
