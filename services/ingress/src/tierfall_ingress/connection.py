"""uvicorn's HTTP protocol with what it lacks: limits of a head, and clean ends of refused connections."""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tierfall.errors import HeadersTooLarge, HeadTimeout, InvalidRequest, TierfallError
from tierfall_ingress.host import host_problem
from tierfall_ingress.linger import LingeringTransport
from tierfall_ingress.stall import StallGuard
from tierfall_ingress.wire import error_body, error_headers, request_id

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_HEAD_BYTES: Final = 64 * 1024
"""Request line and headers; as much as common proxies allow. Also what may come in a body that is no body:
chunk extensions and trailers."""
HEAD_TIMEOUT_S: Final = 20.0
"""From a connection's or a request's first byte to the end of its headers."""
MAX_PIPELINED: Final = 8
"""Requests that may stand behind a running one before the connection is no longer read."""
STOP_GRACE_S: Final = 1.0
"""When the gateway stops: how long a request may be on its way already on a connection that looks idle."""
CLIENT: Final = "tierfall.client"
"""In each request's ASGI ``state``: its :class:`Client`."""
_HEAD_END: Final = b"\r\n\r\n"
_UPGRADE_HEADERS: Final = frozenset({b"upgrade", b"connection", b"http2-settings"})


class Client:
    """What an exchange asks of its connection that ASGI has no words for.

    Attributes:
        gone: Whether the connection is, or is being, given up: nothing is written to it any more.
        hangup: What is put here is called when the client hangs up before its answer is whole; to wait for
            ``http.disconnect`` would take a task of its own for each request.
    """

    __slots__ = ("_flow", "_transport", "gone", "hangup")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow
        self.gone = False
        self.hangup: list[Callable[[], object]] = []

    def write(self, data: bytes) -> bool:
        """More of a body whose head and first part were sent by ASGI; whether there is room for the next.

        ASGI's ``send`` is a coroutine, so each token would have to wake its exchange's task.
        """
        if data and not self.gone:  # an empty chunk would be the body's end
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._flow.write_paused

    async def room(self) -> None:
        """Waits until the client has taken enough for more to be written, or is gone."""
        await self._flow.drain()


