"""What a provider says when it refuses or fails, in whatever form it says it."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

MAX_QUOTED_CHARS: Final = 1000
"""How much of a provider's own words travels on: enough for every known message, not for a HTML page."""
_DELAY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)s")
_STATUS: Final = re.compile(r"[45][0-9]{2}")


class Complaint(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's error, whatever its shape was.

    Attributes:
        message: Its words, cut to :data:`MAX_QUOTED_CHARS`.
        type: Its ``type``, or gRPC status word (``RESOURCE_EXHAUSTED``).
        code: Its ``code`` as text; ``None`` when that only repeats the HTTP status.
        param: The request field that it names.
        status: The HTTP status that it names itself (vLLM and Google put it into ``code``).
        retry_after: Seconds, from Google's ``RetryInfo``.
        details: Words of its machine-readable details: Google's reasons and quota ids, pydantic's types.
    """

    message: str = ""
    type: str = ""
    code: str | None = None
    param: str | None = None
    status: int | None = None
    retry_after: float | None = None
    details: frozenset[str] = frozenset()

    @classmethod
    def of_body(cls, body: bytes) -> Complaint:
        """Reads an error answer's body; bytes that are no JSON are quoted as they are."""
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return cls(message=body.decode("utf-8", "replace").strip()[:MAX_QUOTED_CHARS])
        return cls.of(decoded)

    @classmethod
    def of(cls, decoded: Any) -> Complaint:
        """Reads decoded JSON.

        Known shapes: OpenAI's ``{"error": {...}}``, the same in a list (Google), ``{"error": "text"}``
        (Ollama and others), the bare object (older vLLM, Mistral), FastAPI's ``{"detail": ...}`` and
        Mistral's ``{"message": {"detail": [...]}}``.
        """
        if isinstance(decoded, list) and decoded:
            decoded = decoded[0]
        if isinstance(decoded, dict) and decoded.get("error"):
            decoded = decoded["error"]
        if isinstance(decoded, str):
            return cls(message=decoded[:MAX_QUOTED_CHARS])
        if not isinstance(decoded, dict):
            return cls()
        message = decoded.get("message") or decoded.get("detail") or ""
        if isinstance(message, dict):
            message = message.get("detail") or message.get("message") or ""
        if isinstance(message, list):
            return cls._of_validation(message, decoded)
        details = decoded.get("details")
        status, code = _status_and_code(decoded.get("code"))
        return cls(
            message=str(message)[:MAX_QUOTED_CHARS],
            type=_text(decoded.get("type")) or _text(decoded.get("status")),
            code=code,
            param=_text(decoded.get("param")) or None,
            status=status,
            retry_after=_retry_delay(details),
            details=frozenset(_words(details)),
        )

    @classmethod
    def _of_validation(cls, found: list[Any], outer: dict[str, Any]) -> Complaint:
        """Pydantic's list of ``{type, loc, msg}``; the first one is reported."""
        first = found[0] if found and isinstance(found[0], dict) else {}
        place = first.get("loc")
        where = [part for part in place if part != "body"] if isinstance(place, list) else []
        param = _path(where)
        said = _text(first.get("msg")) or "the request is not valid"
        return cls(
            message=(f"{param}: {said}" if param else said)[:MAX_QUOTED_CHARS],
            type=_text(outer.get("type")),
            code=_status_and_code(outer.get("code"))[1],
            param=param or None,
            details=frozenset({_text(first.get("type"))}),
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _status_and_code(code: Any) -> tuple[int | None, str | None]:
    """An integer code between 400 and 599 is an HTTP status; any other code is text."""
    if isinstance(code, bool) or code is None:
        return None, None
    text = str(code)
    return (int(text), None) if _STATUS.fullmatch(text) else (None, text or None)


def _path(parts: list[Any]) -> str:
    """``["messages", 3, "name"]`` in OpenAI's notation: ``messages[3].name``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _retry_delay(details: Any) -> float | None:
    """Google's ``retryDelay``, such as ``"35s"``, in seconds."""
    for item in details if isinstance(details, list) else ():
        delay = _text(item.get("retryDelay")) if isinstance(item, dict) else ""
        if match := _DELAY.fullmatch(delay):
            return float(match.group(1))
    return None


def _words(details: Any) -> list[str]:
    """Google's ``reason``, and ``quotaId`` of each violation."""
    words = []
    for item in details if isinstance(details, list) else ():
        if isinstance(item, dict):
            words.append(_text(item.get("reason")))
            found = item.get("violations")
            violations = found if isinstance(found, list) else []
            words += [_text(each.get("quotaId")) for each in violations if isinstance(each, dict)]
    return words
