"""The ways in which a provider fails, for :class:`fakes.provider.FakeProvider`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fakes.behaviour import DONE, JSON, SSE, Answer, error_body, event, pause, until_released

if TYPE_CHECKING:
    from fakes.http11 import Recorded


@dataclass(frozen=True)
class Status:
    """An HTTP error with OpenAI's error object, or any other ``body``."""

    status: int
    retry_after: float | str | None = None
    """Sent as ``Retry-After``: seconds, or an HTTP date."""
    body: Any = None
    """JSON value, or bytes sent as they are."""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = JSON

    async def play(self, request: Recorded) -> None:
        """Sends it."""
        body = error_body(f"fake {self.status}") if self.body is None else self.body
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        await request.connection.whole(self.status, raw, self.content_type, headers)


@dataclass(frozen=True)
class Silence:
    """Takes the request and never says anything."""

    async def play(self, request: Recorded) -> None:
        """Waits until the client hangs up."""
        await request.connection.wait_gone()


@dataclass(frozen=True)
class HeadersThenSilence:
    """Status and headers, then nothing."""

    status: int = 200

    async def play(self, request: Recorded) -> None:
        """Sends the head, waits until the client hangs up."""
        await request.connection.head(self.status, SSE if self.status == 200 else JSON)
        await request.connection.wait_gone()


@dataclass(frozen=True)
class RoleThenSilence:
    """A role chunk, which is no output, then nothing."""

    async def play(self, request: Recorded) -> None:
        """Sends the opening, waits until the client hangs up."""
        await Answer().begin(request)
        await request.connection.wait_gone()


@dataclass(frozen=True)
class CommentsThenSilence:
    """SSE comments, which are no output, then nothing."""

    comments: int = 3

    async def play(self, request: Recorded) -> None:
        """Sends the comments, waits until the client hangs up."""
        await request.connection.head(200, SSE)
        for _ in range(self.comments):
            await request.connection.chunk(b": keep-alive\n\n")
        await request.connection.wait_gone()


@dataclass(frozen=True)
class ResetBeforeHeaders:
    """Breaks the connection off without a byte."""

    after_s: float = 0.0

    async def play(self, request: Recorded) -> None:
        """Waits and resets."""
        if self.after_s:
            await pause(request, self.after_s)
        request.connection.reset()


@dataclass(frozen=True)
class CutBeforeHeaders:
    """Closes the connection in good order without a byte."""

    async def play(self, request: Recorded) -> None:
        """Closes."""
        request.connection.cut()


@dataclass(frozen=True)
class CutAfter:
    """Closes the connection after ``n`` output chunks, without the end of the chunked body."""

    n: int
    answer: Answer = field(default_factory=Answer)
    reset: bool = False
    """RST instead of FIN."""
    closing: int = 0
    """How many of the closing events (finish reasons, usage) still go out before the cut."""

    async def play(self, request: Recorded) -> None:
        """Streams so far, then cuts."""
        await self.answer.begin(request)
        await self.answer.send(request, self.answer.output(request)[: self.n])
        await self.answer.send(request, self.answer.closing(request)[: self.closing])
        if self.reset:
            request.connection.reset()
        else:
            request.connection.cut()


