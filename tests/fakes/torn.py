"""Answers torn at byte level: in the middle of an event, of HTTP's own framing, or at the very end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fakes.behaviour import SSE, Answer

if TYPE_CHECKING:
    from fakes.http11 import Recorded


@dataclass(frozen=True)
class NoHttp:
    """Bytes that are no HTTP response, then the end of the connection."""

    data: bytes = b"\x15\x03\x01\x00\x02\x02\x0a"
    """What a server that speaks TLS says to plain HTTP."""

    async def play(self, request: Recorded) -> None:
        """Sends them and closes."""
        await request.connection.write(self.data)
        request.connection.cut()


@dataclass(frozen=True)
class BadChunking:
    """Breaks HTTP's chunked coding after ``n`` output chunks: a size that is no number."""

    n: int
    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Streams so far, then what no HTTP client can read."""
        await self.answer.begin(request)
        await self.answer.send(request, self.answer.output(request)[: self.n])
        await request.connection.write(b"no size\r\n\r\n")
        await request.connection.wait_gone()


@dataclass(frozen=True)
class StallMidEvent:
    """Stops in the middle of the event after ``n`` output chunks, and waits until the client hangs up."""

    n: int
    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Streams so far, then half an event, then nothing."""
        output = self.answer.output(request)
        await self.answer.begin(request)
        await self.answer.send(request, output[: self.n])
        await request.connection.chunk(output[self.n][: len(output[self.n]) // 2])
        await request.connection.wait_gone()


@dataclass(frozen=True)
class TailAfter:
    """Ends its body in good order after ``n`` output chunks and a tail that belongs to no good answer."""

    n: int
    tail: bytes
    answer: Answer = field(default_factory=Answer)
    closing: int = 0
    """How many of the closing events (finish reasons, usage) come before the tail."""

    async def play(self, request: Recorded) -> None:
        """Streams so far, then the tail."""
        await self.answer.begin(request)
        await self.answer.send(request, self.answer.output(request)[: self.n])
        await self.answer.send(request, self.answer.closing(request)[: self.closing])
        await request.connection.chunk(self.tail)
        await request.connection.finish()


@dataclass(frozen=True)
class NoFinalNewline:
    """A good answer whose last event lacks the blank line behind it."""

    answer: Answer = field(default_factory=Answer)

    async def play(self, request: Recorded) -> None:
        """Streams it in one piece."""
        parts = [*self.answer.opening(request), *self.answer.output(request), *self.answer.closing(request)]
        await request.connection.head(200, SSE)
        await request.connection.chunk(b"".join(parts).rstrip(b"\n"))
        await request.connection.finish()
