"""uvicorn's HTTP protocol with the limits it lacks: a head's size, and the time it may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tierfall.errors import HeadersTooLarge, HeadTimeout, InvalidRequest, TierfallError
from tierfall_ingress.wire import error_body, error_headers, request_id

if TYPE_CHECKING:
    import asyncio

MAX_HEAD_BYTES: Final = 64 * 1024
"""Request line and headers; as much as common proxies allow."""
HEAD_TIMEOUT_S: Final = 20.0
"""From a connection's or a request's first byte to the end of its headers."""
_HEAD_END: Final = b"\r\n\r\n"


class Connection(HttpToolsProtocol):
    """One client's connection. Its own errors have the error object too."""

    _head_bytes = 0
    _in_head = True
    _tail = b""
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client connects: from now on it has to say what it wants."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts a request's head before the parser keeps any of it."""
        if self._in_head:
            seen = self._tail + data if self._tail else data
            end = seen.find(_HEAD_END)
            self._head_bytes += len(data) if end < 0 else end
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    HeadersTooLarge(f"request line and headers are larger than {MAX_HEAD_BYTES} bytes")
                )
                return
            self._tail = seen[1 - len(_HEAD_END) :]
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins on this connection."""
        if self._head_timer is None:
            self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there; what follows is the body."""
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is there; what follows is the next one's head."""
        self._in_head = True
        self._head_bytes = 0
        self._tail = b""
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are no HTTP."""
        self._refuse(InvalidRequest(f"this is not a valid HTTP/1.1 request: {msg}"))

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._refuse(HeadTimeout(f"the request's headers did not come within {HEAD_TIMEOUT_S:g} s"))

    def _refuse(self, error: TierfallError) -> None:
        """Answers outside of any request, and closes."""
        self._stop_head_timer()
        if self.transport.is_closing():
            return
        body = error_body(error)
        headers = [
            *error_headers(error),
            (b"x-request-id", request_id(None).encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + body)
        self.transport.close()
