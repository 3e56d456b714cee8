"""What OpenAI's API knows of a request: the rest is an engine's own, and a tier may refuse it.

Engines take many fields more, among them templates and options of code that they run. Sources: OpenAI's API
reference and the types of its Python package, as of 2026-10.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall.protocol.operation import Operation

_GENERATING: Final = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "model",
        "n",
        "presence_penalty",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "user",
    }
)
FIELDS: Final[dict[Operation, frozenset[str]]] = {
    Operation.CHAT: _GENERATING
    | {
        "audio",
        "function_call",
        "functions",
        "max_completion_tokens",
        "messages",
        "metadata",
        "modalities",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "store",
        "tool_choice",
        "tools",
        "top_logprobs",
        "verbosity",
        "web_search_options",
    },
    Operation.COMPLETIONS: _GENERATING | {"best_of", "echo", "prompt", "suffix"},
    Operation.EMBEDDINGS: frozenset({"dimensions", "encoding_format", "input", "model", "user"}),
}
"""The members of a body."""
ECHOED: Final = frozenset({"annotations", "reasoning", "reasoning_content"})
"""Of an answer's message; clients send it back as part of the conversation."""
MESSAGE: Final = (
    frozenset({"audio", "content", "function_call", "name", "refusal", "role", "tool_call_id", "tool_calls"})
    | ECHOED
)
PARTS: Final = frozenset({"text", "image_url", "input_audio", "file", "refusal"})
"""The types of a content part; its content is in the member of that name."""
PART: Final = frozenset({"type", "prompt_cache_breakpoint"})
STREAM_OPTIONS: Final = frozenset({"include_obfuscation", "include_usage"})
RESPONSE_FORMATS: Final = frozenset({"text", "json_object", "json_schema"})
SHOWN: Final = 64
"""Characters of a name that the client chose."""

_NULL: Final = b"null"
_messages: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_parts: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw] | str])
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Typed(msgspec.Struct):
    type: Any = None


_typed: Final = msgspec.json.Decoder(_Typed)


def refuse_unknown(body: dict[str, msgspec.Raw], operation: Operation) -> None:
    """Refuses what OpenAI's API does not know; unknown members of the body that are null are taken out.

    Looked at are the members of the body, of its messages and their content parts, and of ``stream_options``,
    and the types of content parts and of ``response_format``. What is inside tools and schemas is not.

    Raises:
        UnsupportedByTier: ``param`` names the member.
        InvalidRequest: ``messages`` or ``stream_options`` have a form that no backend takes.
    """
    for field in body.keys() - FIELDS[operation]:
        if bytes(body[field]) != _NULL:
            raise _unknown(field)
        del body[field]
    if operation is Operation.CHAT:
        _look_at_messages(body.get("messages"))
    _look_at_options(body.get("stream_options"))
    _look_at_format(body.get("response_format"))


def _look_at_messages(raw: msgspec.Raw | None) -> None:
    if raw is None:
        return
    for index, message in enumerate(_decoded(_messages, raw, "messages")):
        place = f"messages[{index}]"
        _look_at(message, MESSAGE, place)
        content = message.get("content")
        if content is not None and bytes(memoryview(content)[:1]) == b"[":
            for number, part in enumerate(_decoded(_parts, content, f"{place}.content")):
                if not isinstance(part, str):
                    _look_at_part(part, f"{place}.content[{number}]")


def _look_at_part(part: dict[str, msgspec.Raw], place: str) -> None:
    kind = msgspec.json.decode(part.get("type", _NULL))
    if not isinstance(kind, str) or kind not in PARTS:
        raise _unknown(f"{place}.type")
    _look_at(part, PART | {kind}, place)


def _look_at_options(raw: msgspec.Raw | None) -> None:
    if raw is not None and bytes(raw) != _NULL:
        _look_at(_decoded(_members, raw, "stream_options"), STREAM_OPTIONS, "stream_options")


def _look_at_format(raw: msgspec.Raw | None) -> None:
    if raw is None or bytes(raw) == _NULL:
        return
    kind = _decoded(_typed, raw, "response_format").type
    if not isinstance(kind, str) or kind not in RESPONSE_FORMATS:
        raise _unknown("response_format.type")


def _look_at(members: dict[str, msgspec.Raw], known: frozenset[str], place: str) -> None:
    for name in members.keys() - known:
        if bytes(members[name]) != _NULL:
            raise _unknown(f"{place}.{name}")


def _decoded(decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw, place: str) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError:
        raise InvalidRequest(f"{place}: has a form that OpenAI's API does not know", param=place) from None


def _unknown(place: str) -> UnsupportedByTier:
    shown = place if len(place) <= SHOWN else f"{place[:SHOWN]}..."
    return UnsupportedByTier(
        f"{shown}: OpenAI's API does not know it, and this tier takes nothing else", param=shown
    )
