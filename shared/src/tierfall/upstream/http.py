"""HTTP/1.1 towards backends: requests out, bytes of answers in as they arrive, connections kept or closed.

A worker spends most of its time here, so it is httptools on asyncio's own streams of bytes and nothing in
between: no cookies, no proxies, no redirects, no decompression, no timeouts but for connecting.
"""

from __future__ import annotations

import asyncio
import os
import select
import ssl
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import httptools

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEAD_BYTES: Final = 64 * 1024
HIGH_WATER_BYTES: Final = 512 * 1024
"""Unread bytes above which a connection is no longer read from: a slow client slows its backend."""
HASTY_CLOSE_S: Final = 0.25
"""A server that closes so soon behind an answer, unannounced, does so behind each of them: llama.cpp's."""
DISTRUST_S: Final = 60.0
"""How long no connection to such a server is kept: a request written just then would be lost."""
_IDEMPOTENT: Final = frozenset({"GET", "HEAD"})
_INFORMATIONAL: Final = range(100, 200)


class HttpError(Exception):
    """The exchange failed; the message says how."""


class ConnectFailed(HttpError):
    """No connection could be made, so the backend has not seen the request."""


class ConnectionBroken(HttpError):
    """The connection ended, or sent what is not HTTP, before the answer was whole."""


class Url:
    """A base address, split once.

    Raises:
        ValueError: It is not ``http://`` or ``https://`` with a host.
    """

    def __init__(self, text: str) -> None:
        parts = urlsplit(text)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"not an http:// or https:// address: {text!r}")
        self.host = parts.hostname
        self.tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = (f"{host}:{parts.port}" if parts.port else host).encode("idna")
        self.target = (parts.path or "/").encode() + (b"?" + parts.query.encode() if parts.query else b"")


class HttpPool:
    """Connections to any number of hosts.

    Args:
        headers: Sent with every request.
        connect_timeout_s: For TCP and TLS together.
        keepalive_s: How long an idle connection is kept for the next request to its host.
    """

    def __init__(self, headers: Mapping[str, str], *, connect_timeout_s: float, keepalive_s: float) -> None:
        self._headers = _lines(headers)
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s = keepalive_s
        self._tls: ssl.SSLContext | None = None
        self._idle: defaultdict[tuple[str, int, bool], deque[_Connection]] = defaultdict(deque)
        self._open: set[_Connection] = set()
        self._distrusted: dict[tuple[str, int, bool], float] = {}
        """Servers whose connections are not kept, and until when (loop time)."""

    async def request(
        self, method: str, url: Url, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        """Sends a request and waits for the head of its answer.

        Servers close idle connections, and some close without saying so: a kept connection is looked at
        before it is used. One that ends all the same, before a byte of an answer came, is replaced if the
        method is idempotent. Any other request may have been acted on, so to send it again is up to the
        caller (RFC 9110, section 9.2.2).

        Raises:
            ConnectFailed: There is no connection to be had.
            ConnectionBroken: It broke before the answer's head.
        """
        message = self._message(method, url, headers, body)
        kept = self._take(url)
        if kept is not None:
            try:
                return await kept.exchange(message)
            except ConnectionBroken:
                if kept.heard or method not in _IDEMPOTENT:
                    raise
        return await (await self._connect(url)).exchange(message)

    async def close(self) -> None:
        """Closes every connection, those in use too, and waits until they are gone."""
        for connection in list(self._open):
            connection.abort()
        await asyncio.gather(*(connection.lost.wait() for connection in self._open))

    def _message(self, method: str, url: Url, headers: Mapping[str, str] | None, body: bytes | None) -> bytes:
        length = b"" if body is None else b"content-length: %d\r\n" % len(body)
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b%b\r\n%b" % (
            method.encode(),
            url.target,
            url.authority,
            self._headers,
            _lines(headers or {}),
            length,
            body or b"",
        )

    def _take(self, url: Url) -> _Connection | None:
        idle = self._idle.get((url.host, url.port, url.tls))
        while idle:
            connection = idle.pop()
            if connection.claim():
                return connection
        return None

    async def _connect(self, url: Url) -> _Connection:
        loop = asyncio.get_running_loop()
        tls = self._context() if url.tls else None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, (url.host, url.port, url.tls), loop),
                    url.host,
                    url.port,
                    ssl=tls,
                )
        except TimeoutError:
            raise ConnectFailed(f"no connection within {self._connect_timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise ConnectFailed(f"TLS failed: {error.reason or error}") from error
        except OSError as error:
            raise ConnectFailed(_reason(error)) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def opened(self, connection: _Connection) -> None:
        """A connection is there."""
        self._open.add(connection)

    def gone(self, connection: _Connection) -> None:
        """A connection is no more."""
        self._open.discard(connection)
        idle = self._idle.get(connection.key)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def keep(self, connection: _Connection) -> asyncio.TimerHandle | None:
        """Keeps a connection for the next request; returns what will close it, or None if it is not kept."""
        loop = connection.loop
        if not self._keepalive_s or self._distrusted.get(connection.key, 0.0) > loop.time():
            return None
        self._idle[connection.key].append(connection)
        return loop.call_later(self._keepalive_s, connection.abort)

    def distrust(self, connection: _Connection) -> None:
        """The server closed a kept connection right behind an answer: for a while none of its are kept."""
        self._distrusted[connection.key] = connection.loop.time() + DISTRUST_S


class Response:
    """An answer whose head is there and whose body is coming.

    Attributes:
        status: HTTP status.
        headers: Names in lower case; of a repeated one the last.
        whole: Whether the body's end has arrived (what came before it may still be unread).
    """

    def __init__(self, connection: _Connection, status: int, headers: dict[str, str]) -> None:
        self._connection = connection
        self._chunks: list[bytes] = []
        self._unread = 0
        self._error: ConnectionBroken | None = None
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
            if self._error is not None:
                raise self._error
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

    def end(self, error: ConnectionBroken | None = None) -> None:
        """The body is whole, or never will be."""
        self.whole = error is None
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
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
        self._fail(str(exc) if exc is not None else "closed before the answer was whole")

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
        if self._head is not None and not self._head.done():
            self._head.set_result(self._response)

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

    def _fail(self, reason: str) -> None:
        self._parser = None
        error = ConnectionBroken(reason)
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
        if self._response is not None:
            if not self._response.whole:
                self._response.end(error)
            self._response = None
        self.abort()


def _readable(transport: asyncio.Transport) -> bool:
    """Whether something has arrived that the event loop has not told of yet."""
    poll = select.poll()  # select() itself knows no descriptor above 1023
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _reason(error: OSError) -> str:
    """The system's words, without the addresses that asyncio puts in their place."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return error.strerror or str(error)


def _lines(headers: Mapping[str, str]) -> bytes:
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items())
