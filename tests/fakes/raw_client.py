"""An HTTP/1.1 client that shows bytes as they came, and sends what no library would."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any, Self

TIMEOUT_S = 15.0


@dataclass
class RawAnswer:
    """One response: ``pieces`` are the chunks of its body as the server cut them."""

    status: int
    headers: list[tuple[str, str]]
    pieces: list[bytes]

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        """Decoded."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """A header's value; the test fails if there are two."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name} stands there {len(found)} times"
        return found[0] if found else None

    @property
    def events(self) -> list[str]:
        """The SSE events, without the blank lines between them; the last one must be whole."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == "", "the last event is cut off"
        return parts

    @property
    def chunks(self) -> list[Any]:
        """The JSON of the events before ``[DONE]``."""
        return [json.loads(event.removeprefix("data: ")) for event in self.events if event != "data: [DONE]"]


class RawClient:
    """One connection to ``http://127.0.0.1:port``; use as an async context manager."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # a test that was cut off has seen that already
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def chat(self, body: bytes | dict[str, Any], *headers: str) -> None:
        """A chat request with Content-Length; the connection is kept."""
        await self.send(chat_request(body, *headers))

    async def answer(self, *, head_only: bool = False) -> RawAnswer:
        """The next response, whole."""
        async with asyncio.timeout(TIMEOUT_S):
            status, headers = await self.head()
            named = dict(headers)
            if head_only:
                return RawAnswer(status, headers, [])
            if named.get("transfer-encoding") == "chunked":
                return RawAnswer(status, headers, [piece async for piece in self.pieces()])
            return RawAnswer(
                status, headers, [await self.reader.readexactly(int(named.get("content-length", "0")))]
            )

    async def head(self) -> tuple[int, list[tuple[str, str]]]:
        """A response's status and headers."""
        async with asyncio.timeout(TIMEOUT_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.partition(": ") for line in lines[1:] if line]
        return int(lines[0].split()[1]), [(name.lower(), value) for name, _, value in pairs]

    async def pieces(self) -> Any:
        """The chunks of a chunked body."""
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def piece(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(TIMEOUT_S):
            return await anext(aiter(self.pieces()), b"")

    async def closed(self) -> bytes:
        """Waits until the server closes; what came until then."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.read()


def chat_request(body: bytes | dict[str, Any], *headers: str) -> bytes:
    """The bytes of a chat request."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(raw)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def get_request(path: str, *headers: str, method: str = "GET") -> bytes:
    """The bytes of a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers]).encode() + b"\r\n\r\n"
