"""A fake engine with OpenAI's API, fast enough to stand behind any gateway: ``python -m bench.backend PORT``.

What it does with a chat depends on the model, the only field that every gateway passes on unchanged:

======================  ==================================================================================
``gpt-4o-mini``         Answers five tokens at once, as one body or as a stream of seven chunks.
``gpt-4o``              Streams ``max_tokens`` tokens, 50 each second, each in a chunk and a write of its own.
``gpt-4.1-mini``        Answers 503.
``gpt-4.1``             Accepts the request and never answers.
======================  ==================================================================================

The names are real ones because some gateways refuse names that are not in their catalogue. Paced tokens leave
on a schedule of their own: when one is late, the next ones are not, as with an engine that does not wait for
its readers.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import Any, Final

import httptools
import msgspec
import uvloop

AT_ONCE: Final = "gpt-4o-mini"
PACED: Final = "gpt-4o"
REFUSED: Final = "gpt-4.1-mini"
SILENT: Final = "gpt-4.1"
MODELS: Final = (AT_ONCE, PACED, REFUSED, SILENT)

TOKENS_PER_S: Final = 50
TOKENS: Final = 16
"""Of a paced answer whose length is not asked for."""
LANES: Final = 10
"""Streams of one lane get their tokens in the same turn of the loop, as in an engine's batch."""
LANE_S: Final = 1 / TOKENS_PER_S / LANES
TOKEN: Final = b'" token'
"""How every token of a paced answer begins in its chunk; the load generator counts these."""

_WORDS: Final = ("Hello", " from", " the", " backend", ".")
_ENDED: Final = b"data: [DONE]\n\n"
_LAST: Final = b"0\r\n\r\n"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class StreamOptions(msgspec.Struct):
    """Of a streaming request."""

    include_usage: bool = False


class Chat(msgspec.Struct):
    """What the engine reads of a request."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    """The newer name; some gateways put it in the older one's place."""

    @property
    def tokens(self) -> int:
        """How long a paced answer is to be."""
        return self.max_tokens or self.max_completion_tokens or TOKENS

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _sse([{"index": 0, "delta": delta, "finish_reason": finish_reason}])


def _usage(completion_tokens: int) -> dict[str, int]:
    prompt = 5
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
    }


def _sse(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": PACED,
        "choices": choices,
    }
    return b"data: " + msgspec.json.encode(chunk | ({"usage": usage} if usage else {})) + b"\n\n"


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _body(status: bytes, document: object) -> bytes:
    body = msgspec.json.encode(document)
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


def _whole_answer() -> bytes:
    message = {"role": "assistant", "content": "".join(_WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return _body(
        b"200 OK",
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1,
            "model": AT_ONCE,
            "choices": [choice],
            "usage": _usage(len(_WORDS)),
        },
    )


def _streamed(usage: bytes = b"") -> bytes:
    words = b"".join(_event({"content": word}) for word in _WORDS)
    return _STREAM_HEAD + _http_chunk(_ROLE + words + _STOP + usage + _ENDED) + _LAST


def _paced_end(tokens: int | None) -> bytes:
    usage = b"" if tokens is None else _sse([], _usage(tokens))
    return _http_chunk(_STOP + usage + _ENDED) + _LAST


_ROLE: Final = _event({"role": "assistant", "content": ""})
_STOP: Final = _event({}, "stop")
_WHOLE: Final = _whole_answer()
_STREAMED: Final = {False: _streamed(), True: _streamed(_sse([], _usage(len(_WORDS))))}
_PACED_HEAD: Final = _STREAM_HEAD + _http_chunk(_ROLE)
_PACED_TOKENS: Final = tuple(_http_chunk(_event({"content": f" token{digit}"})) for digit in range(10))
"""They differ: LiteLLM takes a hundred equal ones for an engine that hangs."""
_HEALTHY: Final = _body(
    b"200 OK",
    {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "vllm"} for name in MODELS]},
)
_UNAVAILABLE: Final = _body(
    b"503 Service Unavailable", {"error": {"message": "overloaded", "type": "server_error", "code": None}}
)


class Stream:
    """One paced answer on its way."""

    def __init__(self, transport: asyncio.WriteTransport, chat: Chat) -> None:
        self._transport = transport
        self._left = chat.tokens
        self._end = _paced_end(chat.tokens if chat.wants_usage else None)
        transport.write(_PACED_HEAD)

    def step(self) -> bool:
        """Sends the next token, or the end; returns whether there is more to come."""
        if self._transport.is_closing():
            return False
        if self._left == 0:
            self._transport.write(self._end)
            return False
        self._left -= 1
        self._transport.write(_PACED_TOKENS[self._left % len(_PACED_TOKENS)])
        return True


class Pace:
    """Gives each stream its token every 20 ms; one timer for all of them."""

    def __init__(self) -> None:
        self._lanes: deque[list[Stream]] = deque([] for _ in range(LANES))
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Stream) -> None:
        """The first token comes 20 ms from now, to within a lane's 2 ms."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._due = loop.time() + LANE_S
            self._timer = loop.call_at(self._due, self._turn)
        self._lanes[-1].append(stream)

    def _turn(self) -> None:
        """Serves the lanes that are due; the schedule does not move when the loop was late."""
        loop = asyncio.get_running_loop()
        while self._due <= loop.time():
            self._lanes[0] = [stream for stream in self._lanes[0] if stream.step()]
            self._lanes.rotate(-1)
            self._due += LANE_S
        self._timer = loop.call_at(self._due, self._turn) if any(self._lanes) else None


class Connection(asyncio.Protocol):
    """One connection of a gateway."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of the protocol."""
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # TCP has no other

    def data_received(self, data: bytes) -> None:
        """Part of the protocol."""
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Part of the parser's callbacks."""
        self._is_chat = url.endswith(b"/chat/completions")

    def on_body(self, data: bytes) -> None:
        """Part of the parser's callbacks."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Answers: everything that is no chat (health, models, spans) with the list of models."""
        body = b"".join(self._body)
        self._body.clear()
        if self._is_chat:
            self._answer(msgspec.json.decode(body, type=Chat))
        else:
            self._transport.write(_HEALTHY)

    def _answer(self, chat: Chat) -> None:
        if chat.model == REFUSED:
            self._transport.write(_UNAVAILABLE)
        elif chat.model == PACED:
            self._pace.add(Stream(self._transport, chat))
        elif chat.model == AT_ONCE:
            self._transport.write(_STREAMED[chat.wants_usage] if chat.stream else _WHOLE)


async def serve(port: int) -> None:
    """Listens on loopback until the process ends."""
    pace = Pace()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pace), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
