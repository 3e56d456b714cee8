"""What is kept of a streamed answer: enough to go on with it, in little memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierfall.protocol.envelope import Resume
from tierfall_ingress.transcript import TEXT_LIMIT, UNREAD_BYTES, Transcript


def event(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """One chunk as it is sent."""
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return b"data: " + json.dumps({"id": "a", "choices": [choice]}).encode() + b"\n\n"


def told(*events: bytes) -> Transcript:
    """A transcript of these."""
    transcript = Transcript()
    for each in events:
        transcript.add(each)
    return transcript


def test_an_answer_of_any_length_is_gone_on_with_from_all_of_its_text() -> None:
    """Role, text and reasoning, sent one by one or together, with signs of life between them."""
    words = [f"word{number} " for number in range(2000)]
    begun = event({"role": "assistant", "content": ""}) + event({"reasoning_content": "hm"})
    assert sum(len(event({"content": word})) for word in words) > 4 * UNREAD_BYTES
    transcript = told(begun, b": still here\n\n", *(event({"content": word}) for word in words))
    assert transcript.resume() == Resume(content="".join(words), reasoning="hm", outputs=2001)
    assert transcript.events == 2002


def test_little_is_kept_of_a_long_answer() -> None:
    """Its events are forty times its text: a thousand long streams at a time must fit."""
    transcript = told(*(event({"content": "a"}) for _ in range(10_000)))
    assert len(transcript._unread) <= UNREAD_BYTES
    assert sum(map(len, transcript._content)) == 10_000 - len(bytes(transcript._unread).split(b"data: ")) + 1


def test_the_end_of_every_choice_is_seen() -> None:
    """Whatever was said before, in whatever order the choices end."""
    transcript = told(event({"content": "a"}, index=1), event({}, "stop", index=1))
    assert not transcript.finished(2)
    transcript.add(event({"tool_calls": [{"index": 0}]}) + event({}, "tool_calls"))
    assert transcript.finished(2)


@pytest.mark.parametrize(
    "odd",
    [
        event({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
        event({"audio": {"id": "a"}}),
        event({"refusal": "no"}),
        event({"content": [{"type": "text"}]}),
        event({"content": "a"}, index=1),
        event({"content": "a"}, logprobs={"content": []}),
        b'data: {"choices": [{"delta": {"content": 1e999}}]}\n\n',
        event({"content": "a" * TEXT_LIMIT}),
    ],
    ids=range(8),
)
def test_what_cannot_be_continued_is_not(odd: bytes) -> None:
    """Calls, sound, refusals, parts, several choices, probabilities, what no parser holds, too much text."""
    transcript = told(event({"content": "a"}), odd, event({"content": "b"}))
    assert transcript.resume() is None
