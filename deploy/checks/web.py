"""JSON over HTTP with the standard library, never through a proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S: Final = 120.0
"""A first answer may have to wait for a model to be loaded."""
_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unreachable(Exception):
    """Nobody answers at an address, or not with JSON; its text names both the address and the reason."""


def ask(
    url: str, headers: Mapping[str, str] | None = None, body: Any = None
) -> tuple[int, Mapping[str, str], Any]:
    """One request, a POST if there is a body; blocks.

    Returns:
        Status, headers and the JSON of the answer, whatever its status.

    Raises:
        Unreachable: There is none.
    """
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    try:
        request = urllib.request.Request(url, data=data, headers=sent)  # noqa: S310 - the operator's own URL
        with _open(request) as response:
            return response.status, response.headers, json.loads(response.read())
    except (OSError, ValueError) as error:
        raise Unreachable(f"{url}: {getattr(error, 'reason', error)}") from error


def _open(request: urllib.request.Request) -> Any:
    try:
        return _direct.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        return error  # an answer like any other
