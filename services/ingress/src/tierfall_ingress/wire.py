"""The error tree on the wire, and the headers that every answer carries. The one mapper there is."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall_ingress.entropy import entropy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from tierfall.errors import TierfallError

    Header = tuple[bytes, bytes]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON: Final = (b"content-type", b"application/json")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_encoder: Final = msgspec.json.Encoder()


def request_id(given: str | None) -> str:
    """The caller's ``x-request-id`` if it is harmless in logs and headers, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return entropy.take(16).hex()


def error_body(error: TierfallError) -> bytes:
    """OpenAI's error object, all four keys always; ``param`` and ``code`` are strings or null."""
    return _encoder.encode(
        {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    )


def error_headers(error: TierfallError) -> list[Header]:
    """What a failing answer carries beside its status."""
    headers = [JSON]
    if error.status == 401:  # noqa: PLR2004 - RFC 9110: a 401 names its scheme
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    return headers


async def respond(send: Send, status: int, headers: list[Header], body: bytes) -> None:
    """A whole answer."""
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
