"""The doctor's HTTP client: a few requests to the ingress, never through a proxy."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

_DATA: Final = b"data:"
_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unreachable(Exception):
    """Nothing that speaks HTTP answers there; its text says why."""


class Answer(msgspec.Struct, frozen=True):
    """One answer; ``json`` is empty for a body that is no object, header names are in lower case."""

    status: int
    headers: dict[str, str]
    json: dict[str, Any]
    first_data_s: float | None = None
    """Seconds from sending to the first server-sent event, for a stream."""

    @property
    def message(self) -> str:
        """What the error object says."""
        error = self.json.get("error")
        return str(error.get("message", "")) if isinstance(error, dict) else ""


def ask(url: str, *, key: str = "", body: Mapping[str, Any] | None = None, timeout_s: float) -> Answer:
    """One request; blocks. With a body it is a POST whose answer may be a stream, which is read to its end.

    Raises:
        Unreachable: No answer.
    """
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = msgspec.json.encode(body) if body is not None else None
    sent_at = time.monotonic()
    try:
        request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 - the operator's own URL
        with _open(request, timeout_s) as response:
            first_data_s, read = None, []
            for line in response:
                if first_data_s is None and line.startswith(_DATA):
                    first_data_s = time.monotonic() - sent_at
                read.append(line)
            return Answer(response.status, _headers(response), _object(b"".join(read)), first_data_s)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(getattr(reason, "strerror", None) or str(reason) or type(error).__name__) from error


def _open(request: urllib.request.Request, timeout_s: float) -> Any:
    try:
        return _direct.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        return error  # an answer like any other


def _headers(response: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; for a stream, that of an error event if there is one."""
    for line in [body, *(part.removeprefix(_DATA) for part in body.splitlines() if b'"error"' in part)]:
        try:
            decoded = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if isinstance(decoded, dict):
            return decoded
    return {}
