"""One HTTP/1.1 connection to a backend, and the answer that comes over it."""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final, cast

import httptools

if TYPE_CHECKING:
    from tierfall.upstream.http import HttpPool

MAX_HEAD_BYTES: Final = 64 * 1024
HIGH_WATER_BYTES: Final = 512 * 1024
"""Unread bytes above which a connection is no longer read from: a slow client slows its backend."""
HASTY_CLOSE_S: Final = 0.25
"""A server that closes so soon behind an answer, unannounced, does so behind each of them: llama.cpp's."""
_INFORMATIONAL: Final = range(100, 200)


class HttpError(Exception):
    """The exchange failed; the message says how."""


class ConnectFailed(HttpError):
    """No connection could be made, so the backend has not seen the request."""


class ConnectionBroken(HttpError):
    """The connection ended, or sent what is not HTTP, before the answer was whole."""


class Response:
    """An answer whose head is there and whose body is coming.

    Attributes:
        status: HTTP status.
        headers: Names in lower case; of a repeated one the last.
        whole: Whether the body's end has arrived (what came before it may still be unread).
    """

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self._connection = connection
        self._chunks: list[bytes] = []
        self._unread = 0
        self._broken_by = ""
        self._waiter: asyncio.Future[None] | None = None
        self.status = status
        self.headers = headers
        self.whole = False

    async def read(self) -> bytes:
        """All that has arrived, waiting for some if there is none; empty at the end of the body.

        Raises:
            ConnectionBroken: The connection ended first; whatever came before has been read.
        """
        while not self._chunks:
            if self.whole:
                return b""
            if self._broken_by:
                raise ConnectionBroken(self._broken_by)
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self._unread > HIGH_WATER_BYTES:
            self._connection.resume()
        self._unread = 0
        return data

    def close(self) -> None:
        """Gives up what is missing of the body: the connection is closed at once. Else does nothing."""
        if not self.whole:
            self._connection.abort()

    def feed(self, data: bytes) -> bool:
        """More of the body; returns whether to go on reading."""
        self._chunks.append(data)
        self._unread += len(data)
        self._wake()
        return self._unread <= HIGH_WATER_BYTES

    def end(self, broken_by: str = "") -> None:
        """The body is whole, or never will be: then ``broken_by`` says why."""
        self.whole = not broken_by
        self._broken_by = broken_by
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection: one exchange at a time, httptools' callbacks."""

    def __init__(self, pool: HttpPool, key: tuple[str, int, bool], loop: asyncio.AbstractEventLoop) -> None:
        self.loop = (
            loop  # Python 3.11 asks the system for the process's id each time that it is asked for one
        )
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._head: asyncio.Future[Response] | None = None
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._response: Response | None = None
        self._until_close = False
        self._answered_at: float | None = None
        self._given_up = False
        self.lost = asyncio.Event()
        self.key = key
        self.heard = False
        """Whether a byte of the present answer has come."""

    async def exchange(self, message: bytes) -> Response:
        """Sends a request; returns its answer once the head is there. Cancelled, it closes the connection."""
        self._head = self.loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._response = None
        self._head_bytes = 0
        self.heard = False
        if self._transport is None or self._transport.is_closing():
            raise ConnectionBroken("the connection was closed")
        self._transport.write(message)
        try:
            return await self._head
        except asyncio.CancelledError:
            self.abort()
            raise

    def claim(self) -> bool:
        """Takes the connection out of its idleness; False if it is closed, or about to be."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._transport is None or self._transport.is_closing():
            return False
        if _readable(self._transport):  # its end, or bytes that nobody asked for
            self._note_close()
            self.abort()
            return False
        return True

    def _note_close(self) -> None:
        """The server closed a kept connection, or swallowed what was written to it."""
        kept_at = self._answered_at
        if kept_at is not None and self.loop.time() - kept_at < HASTY_CLOSE_S:
            self._pool.distrust(self)

    def abort(self) -> None:
        """Closes at once."""
        self._given_up = True
        if self._expiry is not None:
            self._expiry.cancel()
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """The reader has caught up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, though not by inheritance
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer, or of nothing that was asked for."""
        if self._parser is None:
            self.abort()
            return
        self.heard = True
        if self._response is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
        else:
            if self._response is None and self._head_bytes > MAX_HEAD_BYTES:
                self._fail(f"the answer's head is larger than {MAX_HEAD_BYTES} bytes")

    def eof_received(self) -> bool:
        """The server has sent all it has."""
        if self._until_close and self._response is not None:
            self._response.end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is no more."""
        self.lost.set()
        self._pool.gone(self)
        if not self._given_up and (self._parser is None or not self.heard):
            self._note_close()
        self._fail(str(exc or "") or "closed before the answer was whole")

    # -- httptools' callbacks

    def on_message_begin(self) -> None:
        """A head begins."""
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers are dropped: they must not pass for headers (RFC 9110, section 6.5.1)."""
        if self._response is None:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is there."""
        assert self._parser is not None  # noqa: S101 - it calls this
        status = self._parser.get_status_code()
        if status in _INFORMATIONAL:
            return
        sized = "content-length" in self._headers or "chunked" in self._headers.get("transfer-encoding", "")
        self._until_close = not sized
        self._response = Response(self, status, self._headers)
        if (head := self._take_head()) is not None:
            head.set_result(self._response)

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        if self._response is not None and not self._response.feed(body) and self._transport is not None:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole."""
        response, parser = self._response, self._parser
        if response is None or parser is None:
            return  # an informational answer; the real one follows
        self._parser = None
        self._response = None
        response.end()
        self.resume()  # what is unread is whole: it must not hold up the next answer
        self._answered_at = self.loop.time()
        self._expiry = self._pool.keep(self) if parser.should_keep_alive() else None
        if self._expiry is None:
            self.abort()

    def _take_head(self) -> asyncio.Future[Response] | None:
        """What waits for the head, once: kept, its error would hold the request by the traceback."""
        head, self._head = self._head, None
        return None if head is None or head.done() else head

    def _fail(self, reason: str) -> None:
        self._parser = None
        if (head := self._take_head()) is not None:
            head.set_exception(ConnectionBroken(reason))
        if self._response is not None:
            if not self._response.whole:
                self._response.end(reason)
            self._response = None
        self.abort()


def _readable(transport: asyncio.Transport) -> bool:
    """Whether something has arrived that the event loop has not told of yet."""
    poll = select.poll()  # select() itself knows no descriptor above 1023
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
