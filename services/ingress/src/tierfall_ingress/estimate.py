"""What a request may come to in tokens, before anybody has counted them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.protocol.operation import Operation

if TYPE_CHECKING:
    from tierfall_ingress.ask import Ask

BYTES_PER_TOKEN: Final = 4
"""Of UTF-8, as a rule of thumb over languages; the JSON around a message stands for its template's tokens."""
MEDIA_TOKENS: Final = 1000
"""For an image, a sound or a file, whatever its bytes."""
ASSUMED_TOKENS: Final = 1024
"""Of each answer to a request that sets no ``max_tokens``."""
USUAL_SHARE: Final = 4
"""An answer is usually one part in so many of what it may be; where it has to be guessed afterwards."""
_MEDIA: Final = (b'"image_url"', b'"input_audio"', b'"file"')


class _Sizes(msgspec.Struct):
    max_tokens: Any = None
    max_completion_tokens: Any = None
    messages: Any = None


_sizes: Final = msgspec.json.Decoder(_Sizes)


class Estimate(msgspec.Struct, frozen=True):
    """Tokens of one request.

    Attributes:
        prompt: Of the prompt.
        most: Of all answers, at most.
        told: Whether ``most`` is the client's word rather than an assumption.
    """

    prompt: int
    most: int
    told: bool


def estimate(ask: Ask) -> Estimate:
    """Reads what of the body says how long the answer may be, and guesses the rest."""
    if ask.operation is Operation.EMBEDDINGS:  # there is no answer to count
        return Estimate(_tokens(len(ask.body)), 0, told=True)
    try:
        sizes = _sizes.decode(ask.body)
    except (msgspec.DecodeError, RecursionError):
        sizes = _Sizes()
    prompt = _tokens(_text_bytes(ask.body, sizes.messages))
    limits = [
        limit
        for limit in (sizes.max_completion_tokens, sizes.max_tokens)
        if isinstance(limit, int) and limit > 0
    ]
    each = min(limits, default=ASSUMED_TOKENS)
    return Estimate(prompt, each * ask.choices, told=bool(limits))


def usual(most: int) -> int:
    """What an answer that may be so long probably is, in tokens."""
    return -(-most // USUAL_SHARE)


def _text_bytes(body: bytes, messages: Any) -> int:
    """The body's length, with a flat rate for what is no text."""
    if not any(mark in body for mark in _MEDIA) or not isinstance(messages, list):
        return len(body)
    size = len(body)
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") not in {"text", "refusal"}:
                size += MEDIA_TOKENS * BYTES_PER_TOKEN - len(msgspec.json.encode(part))
    return max(size, 0)


def _tokens(size_bytes: int) -> int:
    return max(1, -(-size_bytes // BYTES_PER_TOKEN))
