"""What OpenAI's API knows of a request: the rest is an engine's own, and a tier may refuse it.

Engines take many fields more, among them templates and options of code that they run. Sources: OpenAI's API
reference and the types of its Python package, as of 2026-10.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall.protocol.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Iterator

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

SLICE_BYTES: Final = 256 * 1024
"""What is looked at before other work of the event loop gets its turn."""
SLICE_PARTS: Final = 500
"""Likewise, as small parts cost more than their bytes."""
MOST_BESIDE_BYTES: Final = 64 * 1024
"""Of the unknown members of one object and the white space in it: to make an object of each member costs a
hundred times what the rest of a request does."""

_NULL: Final = b"null"
_ABSENT: Final = msgspec.Raw(b"")


class _Known(msgspec.Struct):
    """An object of which only these members are kept, each as it came."""

    def __getitem__(self, name: str) -> msgspec.Raw:
        """One of them; empty if it is not there."""
        found: msgspec.Raw = getattr(self, name)
        return found

    @classmethod
    def of(cls, names: frozenset[str], *, strict: bool) -> msgspec.json.Decoder[Self]:
        """With the members of these names, and none beside them where it is strict."""
        fields = [(name, msgspec.Raw, _ABSENT) for name in sorted(names)]
        made = msgspec.defstruct("Known", fields, bases=(cls,), forbid_unknown_fields=strict)
        return msgspec.json.Decoder(made)


class _Form:
    """One kind of object: what OpenAI's API knows in it."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._strict = _Known.of(names, strict=True)
        self._lax = _Known.of(names, strict=False)

    def read(self, raw: msgspec.Raw, place: str) -> _Known:
        """Its known members; those that are unknown are refused, unless they are null.

        Raises:
            UnsupportedByTier: One is not known.
            InvalidRequest: It is no object, or holds too much that is not known.
        """
        with contextlib.suppress(msgspec.ValidationError, UnicodeDecodeError):
            return self._strict.decode(raw)
        known: _Known = _decoded(self._lax, raw, place)
        beside = memoryview(raw).nbytes - sum(memoryview(each).nbytes for each in _fields(known))
        if beside > MOST_BESIDE_BYTES:
            raise InvalidRequest(
                f"{place}: OpenAI's API does not know more than {MOST_BESIDE_BYTES} bytes of it",
                param=place,
            )
        for name in (members := _decoded(_members, raw, place)).keys() - self._names:
            if bytes(members[name]) != _NULL:
                raise _unknown(f"{place}.{name}")
        return known


_listed: Final = msgspec.json.Decoder(list[msgspec.Raw])
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_word: Final = msgspec.json.Decoder(str)
_message: Final = _Form(MESSAGE)
_part: Final = _Form(PART | PARTS)
_options: Final = _Form(STREAM_OPTIONS)


class _Typed(msgspec.Struct):
    type: msgspec.Raw = _ABSENT


_typed: Final = msgspec.json.Decoder(_Typed)


async def refuse_unknown(body: dict[str, msgspec.Raw], operation: Operation) -> None:
    """Refuses what OpenAI's API does not know; unknown members of the body that are null are taken out.

    Looked at are the members of the body, of its messages and their content parts, and of ``stream_options``,
    and the types of content parts and of ``response_format``. What is inside tools and schemas is not. Of a
    large body the event loop goes on with other work in between.

    Raises:
        UnsupportedByTier: ``param`` names the member.
        InvalidRequest: ``messages`` or ``stream_options`` have a form that no backend takes.
    """
    for field in body.keys() - FIELDS[operation]:
        if bytes(body[field]) != _NULL:
            raise _unknown(field)
        del body[field]
    if operation is Operation.CHAT and (messages := body.get("messages")) is not None:
        for _ in _look_at_messages(messages):
            await asyncio.sleep(0)
    _look_at_options(body.get("stream_options"))
    _look_at_format(body.get("response_format"))


def _look_at_messages(raw: msgspec.Raw) -> Iterator[None]:
    """Yields after each slice of them."""
    looked_at = 0
    for index, message in enumerate(_decoded(_listed, raw, "messages")):
        place = f"messages[{index}]"
        content = _message.read(message, place)["content"]
        looked_at += memoryview(message).nbytes
        begins = bytes(memoryview(content)[:1])
        if begins == b"{":
            raise InvalidRequest(f"{place}.content: is a text or an array of parts", param=f"{place}.content")
        if begins == b"[":
            for number, part in enumerate(_decoded(_listed, content, f"{place}.content")):
                _look_at_part(part, f"{place}.content[{number}]")
                looked_at += memoryview(part).nbytes
                if looked_at >= SLICE_BYTES or (number + 1) % SLICE_PARTS == 0:
                    looked_at = 0
                    yield
        if looked_at >= SLICE_BYTES or (index + 1) % SLICE_PARTS == 0:
            looked_at = 0
            yield


def _look_at_part(raw: msgspec.Raw, place: str) -> None:
    if bytes(memoryview(raw)[:1]) == b'"':
        return
    try:
        part = _part.read(raw, place)
    except UnsupportedByTier:
        _kind_of(_decoded(_typed, raw, place).type, place)  # it says more than one of its members
        raise
    kind = _kind_of(part["type"], place)
    for other in PARTS - {kind}:
        if bytes(part[other]) not in {b"", _NULL}:
            raise _unknown(f"{place}.{other}")


def _kind_of(raw: msgspec.Raw, place: str) -> str:
    kind = _word_of(raw)
    if kind not in PARTS:
        raise _unknown(f"{place}.type")
    return kind


def _look_at_options(raw: msgspec.Raw | None) -> None:
    if raw is not None and bytes(raw) != _NULL:
        _options.read(raw, "stream_options")


def _look_at_format(raw: msgspec.Raw | None) -> None:
    if raw is None or bytes(raw) == _NULL:
        return
    if _word_of(_decoded(_typed, raw, "response_format").type) not in RESPONSE_FORMATS:
        raise _unknown("response_format.type")


def _word_of(raw: msgspec.Raw) -> str | None:
    """The string that this is, if it is one."""
    try:
        word: str = _word.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return word


def _fields(known: _Known) -> tuple[msgspec.Raw, ...]:
    found: tuple[Any, ...] = msgspec.structs.astuple(known)
    return found


def _decoded(decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw, place: str) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest(f"{place}: has a form that OpenAI's API does not know", param=place) from None


def _unknown(place: str) -> UnsupportedByTier:
    shown = place if len(place) <= SHOWN else f"{place[:SHOWN]}..."
    return UnsupportedByTier(
        f"{shown}: OpenAI's API does not know it, and this tier takes nothing else", param=shown
    )
