"""What the fake provider does with text completions and embeddings, where chats have ``Answer``."""

from __future__ import annotations

import array
import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fakes.behaviour import DONE, JSON, Answer, event, words

if TYPE_CHECKING:
    from fakes.http11 import Recorded

VECTOR = [0.5, -0.25, 1.0]
"""Numbers that binary32 holds exactly."""


def text_chunk(model: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A ``text_completion`` object, which chunks and whole answers both are."""
    head = {"id": "cmpl-fake", "object": "text_completion", "created": 1, "model": model}
    return {**head, "choices": choices, **more}


def text_choice(text: str, finish: str | None = None, index: int = 0, logprobs: Any = None) -> dict[str, Any]:
    """One choice of either."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def prompts_of(request: Recorded) -> list[Any]:
    """The prompts, each a text or a list of tokens."""
    asked = request.json.get("prompt")
    return asked if isinstance(asked, list) and not isinstance(asked[0], int) else [asked]


def tokens_of(text: Any) -> int:
    """A token a word, or those that are there already."""
    if isinstance(text, str):
        return len(words(text))
    return len(text) if isinstance(text, list) else 1


@dataclass(frozen=True)
class TextAnswer(Answer):
    """A completion, one word a chunk, for ``n`` choices of each prompt."""

    def count(self, request: Recorded) -> int:
        """How many choices are asked for."""
        return len(prompts_of(request)) * int(request.json.get("n") or 1)

    def rest(self, request: Recorded) -> str:
        """The text, less what of it the prompt ends with already."""
        prompt = prompts_of(request)[0]
        for size in range(len(self.text) if isinstance(prompt, str) else 0, 0, -1):
            if prompt.endswith(self.text[:size]):
                return self.text[size:]
        return self.text

    def opening(self, request: Recorded) -> list[bytes]:
        """Completions begin without a word."""
        del request
        return []

    def output(self, request: Recorded) -> list[bytes]:
        """A word of every choice, then the next."""
        model = request.json["model"]
        return [
            event(text_chunk(model, [text_choice(word, index=index)], **self.extra))
            for word in words(self.rest(request))
            for index in range(self.count(request))
        ]

    def closing(self, request: Recorded) -> list[bytes]:
        """Finish reasons, usage and ``[DONE]``."""
        model = request.json["model"]
        events = [
            event(text_chunk(model, [text_choice("", self.finish, index)]))
            for index in range(self.count(request))
        ]
        if self.usage and (request.json.get("stream_options") or {}).get("include_usage"):
            events.append(event(text_chunk(model, [], usage=self.usage_of(request))))
        return [*events, DONE]

    def usage_of(self, request: Recorded) -> dict[str, int]:
        """Token counts: words of the prompts, words of the answers."""
        prompt = sum(map(tokens_of, prompts_of(request)))
        answer = len(words(self.rest(request))) * self.count(request)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def unary(self, request: Recorded) -> dict[str, Any]:
        """The whole answer, for a request without ``stream``."""
        choices = [
            text_choice(self.rest(request), self.finish, index) for index in range(self.count(request))
        ]
        return text_chunk(request.json["model"], choices, usage=self.usage_of(request))


@dataclass(frozen=True)
class Vectors:
    """One vector for each input."""

    form: str = ""
    """``float`` or ``base64`` whatever is asked for; what is asked for when empty."""
    lost: int = 0
    """How many of the vectors are missing."""
    dimensions: int = len(VECTOR)

    async def play(self, request: Recorded) -> None:
        """Answers."""
        body = json.dumps(self.body(request)).encode()
        await request.connection.whole(200, body, JSON)

    def body(self, request: Recorded) -> dict[str, Any]:
        """OpenAI's list of embeddings."""
        asked = request.json["input"]
        inputs = asked if isinstance(asked, list) and not isinstance(asked[0], int) else [asked]
        form = self.form or request.json.get("encoding_format") or "float"
        numbers = (VECTOR * self.dimensions)[: self.dimensions]
        vector: Any = numbers if form == "float" else packed(numbers)
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(inputs))]
        tokens = sum(map(tokens_of, inputs))
        return {
            "object": "list",
            "data": data[self.lost :],
            "model": request.json["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def packed(numbers: list[float]) -> str:
    """A vector as base64 of little-endian binary32."""
    return base64.b64encode(array.array("f", numbers).tobytes()).decode()
