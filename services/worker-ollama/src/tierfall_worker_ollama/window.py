"""Refuses what an old Ollama would cut: before 0.12.6 it knows no ``truncate: false``.

It has no way to count tokens either, so they are estimated from the text's length. Text of few bytes a token,
digits for example, may still be cut; only an update mends that.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tierfall.engines import OLLAMA_CUTS
from tierfall.errors import ContextLengthExceeded

BYTES_PER_TOKEN: Final = 3
"""Less than the four or so of English text, about that of code."""
DEFAULT_NUM_CTX: Final = 4096
"""Ollama's default window."""


class _Message(msgspec.Struct):
    content: str = ""
    thinking: str = ""


class _Options(msgspec.Struct):
    num_ctx: int = 0


class _Payload(msgspec.Struct):
    options: _Options
    messages: list[_Message] = []
    tools: msgspec.Raw = msgspec.Raw()
    prompt: str = ""
    suffix: str = ""
    truncate: bool = False


_payload: Final = msgspec.json.Decoder(_Payload)


def refuse_cut(payload: bytes, engine: str, loaded: int, field: str) -> None:
    """Holds the body of a chat or a completion against its context window, if this Ollama would cut it.

    Args:
        payload: The body that is to be sent.
        engine: The engine's name and version.
        loaded: The window with which the model is in memory; 0 where that is not known.
        field: The client's field that holds the text.

    Raises:
        ContextLengthExceeded: It is probably too long, and the client did not ask for ``truncate: true``.
    """
    if not OLLAMA_CUTS.concerns(engine):
        return
    asked = _payload.decode(payload)
    texts = (text for message in asked.messages for text in (message.content, message.thinking))
    size = sum(len(text.encode()) for text in (*texts, asked.prompt, asked.suffix)) + len(asked.tools)
    tokens, window = size // BYTES_PER_TOKEN, asked.options.num_ctx or loaded or DEFAULT_NUM_CTX
    if tokens > window and not asked.truncate:
        raise ContextLengthExceeded(
            f"{field}: about {tokens} tokens, more than num_ctx ({window}), and this version of Ollama would "
            "cut them without an error: send less, raise num_ctx, or update Ollama",
            param=field,
        )
