"""What the fake provider does with a request: good answers and every way in which one can go wrong.

A count ``after`` or ``n`` counts output chunks: the role chunk before them is not counted.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fakes.http11 import Recorded

SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"
DONE = b"data: [DONE]\n\n"
TEXT = "one two three four five six seven eight nine ten"
ID = "chatcmpl-fake"
CREATED = 1_700_000_000


class Behaviour(Protocol):
    """Answers one request on its connection."""

    async def play(self, request: Recorded) -> None:
        """Plays it through, to its end or until the client hangs up."""


def event(payload: Any) -> bytes:
    """One SSE event with a JSON payload."""
    return b"data: " + json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def chunk(model: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A ``chat.completion.chunk`` object."""
    return {
        "id": ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "choices": choices,
        **more,
    }


def choice(
    delta: dict[str, Any], finish: str | None = None, index: int = 0, logprobs: Any = None
) -> dict[str, Any]:
    """One choice of a chunk."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def error_body(message: str, kind: str = "server_error", code: Any = None, param: str | None = None) -> Any:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Answer:
    """A good answer, one word a chunk, for as many choices as the request's ``n`` asks for."""

    text: str = TEXT
    tokens_per_s: float = 0.0
    """As fast as the client reads when 0."""
    first_token_s: float = 0.0
    """Seconds of silence between the role chunk and the first output."""
    usage: bool = True
    """Whether to honour ``stream_options.include_usage``; ``False`` never sends usage."""
    reasoning: str = ""
    """Sent as ``reasoning_content`` before the text."""
    tool_calls: tuple[tuple[str, str], ...] = ()
    """(name, arguments as JSON text) pairs; their arguments are sent in two deltas each."""
    logprobs: bool = False
    finish: str = "stop"
    finish_sent: bool = True
    done: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    """Further members of every chunk."""
    headers: dict[str, str] = field(default_factory=dict)
    """Further headers of the answer."""

    def deltas(self, request: Recorded) -> list[dict[str, Any]]:
        """The output deltas of one choice."""
        found: list[dict[str, Any]] = [{"reasoning_content": word} for word in words(self.reasoning)]
        if not self.tool_calls:
            return found + [{"content": word} for word in words(self.rest(request))]
        for index, (name, arguments) in enumerate(self.tool_calls):
            half = len(arguments) // 2
            first = {"name": name, "arguments": arguments[:half]}
            found.append(
                {
                    "tool_calls": [
                        {"index": index, "id": f"call_{index}", "type": "function", "function": first}
                    ]
                }
            )
            found.append({"tool_calls": [{"index": index, "function": {"arguments": arguments[half:]}}]})
        return found

    def rest(self, request: Recorded) -> str:
        """The text, less what of it the prompt's last message has, if that is the assistant's."""
        last = (request.json.get("messages") or [{}])[-1]
        begun = last.get("content") if last.get("role") == "assistant" else None
        return self.text.removeprefix(begun) if isinstance(begun, str) else self.text

    def usage_of(self, request: Recorded) -> dict[str, int]:
        """Token counts: words of the prompt, deltas of the answer."""
        prompt = len(words(" ".join(str(m.get("content")) for m in request.json.get("messages", ()))))
        answer = len(self.deltas(request)) * int(request.json.get("n") or 1)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def output(self, request: Recorded) -> list[bytes]:
        """The events of the output, role and finish not included."""
        model, count = request.json.get("model", ""), int(request.json.get("n") or 1)
        events = []
        for delta in self.deltas(request):
            found = None
            if self.logprobs and "content" in delta:
                token = {"token": delta["content"], "logprob": -0.5, "bytes": list(delta["content"].encode())}
                found = {"content": [{**token, "top_logprobs": []}], "refusal": None}
            events += [
                event(chunk(model, [choice(delta, index=index, logprobs=found)], **self.extra))
                for index in range(count)
            ]
        return events

    def opening(self, request: Recorded) -> list[bytes]:
        """The role chunks."""
        model, count = request.json.get("model", ""), int(request.json.get("n") or 1)
        role = {"role": "assistant", "content": ""}
        return [event(chunk(model, [choice(role, index=index)], **self.extra)) for index in range(count)]

    def closing(self, request: Recorded) -> list[bytes]:
        """Finish reasons, usage and ``[DONE]``, as configured."""
        model, count = request.json.get("model", ""), int(request.json.get("n") or 1)
        finish = "tool_calls" if self.tool_calls and self.finish == "stop" else self.finish
        events = []
        if self.finish_sent:
            events += [
                event(chunk(model, [choice({}, finish, index)], **self.extra)) for index in range(count)
            ]
        if self.usage and (request.json.get("stream_options") or {}).get("include_usage"):
            events.append(event(chunk(model, [], usage=self.usage_of(request), **self.extra)))
        return [*events, DONE] if self.done else events

    async def begin(self, request: Recorded) -> None:
        """Sends headers and role chunks, then waits for the first token's time."""
        await request.connection.head(200, SSE, {"Cache-Control": "no-cache", **self.headers})
        for data in self.opening(request):
            await request.connection.chunk(data)
        if self.first_token_s:
            await pause(request, self.first_token_s)

    async def send(self, request: Recorded, events: list[bytes]) -> None:
        """Sends events at the configured speed."""
        for data in events:
            await request.connection.chunk(data)
            if self.tokens_per_s:
                await pause(request, 1 / self.tokens_per_s)

    async def play(self, request: Recorded) -> None:
        """Streams, or answers in one piece when the request does not ask for a stream."""
        if not request.json.get("stream"):
            await request.connection.whole(200, json.dumps(self.unary(request)).encode(), JSON)
            return
        await self.begin(request)
        await self.send(request, self.output(request))
        for data in self.closing(request):
            await request.connection.chunk(data)
        await request.connection.finish()

    def unary(self, request: Recorded) -> dict[str, Any]:
        """The ``chat.completion`` object for a request without ``stream``."""
        calls = [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(self.tool_calls)
        ]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls else self.text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        finish = "tool_calls" if calls else self.finish
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
            for index in range(int(request.json.get("n") or 1))
        ]
        whole = chunk(request.json.get("model", ""), choices, usage=self.usage_of(request))
        return {**whole, "object": "chat.completion"}


def words(text: str) -> list[str]:
    """A text's words, each with the white space after it."""
    return re.findall(r"\S+\s*", text)


async def pause(request: Recorded, seconds: float) -> None:
    """Waits, but no longer than the client."""
    gone = asyncio.ensure_future(request.connection.wait_gone())
    try:
        await asyncio.wait({gone}, timeout=seconds)
    finally:
        gone.cancel()


async def until_released(request: Recorded) -> None:
    """Waits until the test sets ``request.go_on`` or the client hangs up."""
    waits = {
        asyncio.ensure_future(request.go_on.wait()),
        asyncio.ensure_future(request.connection.wait_gone()),
    }
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
