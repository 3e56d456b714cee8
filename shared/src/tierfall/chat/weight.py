"""How many tokens generated text comes to, where no backend has said it.

Engines send about one chunk a token, providers many tokens a chunk; a client that hangs up before the usage
comes has read them all the same. So both are lower bounds: the chunks, and the bytes of text by four.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

BYTES_PER_TOKEN: Final = 4
"""Of UTF-8, as a rule of thumb over languages."""
_TEXTS: Final = ("content", "refusal", "text")
_NUMBERS: Final = re.compile(rb"[\[\s]+[-0-9]")


class _Choice(msgspec.Struct):
    delta: Any = None
    text: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None


_chunk: Final = msgspec.json.Decoder(_Chunk)


def tokens(chunks: int, size_bytes: int) -> int:
    """At least how many tokens so many chunks with so much text were."""
    return max(chunks, -(-size_bytes // BYTES_PER_TOKEN))


def listed_tokens(prompt: msgspec.Raw) -> int:
    """How many tokens a prompt, or an input to embed, lists by their numbers; 0 where it is text.

    Their bytes do not tell: a token may be written in two.
    """
    view = memoryview(prompt)
    return bytes(view).count(b",") + 1 if _NUMBERS.match(view) else 0


def text_bytes(part: Any) -> int:
    """The UTF-8 bytes of what a model wrote in a choice or its delta, decoded as a dict.

    Reasoning stands under one of two names, or the same under both.
    """
    if not isinstance(part, dict):
        return 0
    size = sum(utf8_bytes(part.get(name)) for name in _TEXTS)
    size += max(utf8_bytes(part.get("reasoning_content")), utf8_bytes(part.get("reasoning")))
    calls = part.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        size += _call_bytes(call.get("function") if isinstance(call, dict) else None)
    return size + _call_bytes(part.get("function_call"))


def chunk_bytes(payload: bytes) -> int:
    """Likewise, of all choices of a chunk; 0 of what is none."""
    try:
        choices = _chunk.decode(payload).choices or ()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return sum(text_bytes(choice.delta) + utf8_bytes(choice.text) for choice in choices)


def utf8_bytes(text: Any) -> int:
    """The bytes of a string; 0 of anything else."""
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else len(text.encode())


def _call_bytes(function: Any) -> int:
    if not isinstance(function, dict):
        return 0
    return utf8_bytes(function.get("name")) + utf8_bytes(function.get("arguments"))
