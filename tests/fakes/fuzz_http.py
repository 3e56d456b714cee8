"""The HTTP client's connection fed by hand: one answer, cut anywhere, must mean the same."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tierfall.upstream.connection import Connection, ConnectionBroken, Response
from tierfall.upstream.http import HttpPool

if TYPE_CHECKING:
    from collections.abc import Sequence


class Outcome(NamedTuple):
    """What a request came to."""

    status: int | None
    """``None`` when there was no head."""
    headers: dict[str, str]
    body: bytes
    whole: bool


class Wire(asyncio.Transport):
    """A transport without a socket: it remembers whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The request; nobody reads it."""

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closed

    def abort(self) -> None:
        """Closes it."""
        self.closed = True

    def pause_reading(self) -> None:
        """There is nothing to pause: the bytes are at hand."""

    def resume_reading(self) -> None:
        """As above."""


async def outcome_of(pieces: Sequence[bytes]) -> Outcome:
    """One exchange whose answer comes in these pieces, and then the end of the connection."""
    pool = HttpPool({}, connect_timeout_s=1, keepalive_s=60)
    connection, wire = Connection(pool, ("h", 80, False), asyncio.get_running_loop()), Wire()
    connection.connection_made(wire)
    asking = asyncio.ensure_future(connection.exchange(b"GET / HTTP/1.1\r\n\r\n"))
    await asyncio.sleep(0)
    for piece in pieces:
        if wire.closed:
            break
        connection.data_received(piece)
    if not wire.closed:
        connection.eof_received()
    connection.connection_lost(None)
    (head,) = await asyncio.gather(asking, return_exceptions=True)
    if isinstance(head, ConnectionBroken):
        return Outcome(None, {}, b"", whole=False)
    return await _read(cast("Any", head))


async def _read(response: Response | BaseException) -> Outcome:
    if isinstance(response, BaseException):
        raise response
    body = b""
    try:
        while data := await response.read():
            body += data
    except ConnectionBroken:
        return Outcome(response.status, response.headers, body, whole=False)
    return Outcome(response.status, response.headers, body, whole=True)
