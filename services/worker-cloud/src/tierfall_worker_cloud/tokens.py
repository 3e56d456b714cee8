"""How many tokens a request will come to, before it is sent; and how many it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tierfall.chat.limit import ASSUMED_TOKENS, LIMITS
from tierfall.chat.weight import listed_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES_PER_TOKEN: Final = 4
"""Of JSON text; close enough for a reservation that the real count replaces."""
IMAGE_TOKENS: Final = 1000
"""For an image that stands in the request itself."""
ANSWER_TOKENS: Final = ASSUMED_TOKENS
"""Reserved for an answer whose length the client does not limit."""
LIKELY_TOKENS: Final = 256
"""What an answer is taken for when nobody is left to say how long it was."""

_INLINE: Final = b";base64,"
_LONGEST_NUMBER: Final = 32
_PROMPT: Final = ("messages", "prompt", "input", "tools", "response_format")


_NULL: Final = msgspec.Raw(b"null")
_SEVERAL: Final = (b'"', b"[", b"{")
"""What a prompt begins with in an array of several; anything else is a token of one."""
_listed: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Estimate(NamedTuple):
    """What a request may come to, in tokens of prompt and answer."""

    prompt: int
    most: int
    """Prompt and the longest answer."""
    likely: int


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


_counted: Final = msgspec.json.Decoder(_Counted)


def estimate(body: Mapping[str, msgspec.Raw], limit: int, *, answers: bool = True) -> Estimate:
    """Reads what has to be known off a client's request.

    Args:
        body: The request's members.
        limit: The smallest limit on tokens. An estimate of ours never keeps a request from being sent; only
            what the client itself asks for does.
        answers: Whether tokens are generated, which for embeddings they are not.
    """
    prompt = sum(_prompt(body[name]) for name in _PROMPT if name in body)
    # The runtime leaves one limit, under the name that goes out; of several the longest answer counts.
    asked = max(filter(None, (_number(body, name) for name in LIMITS)), default=None)
    drafts = max(_number(body, "n") or 1, _number(body, "best_of") or 1)
    choices = _prompts(body) * drafts if answers else 0
    answer = choices * (ANSWER_TOKENS if asked is None else asked)
    most = prompt + answer
    if asked is None or answer <= limit:
        most = min(most, limit)
    return Estimate(prompt, most, min(most, prompt + choices * LIKELY_TOKENS))


def used(payload: bytes) -> int | None:
    """The tokens that a chunk says the request has used; None when it does not say."""
    if b'"usage"' not in payload:
        return None
    try:
        usage = _counted.decode(payload).usage
    except (msgspec.DecodeError, RecursionError):
        return None
    if usage is None:
        return None
    return usage.total_tokens or (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)


def _prompt(member: msgspec.Raw) -> int:
    """By its length, without the data of pictures and sounds, or by the numbers of tokens that it lists."""
    raw = bytes(member)
    size, media = len(raw), 0
    at = raw.find(_INLINE)
    while at >= 0:
        end = raw.find(b'"', at)
        end = len(raw) if end < 0 else end
        size -= end - at
        media += 1
        at = raw.find(_INLINE, end)
    return max(-(-size // BYTES_PER_TOKEN) + media * IMAGE_TOKENS, listed_tokens(member))


def _prompts(body: Mapping[str, msgspec.Raw]) -> int:
    """How many answers are made for each of ``n``: a text completion may have several prompts."""
    raw = body.get("prompt", _NULL)
    if bytes(memoryview(raw)[:1]) != b"[":
        return 1
    prompts = _listed.decode(raw)
    return len(prompts) if prompts and bytes(memoryview(prompts[0])[:1]) in _SEVERAL else 1


def _number(body: Mapping[str, msgspec.Raw], name: str) -> int | None:
    raw = body.get(name)
    if raw is None or memoryview(raw).nbytes > _LONGEST_NUMBER:
        return None
    value: Any = msgspec.json.decode(raw)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