class Connection(HttpToolsProtocol):
    """One client's connection. Its own errors have the error object too."""

    _lingering: LingeringTransport
    _stall: StallGuard
    _cycles: deque[RequestResponseCycle]
    _head_bytes = 0
    _in_head = True
    _tail = b""
    _had_body = False
    _empty_bytes = 0
    _refused = False
    _head_timer: asyncio.TimerHandle | None = None
    _stopping = False
    _crowded = False
    _idle_since = 0.0
    _fault = ""
    """What is wrong with a head that the parser takes for a good one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client connects: from now on it has to say what it wants."""
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a token must not wait for the next
        self._stall = StallGuard(self.loop, transport)
        self._cycles = deque()
        self._lingering = LingeringTransport(transport, self._is_unread)
        room, others = self.server_state.room, self.connections  # type: ignore[attr-defined]  # of our own kind
        crowded = room.make(sock.fileno(), others, self.loop.time()) if sock is not None else None
        super().connection_made(self._lingering)
        self._idle_since = self.loop.time()
        self._crowded = crowded is not None
        if crowded is not None:
            self._refuse(crowded)
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; also for a request that has others pipelined behind it."""
        self._stop_head_timer()
        self._stall.drained()
        self._lingering.lost()
        self.server_state.room.gone(self)  # type: ignore[attr-defined]  # of our own kind
        for cycle in self._open_cycles():
            for listener in _cut_off(cycle).hangup:
                listener()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what the parser might keep before the parser has it."""
        if self._refused or self._lingering.lingering:
            return
        self._unset_keepalive_if_required()
        if self._in_head and not self._head_fits(data):
            self._refuse(HeadersTooLarge(f"request line and headers are larger than {MAX_HEAD_BYTES} bytes"))
            return
        was_body, self._had_body = not self._in_head, False
        self._feed(data)
        if was_body and not self._in_head and not self._body_comes(len(data)):
            self._refuse(
                HeadersTooLarge(f"chunk extensions or trailers are larger than {MAX_HEAD_BYTES} bytes")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers are dropped, nothing here reads them."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; what follows is the body."""
        if self.parser.should_upgrade():
            return  # the parser stops here, and the request begins anew without the wish
        hosts = [value for name, value in self.headers if name == b"host"]
        self._fault = host_problem(self.parser.get_http_version(), hosts, self.url)
        if self._fault:
            raise ValueError(self._fault)  # stops the parser
        self.scope["state"][CLIENT] = Client(self.transport, self.flow)
        super().on_headers_complete()
        self._in_head = False
        self._empty_bytes = 0
        self._stop_head_timer()
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()  # they end in order
        self._cycles.append(self.cycle)
        if self._stopping:
            self.cycle.keep_alive = False
        if 0 < len(self.pipeline) <= MAX_PIPELINED:
            self.flow.resume_reading()  # or nobody would notice that the client hangs up

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._had_body = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there; what follows is the next one's head."""
        if self.parser.should_upgrade():
            return
        self._in_head = True
        self._head_bytes = 0
        self._tail = b""
        super().on_message_complete()
        if len(self.pipeline) <= MAX_PIPELINED:
            self.flow.resume_reading()  # a large body paused it: the client's hang-up would not be seen

    def pause_writing(self) -> None:
        """The client reads slower than it is written to."""
        super().pause_writing()
        self._stall.full()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._stall.drained()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """An answer is whole; the next request on this connection may come or not."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    @property
    def idle_since(self) -> float | None:
        """Loop time since when nothing is asked here; None while something is."""
        if self._open_cycles() or self._head_bytes or self._refused or self.transport.is_closing():
            return None
        return self._idle_since

    def give_way(self) -> None:
        """Closes an idle connection, as a server may at any time, for the sake of another one."""
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self.transport.close()

    def shutdown(self) -> None:
        """The gateway stops: the request under way is the last one here, or the one that is on its way.

        A client cannot know that its connection is about to be closed. What it has sent by then would be lost
        without an answer, and it could not tell whether it was acted on.
        """
        self._stopping = True
        if self._open_cycles():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(STOP_GRACE_S, self._stop_idle)

    def _is_unread(self) -> bool:
        """Whether the client may still be sending; where files are short its connection goes all the same."""
        return not self._crowded and (self._refused or not self._in_head)

    def _stop_idle(self) -> None:
        if not self._open_cycles() and not self._head_bytes:
            self.transport.close()

    def _feed(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left and not self._refused:
                try:
                    self.parser.feed_data(left)
                except httptools.HttpParserUpgrade as upgrade:
                    left = left[upgrade.args[0] :]
                    self._ignore_upgrade()
                else:
                    return
        except httptools.HttpParserError:
            self._refuse(InvalidRequest(self._fault or "this is not a valid HTTP/1.1 request"))

    def _ignore_upgrade(self) -> None:
        """Reads the head as if it had not asked for another protocol (RFC 9110, section 7.8).

        Java's HTTP client asks for HTTP/2 with its first request, whose body follows all the same. The parser
        has stopped behind the head; a new one takes its place.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(InvalidRequest("this is no proxy: CONNECT is not supported"))
            return
        kept = [(name, value) for name, value in self.headers if name not in _UPGRADE_HEADERS]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            kept.append((b"connection", b"close"))
        version = self.parser.get_http_version().encode()
        head = method + b" " + self.url + b" HTTP/" + version + b"\r\n"
        head += b"".join(name + b": " + value + b"\r\n" for name, value in kept)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets its own
        self.parser.feed_data(head + b"\r\n")

    def _head_fits(self, data: bytes) -> bool:
        if self._head_timer is None:
            self._expect_head()
        seen = self._tail + data
        end = seen.find(_HEAD_END)
        self._head_bytes += len(data) if end < 0 else end
        self._tail = seen[1 - len(_HEAD_END) :]
        return self._head_bytes <= MAX_HEAD_BYTES

    def _body_comes(self, size: int) -> bool:
        self._empty_bytes = 0 if self._had_body else self._empty_bytes + size
        return self._empty_bytes <= MAX_HEAD_BYTES

    def _open_cycles(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if not self._head_bytes and not self._open_cycles():
            self.transport.close()  # nothing was asked, so nothing is answered
        else:
            self._refuse(HeadTimeout(f"the request's headers did not come within {HEAD_TIMEOUT_S:g} s"))

    def _refuse(self, error: TierfallError) -> None:
        """Reads no further; answers outside of any request, unless an answer is under way, and closes."""
        self._stop_head_timer()
        self._refused = True
        self.pipeline.clear()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        running = next(iter(self._open_cycles()), None)
        if running is not None and not running.more_body:
            running.keep_alive = False  # its answer is not to be spoilt: the connection ends with it
            return
        if running is not None:
            _cut_off(running)
        if running is None or not running.response_started:
            self.transport.write(_alone(error))
        self.transport.close()


def _cut_off(cycle: RequestResponseCycle) -> Client:
    """Nothing of this answer is written any more."""
    client: Client = cycle.scope["state"][CLIENT]
    client.gone = cycle.disconnected = True
    cycle.message_event.set()
    return client


def _alone(error: TierfallError) -> bytes:
    """A whole response of its own."""
    body = error_body(error)
    headers = [
        *error_headers(error),
        (b"x-request-id", request_id(None).encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return STATUS_LINE[error.status] + head + b"\r\n" + body
