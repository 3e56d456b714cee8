"""HTTP/1.1 towards backends: requests out, bytes of answers in as they arrive, connections kept or closed.

A worker spends most of its time here, so it is httptools on asyncio's own streams of bytes and nothing in
between: no cookies, no proxies, no redirects, no decompression, no timeouts but for connecting.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tierfall import files
from tierfall.errors import OutOfFiles
from tierfall.upstream.connection import ConnectFailed, Connection, ConnectionBroken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.upstream.connection import Response

DISTRUST_S: Final = 60.0
"""How long no connection to such a server is kept: a request written just then would be lost."""
_IDEMPOTENT: Final = frozenset({"GET", "HEAD"})


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
        self._idle: defaultdict[tuple[str, int, bool], deque[Connection]] = defaultdict(deque)
        self._open: set[Connection] = set()
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
            OutOfFiles: This process may open no more of them.
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

    def _take(self, url: Url) -> Connection | None:
        idle = self._idle.get((url.host, url.port, url.tls))
        while idle:
            connection = idle.pop()
            if connection.claim():
                return connection
        return None

    async def _connect(self, url: Url) -> Connection:
        loop = asyncio.get_running_loop()
        tls = self._context() if url.tls else None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, (url.host, url.port, url.tls), loop),
                    url.host,
                    url.port,
                    ssl=tls,
                )
        except TimeoutError:
            raise ConnectFailed(f"no connection within {self._connect_timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise ConnectFailed(f"TLS failed: {error.reason or error}") from error
        except OSError as error:
            if files.exhausted():  # whatever the system calls it: a name is not found either then
                raise OutOfFiles(
                    f"the worker cannot connect to its backend: all of the {files.limit()} files that it may "
                    "have open are in use"
                ) from error
            raise ConnectFailed(_reason(error)) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def opened(self, connection: Connection) -> None:
        """A connection is there."""
        self._open.add(connection)

    def gone(self, connection: Connection) -> None:
        """A connection is no more."""
        self._open.discard(connection)
        idle = self._idle.get(connection.key)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def keep(self, connection: Connection) -> asyncio.TimerHandle | None:
        """Keeps a connection for the next request; returns what will close it, or None if it is not kept."""
        loop = connection.loop
        if not self._keepalive_s or self._distrusted.get(connection.key, 0.0) > loop.time():
            return None
        self._idle[connection.key].append(connection)
        return loop.call_later(self._keepalive_s, connection.abort)

    def distrust(self, connection: Connection) -> None:
        """The server closed a kept connection right behind an answer: for a while none of its are kept."""
        self._distrusted[connection.key] = connection.loop.time() + DISTRUST_S


def _reason(error: OSError) -> str:
    """The system's words, without the addresses that asyncio puts in their place."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return error.strerror or str(error)


def _lines(headers: Mapping[str, str]) -> bytes:
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items())
