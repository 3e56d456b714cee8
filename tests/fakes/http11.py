"""A minimal HTTP/1.1 server connection that lets a test misbehave at byte level.

Shared by the fakes. It knows requests with ``Content-Length``, keep-alive and chunked answers, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}


class ClientHungUp(Exception):
    """The client closed the connection while the fake was still answering."""


@dataclass(eq=False)
class Recorded:
    """One request as it arrived; ``closed`` is set as soon as the client closes its connection."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    raw: bytes
    connection: Connection
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    closed_at: float | None = None
    """The event loop's time at which the client closed."""
    answered: bool = False
    """Whether the fake came to the end of what it meant to send."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    """Set it to let a stalled or held behaviour go on."""

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.raw)


class Connection(asyncio.Protocol):
    """One client connection; ``serve`` is called for each request, one after another."""

    def __init__(
        self, serve: Callable[[Recorded], Awaitable[None]], opened: Callable[[Connection], None]
    ) -> None:
        self._serve = serve
        self._opened = opened
        self._buffer = bytearray()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._current: Recorded | None = None
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self.gone = asyncio.Event()
        """The client's side is closed, or ours."""

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts reading requests."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, not by inheritance
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        """Keeps bytes for the request reader."""
        self._buffer += data
        self._news.set()

    def eof_received(self) -> bool:
        """The client closed its side."""
        self._hung_up()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, by whoever's doing."""
        del exc
        self._hung_up()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client caught up."""
        self._writable.set()

    def _hung_up(self) -> None:
        if self._current is not None and not self._closing and not self._current.closed.is_set():
            self._current.closed_at = asyncio.get_running_loop().time()
            self._current.closed.set()
        self.gone.set()
        self._news.set()
        self._writable.set()

    # answering

    async def write(self, data: bytes) -> None:
        """Sends bytes as they are.

        Raises:
            ClientHungUp: The client is no longer there.
        """
        await self._writable.wait()
        if self.gone.is_set() or self._transport is None:
            raise ClientHungUp
        self._transport.write(data)
        await asyncio.sleep(0)  # lets a reader in this process see each write by itself

    async def head(
        self, status: int, content_type: str, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        """Sends status and headers; chunked unless ``length`` is given."""
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Fake')}", f"Content-Type: {content_type}"]
        lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        await self.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def chunk(self, data: bytes) -> None:
        """Sends one piece of a chunked body."""
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def finish(self) -> None:
        """Ends a chunked body in good order; the connection stays usable."""
        await self.write(b"0\r\n\r\n")

    async def whole(
        self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        """Sends a complete answer."""
        await self.head(status, content_type, headers, len(body))
        await self.write(body)

    def cut(self) -> None:
        """Closes the connection after what was written (FIN)."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Breaks the connection off (RST)."""
        self._closing = True
        if self._transport is not None:
            raw = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def wait_gone(self) -> None:
        """Waits until the client closes."""
        await self.gone.wait()

    async def stop(self) -> None:
        """Breaks the connection off and waits until nothing of it runs."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # reading

    async def _run(self) -> None:
        try:
            while (request := await self._read()) is not None:
                self._current = request
                if self.gone.is_set():
                    self._hung_up()
                await self._serve(request)
                request.answered = True
                self._current = None
        except ClientHungUp:
            pass
        finally:
            self.cut()

    async def _read(self) -> Recorded | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not await self._more():
                return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        size = end + 4 + int(headers.get("content-length", "0"))
        while len(self._buffer) < size:
            if not await self._more():
                return None
        body = bytes(self._buffer[end + 4 : size])
        del self._buffer[:size]
        return Recorded(method, path, headers, body, self)

    async def _more(self) -> bool:
        if self.gone.is_set():
            return False
        self._news.clear()
        await self._news.wait()
        return not self.gone.is_set() or bool(self._buffer)
