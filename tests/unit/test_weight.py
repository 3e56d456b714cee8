"""How much was generated, where no backend says it: chunks and bytes both bound it from below."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.scripted import chunk, text
from tierfall.chat import Assembly, ChunkStream, TextAssembly, TextStream
from tierfall.chat.weight import chunk_bytes, text_bytes, tokens
from tierfall_ingress.transcript import Transcript

CALL = [{"index": 0, "id": "c", "function": {"name": "look", "arguments": "{}"}}]
FRENCH = "Ça va très bien. "
DELTAS: list[tuple[dict[str, Any], int]] = [
    ({"content": "word"}, 4),
    ({"content": FRENCH}, len(FRENCH.encode())),
    ({"reasoning_content": "hmm", "reasoning": "hmm"}, 3),
    ({"reasoning": "hmm"}, 3),
    ({"refusal": "no"}, 2),
    ({"tool_calls": CALL}, 6),
    ({"function_call": {"name": "f", "arguments": "{}"}}, 3),
    ({"role": "assistant", "content": ""}, 0),
    ({"content": None, "tool_calls": None}, 0),
    ({"content": [{"type": "text"}], "tool_calls": [3], "function_call": "x"}, 0),
]


@pytest.mark.parametrize(("delta", "size"), DELTAS, ids=range(len(DELTAS)))
def test_the_text_of_a_delta(delta: dict[str, Any], size: int) -> None:
    """Everything that a model writes counts once, in bytes; odd types count for nothing."""
    assert text_bytes(delta) == size
    assert chunk_bytes(json.dumps({"choices": [{"delta": delta}, {"delta": delta}]}).encode()) == 2 * size


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"choices":5}', b"\xff", b"[" * 5000, b"{}"])
def test_what_is_no_chunk_has_no_text(payload: bytes) -> None:
    """Garbage is for its judge."""
    assert chunk_bytes(payload) == 0


@pytest.mark.parametrize("piece", [1, 20, 200, 2000])
def test_two_thousand_tokens_are_as_many_in_pieces_of_any_size(piece: int) -> None:
    """A provider that sends many tokens a chunk is not cheaper to hang up on."""
    answer = [FRENCH[:4] * piece] * (2000 // piece)
    for judge, made in (
        (ChunkStream("a", 1, "m"), [chunk(each) for each in answer]),
        (Assembly("a", 1, "m"), [chunk(each) for each in answer]),
        (TextStream("a", 1, "m"), [text(each) for each in answer]),
        (TextAssembly("a", 1, "m"), [text(each) for each in answer]),
    ):
        transcript = Transcript()
        for payload in made:
            judge.feed(payload)
            transcript.add(b"data: " + payload + b"\n\n")
        assert 2000 <= judge.tokens <= 2600
        assert 2000 <= transcript.tokens <= 2600
        assert 2000 <= tokens(len(made), sum(map(chunk_bytes, made))) <= 2600


def test_tool_calls_and_reasoning_count_in_streams() -> None:
    """They are no text that could be gone on with, and cost the same."""
    stream, transcript = ChunkStream("a", 1, "m", 2), Transcript()
    for delta in ({"reasoning_content": "h" * 400}, {"tool_calls": CALL}):
        payload = chunk(index=1, **delta)
        stream.feed(payload)
        transcript.add(b"data: " + payload + b"\n\n")
    assert (stream.tokens, transcript.tokens) == (102, 102)
