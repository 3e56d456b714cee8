"""Chunks of providers that depart from OpenAI's format, mended; what needs no mending keeps its bytes.

A mender lives for one answer. It looks for a tell-tale byte string first, so that a chunk is decoded only
when there may be something to mend.
"""

from __future__ import annotations

import uuid
from typing import Any, Final, Protocol

import msgspec

from tierfall.errors import StreamBroken

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(dict[str, Any])


class ChunkMender(Protocol):
    """Mends the chunks of one answer, in order."""

    def mend(self, payload: bytes) -> bytes:
        """The chunk as OpenAI would have sent it.

        Raises:
            StreamBroken: The chunk says that the answer failed, or is none.
        """


def _taken_apart(payload: bytes) -> dict[str, Any]:
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise StreamBroken("the provider sent something that is no chunk of an answer") from None


class GroqMender:
    """Groq's ``x_groq``: usage where it is nowhere else, and an error that ends the stream."""

    def mend(self, payload: bytes) -> bytes:
        """See :class:`ChunkMender`."""
        if b'"x_groq"' not in payload:
            return payload
        chunk = _taken_apart(payload)
        extra = chunk.get("x_groq")
        if not isinstance(extra, dict):
            return payload
        if extra.get("error"):
            raise StreamBroken(f"groq stopped the answer: {extra['error']}")
        if chunk.get("usage") or not extra.get("usage"):
            return payload
        chunk["usage"] = extra["usage"]
        return _encoder.encode(chunk)


class GeminiMender:
    """Gemini's tool calls: no ``index``, or 0 for all of them, and ``stop`` as finish reason after them.

    The call's ``extra_content`` with its thought signature stays: Gemini wants it back in the next turn.
    """

    def __init__(self) -> None:
        self._calls: dict[int, list[str]] = {}
        """Per choice, the ids of its tool calls in the order of their indexes."""

    def mend(self, payload: bytes) -> bytes:
        """See :class:`ChunkMender`."""
        if b'"tool_calls"' not in payload and not (self._calls and b'"finish_reason"' in payload):
            return payload
        chunk = _taken_apart(payload)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            self._mend_choice(choice)
        return _encoder.encode(chunk)

    def _mend_choice(self, choice: dict[str, Any]) -> None:
        number = choice.get("index", 0)
        for call in (choice.get("delta") or {}).get("tool_calls") or ():
            self._mend_call(self._calls.setdefault(number, []), call)
        if self._calls.get(number) and choice.get("finish_reason") == "stop":
            choice["finish_reason"] = "tool_calls"

    def _mend_call(self, ids: list[str], call: dict[str, Any]) -> None:
        """A call with a name begins a new one, whatever its index; one without goes on with the last."""
        function = call.get("function") or {}
        call_id = call.get("id")
        if call_id and call_id in ids:
            call["index"] = ids.index(call_id)
            for repeated in ("id", "type"):  # SDKs join what is repeated
                call.pop(repeated, None)
            function.pop("name", None)
        elif function.get("name"):
            call["index"] = len(ids)
            call["id"] = call_id or f"call_{uuid.uuid4().hex}"
            call["type"] = "function"
            ids.append(call["id"])
        else:
            call["index"] = max(0, len(ids) - 1)


class MistralMender:
    """Mistral's reasoning models: ``content`` as an array of parts; and its own finish reasons."""

    def mend(self, payload: bytes) -> bytes:
        """See :class:`ChunkMender`."""
        array = b'"content":[' in payload or b'"content": [' in payload
        if not array and b'"model_length"' not in payload and b'"error"' not in payload:
            return payload
        chunk = _taken_apart(payload)
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if isinstance(delta.get("content"), list):
                delta.update(_flat(delta["content"]))
            if choice.get("finish_reason") == "model_length":
                choice["finish_reason"] = "length"
            if choice.get("finish_reason") == "error":
                raise StreamBroken("mistral ended the answer with finish_reason error")
        return _encoder.encode(chunk)


def _flat(parts: list[Any]) -> dict[str, str]:
    """Text parts as ``content``, thinking parts as ``reasoning_content``."""
    text, thinking = "", ""
    for part in parts:
        if not isinstance(part, dict):
            continue
        if part.get("type") == "thinking":
            found = part.get("thinking")
            inner = found if isinstance(found, list) else [{"text": found}]
            thinking += "".join(str(each.get("text") or "") for each in inner if isinstance(each, dict))
        else:
            text += str(part.get("text") or "")
    return {"content": text, "reasoning_content": thinking} if thinking else {"content": text}
