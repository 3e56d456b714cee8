"""How long an answer may be, in tokens: the ways in which requests say it, and the one in which it travels.

Engines know several names for the same limit, and each has its own order among them. So it is read once, by
the ingress, and written once into what a backend gets; a request whose names disagree is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import InvalidRequest
from tierfall.protocol.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TOKENS: Final = "max_tokens"
MAX_COMPLETION_TOKENS: Final = "max_completion_tokens"
N_PREDICT: Final = "n_predict"
"""llama.cpp's own name, which wins over OpenAI's there."""
OPTIONS: Final = "options"
OPTION: Final = "num_predict"
"""Ollama's own name, a member of its ``options``."""
LIMITS: Final = (MAX_TOKENS, MAX_COMPLETION_TOKENS, N_PREDICT)
MOST_TOKENS: Final = 2**31 - 1
"""Engines hold the limit in 32 bits; a larger number would come to something else there."""
UNLIMITED: Final = -1
"""What llama.cpp, LM Studio and Ollama take for no limit: the same as none."""
MAX_MEMBERS: Final = 1000
"""Of a request whose fields are looked at one by one."""
ASSUMED_TOKENS: Final = 1024
"""Counted in advance for each answer to a request that sets no limit."""

_ELSEWHERE: Final = frozenset(
    {
        *("max_new_tokens", "max_output_tokens", "max_length", "max_gen_len", "max_gen_toks"),
        *("max_tokens_to_sample", "max_generated_tokens", "n_tokens", OPTION),
        *("n_cmpl", "num_return_sequences", "num_generations"),
    }
)
"""What some engine takes for a limit or for a number of answers. llama.cpp has ``n_cmpl`` beside ``n``;
TabbyAPI has ``max_length``."""
_MODEL: Final = "model"
_OTHER_MODELS: Final = frozenset(
    {"models", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", _MODEL}
)
"""What a backend that is a router itself (OpenRouter, a LiteLLM proxy) takes for further models."""
_COUNTED: Final = frozenset({*LIMITS, "n", "best_of"})
_LONGEST_NUMBER: Final = 32
"""Bytes of a number that is worth reading."""
_NULL: Final = b"null"

_ABSENT: Final = msgspec.Raw(_NULL)

Body = dict[str, msgspec.Raw]


class _Options(msgspec.Struct):
    num_predict: msgspec.Raw = _ABSENT


_options: Final = msgspec.json.Decoder(_Options)


def read_limit(said: Mapping[str, msgspec.Raw], operation: Operation) -> int | None:
    """The limit that a request sets, under whatever names; None when it sets none.

    Args:
        said: Its members of the names in :data:`LIMITS`, and its ``options``, which are Ollama's.
        operation: What is asked for. A completion may ask for no token at all (to have its prompt echoed).

    Raises:
        InvalidRequest: One is no whole number, or two disagree.
    """
    if not said:
        return None
    least = 0 if operation is Operation.COMPLETIONS else 1
    told: dict[str, int] = {}
    for member, raw in said.items():
        name, value = (f"{OPTIONS}.{OPTION}", _option(raw)) if member == OPTIONS else (member, raw)
        number = _number(name, value, least)
        if number is not None:
            told[name] = number
    if len(told) > 1 and len(set(told.values())) > 1:
        names = " and ".join(repr(name) for name in told)
        raise InvalidRequest(
            f"{names} say the same thing and differ; send one of them", param=next(iter(told))
        )
    number = next(iter(told.values()), UNLIMITED)
    return None if number == UNLIMITED else number


def _option(options: msgspec.Raw) -> msgspec.Raw:
    return _options.decode(options).num_predict if bytes(memoryview(options)[:1]) == b"{" else _ABSENT


def _number(name: str, raw: msgspec.Raw, least: int) -> int | None:
    if memoryview(raw).nbytes > _LONGEST_NUMBER:
        raise InvalidRequest(f"'{name}' must be a whole number up to {MOST_TOKENS}", param=name)
    try:
        value: Any = msgspec.json.decode(raw)
    except msgspec.DecodeError:  # 1e999
        value = ""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be a whole number, not a string or a fraction", param=name)
    if value != UNLIMITED and not least <= value <= MOST_TOKENS:
        raise InvalidRequest(
            f"'{name}' must be from {least} to {MOST_TOKENS}; leave it out where nothing limits the answer",
            param=name,
        )
    return value


def write_limit(body: Body, limit: int | None, operation: Operation) -> None:
    """Writes the limit into a request under one name, in place; the others are taken out.

    The client's own name is kept if it is one of OpenAI's and the endpoint knows it: some models refuse the
    one, some engines ignore the other.
    """
    said = [name for name in LIMITS if bytes(body.get(name, _NULL)) != _NULL]
    if limit is None:
        for name in said:
            del body[name]
        return
    newer = operation is Operation.CHAT and MAX_COMPLETION_TOKENS in said and MAX_TOKENS not in said
    name = MAX_COMPLETION_TOKENS if newer else MAX_TOKENS
    for other in LIMITS:
        if other != name:
            body.pop(other, None)
    value = b"%d" % limit
    if bytes(body.get(name, _NULL)) != value:
        body[name] = msgspec.Raw(value)


def refuse_uncounted(body: Mapping[str, msgspec.Raw], limit: int | None) -> None:
    """Refuses what could make an answer cost more than can be counted in advance.

    Args:
        body: The request's members.
        limit: What :func:`read_limit` found.

    Raises:
        InvalidRequest: ``param`` names the field.
    """
    if len(body) > MAX_MEMBERS:
        raise InvalidRequest(f"the request has more than {MAX_MEMBERS} fields")
    refuse_other_models(body)
    for name, raw in body.items():
        plain = _folded(name)
        if (plain in _ELSEWHERE or (plain in _COUNTED and name not in _COUNTED)) and bytes(raw) != _NULL:
            raise InvalidRequest(
                f"'{name}' cannot be counted against a limit on tokens or money; use '{MAX_TOKENS}' and 'n'",
                param=name,
            )
    if limit is not None:
        return
    if bytes(body.get("ignore_eos", _NULL)) not in {_NULL, b"false"}:
        raise InvalidRequest(
            f"'ignore_eos' needs '{MAX_TOKENS}' where tokens or money are limited", param="ignore_eos"
        )
    if _above(body.get("min_tokens"), ASSUMED_TOKENS):
        raise InvalidRequest(
            f"'min_tokens' needs '{MAX_TOKENS}' where tokens or money are limited", param="min_tokens"
        )


def refuse_other_models(body: Mapping[str, msgspec.Raw]) -> None:
    """Refuses what could make a backend answer with another model than the one that was asked for here.

    Args:
        body: The request's members.

    Raises:
        InvalidRequest: ``param`` names the field.
    """
    for name, raw in body.items():
        if name != _MODEL and _folded(name) in _OTHER_MODELS and bytes(raw) != _NULL:
            raise InvalidRequest(
                f"'{name}' could lead to another model, so it is refused where models or their use are "
                f"limited; use '{_MODEL}'",
                param=name,
            )


def _folded(name: str) -> str:
    """As engines written in Go compare it: without case, also that of the long s (U+017F)."""
    return name.casefold()


def _above(raw: msgspec.Raw | None, most: int) -> bool:
    """Whether this is anything but null or a number up to ``most``."""
    if raw is None or bytes(raw) == _NULL:
        return False
    if memoryview(raw).nbytes > _LONGEST_NUMBER:
        return True
    try:
        return msgspec.json.decode(raw, type=float) > most
    except msgspec.DecodeError:
        return True
