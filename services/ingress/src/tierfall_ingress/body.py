"""Reading a request body, refusing it as early as it can be known to be wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tierfall.errors import BodyTimeout, BodyTooLarge, ClientGone, InvalidRequest, UnsupportedMediaType
from tierfall.timelimit import TimeLimit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from tierfall_ingress.body_memory import BodyShare

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

BODY_STALL_S: Final = 30.0
"""How long a client may be silent in the middle of its body."""
BODY_PACE_BYTES_PER_S: Final = 1024
"""What a client has to send on average beyond that: a body that drips is no better than one that stalls."""
SEND_JSON: Final = "send application/json (curl: -H 'Content-Type: application/json')"
"""By itself curl calls a body a form."""


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limit: int, share: BodyShare) -> bytes:
    """The whole body of a JSON request, which ``share`` counts as it comes.

    Raises:
        UnsupportedMediaType: It is not JSON, or compressed.
        BodyTooLarge: It says or turns out to be above ``limit`` bytes.
        BodyTimeout: The client stopped sending.
        GatewayBusy: Together with all other bodies it is too much.
        ClientGone: The client hung up.
    """
    _check_type(headers)
    _check_length(headers.get(b"content-length"), limit)
    loop = asyncio.get_running_loop()
    began = loop.time()
    message = await _next(receive, loop, BODY_STALL_S)
    body: bytes = message.get("body", b"")
    _check_size(len(body), limit)
    share.take(len(body))
    if not message.get("more_body"):
        return body
    parts = bytearray(body)
    while message.get("more_body"):
        earned = BODY_STALL_S + len(parts) / BODY_PACE_BYTES_PER_S
        left = began + earned - loop.time()
        message = await _next(receive, loop, min(left, BODY_STALL_S))
        part: bytes = message.get("body", b"")
        _check_size(len(parts) + len(part), limit)
        share.take(len(part))
        parts += part
    return bytes(parts)


def _check_type(headers: Mapping[bytes, bytes]) -> None:
    # A page may send a body without a type, or with that of a form or a text, unasked (Fetch standard,
    # "CORS-safelisted"): only a type of its own makes a browser ask first.
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if not kind:
        raise UnsupportedMediaType(f"the request has no Content-Type; {SEND_JSON}")
    if kind != b"application/json" and not kind.endswith(b"+json"):
        shown = kind.decode("latin-1")
        raise UnsupportedMediaType(f"the body's Content-Type is {shown!r}; {SEND_JSON}")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise UnsupportedMediaType("compressed bodies are not supported; send it without Content-Encoding")


def _check_length(length: bytes | None, limit: int) -> None:
    if length is None:
        return
    if not length.isdigit():
        raise InvalidRequest("the Content-Length header is not a number")
    _check_size(int(length[: len(str(limit)) + 1]), limit)  # a bomb of digits is too large by its first ones


async def _next(
    receive: Receive, loop: asyncio.AbstractEventLoop, patience_s: float
) -> MutableMapping[str, Any]:
    try:
        with TimeLimit(loop, patience_s):
            message = await receive()
    except TimeoutError:
        raise BodyTimeout(
            f"the body stopped coming for {BODY_STALL_S:g} s, or came slower than {BODY_PACE_BYTES_PER_S} B/s"
        ) from None
    if message["type"] == "http.disconnect":
        raise ClientGone("the client hung up while sending its body")
    return message


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise BodyTooLarge(f"the body is larger than this gateway takes ({limit} bytes; server.max_body)")
