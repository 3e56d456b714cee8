"""A whole completion as the one chunk that a stream of it would add up to."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tierfall.errors import StreamBroken

_encoder: Final = msgspec.json.Encoder()


def as_chunk(completion: dict[str, Any]) -> bytes:
    """One chunk with everything in it, for an engine that ignores ``stream``.

    Members that are not known here stay as they are; a text completion's choices are a chunk's already.

    Raises:
        StreamBroken: Its choices are not those of a completion.
    """
    try:
        choices = [_streamed(choice) for choice in completion["choices"]]
    except (TypeError, ValueError, AttributeError):
        raise StreamBroken("the backend sent a completion whose fields are not those of one") from None
    return _encoder.encode({**completion, "object": "chat.completion.chunk", "choices": choices})


def _streamed(choice: dict[str, Any]) -> dict[str, Any]:
    found = dict(choice)
    if "text" in found:
        return found
    delta = dict(found.pop("message", None) or {})
    calls = delta.get("tool_calls")
    if calls:
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    else:
        delta.pop("tool_calls", None)
    return {**found, "delta": delta}