@dataclass(frozen=True)
class CutMidEvent:
    """Closes in the middle of the event after ``n`` output chunks."""

    n: int
    answer: Answer = field(default_factory=Answer)
    clean: bool = False
    """Ends the chunked body properly, so that only the event is incomplete."""

    async def play(self, request: Recorded) -> None:
        """Streams so far, then half an event."""
        output = self.answer.output(request)
        await self.answer.begin(request)
        await self.answer.send(request, output[: self.n])
        await request.connection.chunk(output[self.n][: len(output[self.n]) // 2])
        if self.clean:
            await request.connection.finish()
        request.connection.cut()


@dataclass(frozen=True)
class StallAfter:
    """Stops after ``n`` output chunks; goes on when the test sets ``request.go_on``."""

    n: int
    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Streams so far, then waits."""
        output = self.answer.output(request)
        await self.answer.begin(request)
        await self.answer.send(request, output[: self.n])
        await until_released(request)
        await self.answer.send(request, output[self.n :])
        for data in self.answer.closing(request):
            await request.connection.chunk(data)
        await request.connection.finish()


@dataclass(frozen=True)
class Garbage:
    """An event that is no JSON after ``n`` output chunks, then the rest as if nothing had happened."""

    n: int
    answer: Answer = field(default_factory=Answer)
    garbage: bytes = b'data: {"choices":[{"delta":{"content":oops}}]}\n\n'

    async def play(self, request: Recorded) -> None:
        """Streams with the garbage in the middle."""
        output = self.answer.output(request)
        await self.answer.begin(request)
        for data in [*output[: self.n], self.garbage, *output[self.n :], *self.answer.closing(request)]:
            await request.connection.chunk(data)
        await request.connection.finish()


@dataclass(frozen=True)
class ErrorFrame:
    """An error event in the stream; as first event, or after ``after`` output chunks."""

    after: int | None = None
    then_done: bool = True
    body: Any = None
    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Streams so far, then the error, then ``[DONE]`` as vLLM does."""
        if self.after is None:
            await request.connection.head(200, SSE)
        else:
            await self.answer.begin(request)
            await self.answer.send(request, self.answer.output(request)[: self.after])
        body = error_body("EngineCore encountered an issue.", "InternalServerError", 500)
        await request.connection.chunk(event(self.body or body))
        if self.then_done:
            await request.connection.chunk(DONE)
        await request.connection.finish()


@dataclass(frozen=True)
class ErrorIn200:
    """Status 200 with a whole JSON body that holds an error."""

    body: Any = None

    async def play(self, request: Recorded) -> None:
        """Sends it."""
        body = self.body or error_body("the engine failed", "InternalServerError", 500)
        await request.connection.whole(200, json.dumps(body).encode(), JSON)


@dataclass(frozen=True)
class NoDone:
    """A complete answer without ``[DONE]``."""

    text: str = Answer.text

    async def play(self, request: Recorded) -> None:
        """Streams it."""
        await Answer(self.text, done=False).play(request)


@dataclass(frozen=True)
class DoneWithoutFinish:
    """``[DONE]`` though no choice had its ``finish_reason``."""

    text: str = Answer.text

    async def play(self, request: Recorded) -> None:
        """Streams it."""
        await Answer(self.text, finish_sent=False).play(request)


@dataclass(frozen=True)
class DoneThenSilence:
    """A complete answer with ``[DONE]``, but the body never ends."""

    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Streams it, waits until the client hangs up."""
        await self.answer.begin(request)
        for data in [*self.answer.output(request), *self.answer.closing(request)]:
            await request.connection.chunk(data)
        await request.connection.wait_gone()


@dataclass(frozen=True)
class ClosesAfter:
    """A complete answer, then the connection closes without a ``Connection: close``, as llama.cpp does it."""

    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Streams it, then closes."""
        await self.answer.play(request)
        request.connection.cut()


@dataclass(frozen=True)
class HalfBody:
    """A JSON body cut in the middle, shorter than its ``Content-Length``."""

    status: int = 200

    async def play(self, request: Recorded) -> None:
        """Sends half of it and closes."""
        body = json.dumps(Answer().unary(request)).encode()
        await request.connection.head(self.status, JSON, length=len(body))
        await request.connection.write(body[: len(body) // 2])
        request.connection.cut()


@dataclass(frozen=True)
class SplitEvery:
    """A good answer whose bytes arrive in pieces of ``size``, cut wherever that falls."""

    size: int = 1
    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Streams in small pieces."""
        parts = [*self.answer.opening(request), *self.answer.output(request), *self.answer.closing(request)]
        data = b"".join(parts)
        await request.connection.head(200, SSE)
        for at in range(0, len(data), self.size):
            await request.connection.chunk(data[at : at + self.size])
        await request.connection.finish()


@dataclass(frozen=True)
class Empty:
    """Status 200 and an event stream without a single event."""

    async def play(self, request: Recorded) -> None:
        """Sends head and end."""
        await request.connection.head(200, SSE)
        await request.connection.finish()


@dataclass(frozen=True)
class Raw:
    """Any bytes as the answer's body, for a provider's peculiar chunks."""

    data: bytes
    content_type: str = SSE
    status: int = 200

    async def play(self, request: Recorded) -> None:
        """Sends them in one piece."""
        await request.connection.head(self.status, self.content_type)
        await request.connection.chunk(self.data)
        await request.connection.finish()


@dataclass(frozen=True)
class Events:
    """Any payloads as events, ``[DONE]`` after them."""

    payloads: tuple[Any, ...]
    done: bool = True

    async def play(self, request: Recorded) -> None:
        """Sends them one by one."""
        await request.connection.head(200, SSE)
        for payload in self.payloads:
            await request.connection.chunk(event(payload))
        if self.done:
            await request.connection.chunk(DONE)
        await request.connection.finish()


@dataclass(frozen=True)
class IgnoresStream:
    """A whole ``chat.completion`` although the request asks for a stream."""

    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Sends it."""
        await request.connection.whole(200, json.dumps(self.answer.unary(request)).encode(), JSON)


def slow_first_token(seconds: float, text: str = Answer.text) -> Answer:
    """A good answer whose first output comes that many seconds after the role chunk."""
    return Answer(text, first_token_s=seconds)


def tool_call(name: str, arguments: str) -> Answer:
    """An answer that calls one tool; ``arguments`` is JSON text."""
    return Answer(tool_calls=((name, arguments),))
