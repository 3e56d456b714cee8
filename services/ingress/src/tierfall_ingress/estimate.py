"""What a request may come to in tokens, before anybody has counted them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.chat import limit
from tierfall.chat.weight import listed_tokens
from tierfall.protocol.operation import Operation
from tierfall_ingress.bounds import SLICE_BYTES, at_once, with_pauses

if TYPE_CHECKING:
    from collections.abc import Generator

    from tierfall_ingress.ask import Ask

BYTES_PER_TOKEN: Final = 4
"""Of UTF-8, as a rule of thumb over languages; the JSON around a message stands for its template's tokens."""
MEDIA_TOKENS: Final = 1000
"""For an image, a sound or a file, whatever its bytes."""
ASSUMED_TOKENS: Final = limit.ASSUMED_TOKENS
"""Of each answer to a request that sets no limit."""
USUAL_SHARE: Final = 4
"""An answer is usually one part in so many of what it may be; where it has to be guessed afterwards."""
_MEDIA: Final = (b'"image_url"', b'"input_audio"', b'"file"')
_TEXTS: Final = frozenset({None, "text", "refusal", "input_text", "output_text", "thinking"})
"""Types of parts that are text: a flat rate would be a way to pay less for it."""
_ABSENT: Final = msgspec.Raw(b"")


class _Message(msgspec.Struct):
    content: msgspec.Raw = _ABSENT


class _Part(msgspec.Struct):
    type: str | None = None


_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_messages: Final = msgspec.json.Decoder(list[_Message])
_listed: Final = msgspec.json.Decoder(list[msgspec.Raw])
_part: Final = msgspec.json.Decoder(_Part)


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


async def read_estimate(ask: Ask) -> Estimate:
    """As :func:`estimate`; of a large body the event loop goes on with other work in between."""
    return estimate(ask) if len(ask.body) <= SLICE_BYTES else await with_pauses(_steps(ask))


def estimate(ask: Ask) -> Estimate:
    """How long the prompt and the answers may be, by what the client says, and guesses for the rest.

    Raises:
        InvalidRequest: A field could make the answers longer than that; ``param`` names it.
    """
    return at_once(_steps(ask))


def _steps(ask: Ask) -> Generator[None, None, Estimate]:
    body = ask.body
    yield
    members = _members.decode(body)
    size = len(body)
    yield
    if ask.operation is Operation.EMBEDDINGS:  # there is no answer to count
        limit.refuse_other_models(members)
        return Estimate(max(_tokens(size), listed_tokens(members["input"])), 0, told=True)
    limit.refuse_uncounted(members, ask.max_tokens)
    for mark in _MEDIA if ask.operation is Operation.CHAT else ():  # a completion's messages may be anything
        yield
        if mark in body:
            yield
            size += yield from _media(members.get("messages", _ABSENT))
            break
    # Some engines take 0 for no limit.
    each = ask.max_tokens or ASSUMED_TOKENS
    prompt = _tokens(max(size, 0))
    if ask.operation is Operation.COMPLETIONS:
        prompt = max(prompt, listed_tokens(members["prompt"]))
    return Estimate(prompt, each * ask.drafts, told=bool(ask.max_tokens))


def usual(most: int) -> int:
    """What an answer that may be so long probably is, in tokens."""
    return -(-most // USUAL_SHARE)


def _media(messages: msgspec.Raw) -> Generator[None, None, int]:
    """How much larger what is no text would be at its flat rate than it is."""
    more = 0
    for number, message in enumerate(_messages.decode(messages) if _is_array(messages) else ()):
        if number % 1000 == 0:
            yield
        for part in _listed.decode(message.content) if _is_array(message.content) else ():
            if bytes(memoryview(part)[:1]) == b"{" and _type(part) not in _TEXTS:
                more += MEDIA_TOKENS * BYTES_PER_TOKEN - memoryview(part).nbytes
    return more


def _is_array(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"["


def _type(part: msgspec.Raw) -> str | None:
    try:
        return _part.decode(part).type
    except msgspec.ValidationError:
        return None


def _tokens(size_bytes: int) -> int:
    return max(1, -(-size_bytes // BYTES_PER_TOKEN))
