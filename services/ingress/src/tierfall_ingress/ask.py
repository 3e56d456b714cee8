"""What the ingress reads of a request: just what routing needs. The raw body travels on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from tierfall.chat.limit import LIMITS, OPTIONS, read_limit
from tierfall.errors import InvalidRequest
from tierfall.protocol.operation import Operation
from tierfall_ingress.bounds import (
    MAX_ITEMS,
    SLICE_BYTES,
    at_once,
    check_items,
    check_texts,
    check_utf8,
    count_commas,
    too_many,
    with_pauses,
)

if TYPE_CHECKING:
    from collections.abc import Generator

MAX_CHOICES: Final = 128
"""OpenAI's own limit of ``n``."""
ENCODINGS: Final = (None, "float", "base64")
"""What ``encoding_format`` may be: the forms of a vector that are known here."""
_NULL: Final = msgspec.Raw(b"null")


class StreamOptions(msgspec.Struct):
    """``stream_options``, as far as it is read."""

    include_usage: bool | None = None


class _Message(msgspec.Struct, gc=False):
    """A message, as far as it is read: that it is an object. Without members it costs next to nothing."""


class _Generating(msgspec.Struct, kw_only=True):
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: msgspec.Raw = _NULL
    max_completion_tokens: msgspec.Raw = _NULL
    n_predict: msgspec.Raw = _NULL
    options: msgspec.Raw = _NULL


class _Chat(_Generating, kw_only=True):
    messages: list[_Message]


class _Completion(_Generating, kw_only=True):
    prompt: msgspec.Raw


class _Embedding(msgspec.Struct):
    model: str
    input: msgspec.Raw
    encoding_format: str | None = None
    stream: bool | None = None


class Ask(msgspec.Struct, frozen=True):
    """One request, ready to be sent up the ladder."""

    model: str
    body: bytes
    streaming: bool
    include_usage: bool
    choices: int
    """How many answers are asked for: ``n`` for each prompt, or as many as there are inputs to embed."""
    operation: Operation = Operation.CHAT
    max_tokens: int | None = None
    """The limit of each answer, whatever the request calls it; None when it sets none."""
    drafts: int = 1
    """How many answers are generated: ``choices``, or more of which only the best are sent (``best_of``)."""


Head = TypeVar("Head", _Chat, _Completion, _Embedding)

_BOM: Final = b"\xef\xbb\xbf"
_chat: Final = msgspec.json.Decoder(_Chat)
_completion: Final = msgspec.json.Decoder(_Completion)
_embedding: Final = msgspec.json.Decoder(_Embedding)
_listed: Final = msgspec.json.Decoder(list[msgspec.Raw])
_kind: Final = msgspec.json.Decoder(str | list[msgspec.Raw])
_TEXTS: Final = {Operation.CHAT: "messages", Operation.COMPLETIONS: "prompt", Operation.EMBEDDINGS: "input"}
_LIMITS: Final = (*LIMITS, OPTIONS)
_FIRST: Final = re.compile(rb"\[\s*(.)", re.DOTALL)
_TOKEN: Final = b"-0123456789tf"
"""What a number begins with, or a boolean, which Python takes for one."""


async def read_ask(body: bytes, operation: Operation) -> Ask:
    """As :func:`parse_ask`; of a large body the event loop goes on with other work in between."""
    if len(body) <= SLICE_BYTES:
        return parse_ask(body, operation)
    return await with_pauses(_steps(body, operation))


def parse_ask(body: bytes, operation: Operation = Operation.CHAT) -> Ask:
    """Checks what has to be right for any backend, and reads what routing needs.

    Of two members with the same name the last counts, as in Python's and JavaScript's own parsers, and it is
    the only one that travels on.

    Raises:
        InvalidRequest: With ``param`` where the fault has a place; never with a value of the body.
    """
    return at_once(_steps(body, operation))


def _steps(body: bytes, operation: Operation) -> Generator[None, None, Ask]:
    """Reads a request, and yields wherever it has worked for some milliseconds on a large one."""
    text = _TEXTS[operation]
    if not body or body.isspace():
        raise InvalidRequest(f"the body is empty; send a JSON object with 'model' and '{text}'")
    if body.startswith(_BOM):
        raise InvalidRequest("the body begins with a byte order mark; JSON is sent without one")
    yield from check_utf8(body)
    commas = yield from count_commas(body)
    if operation is Operation.CHAT:
        chat = _decode(_chat, body)
        if not chat.messages:
            raise InvalidRequest("'messages' is empty; send at least one message", param="messages")
        if len(chat.messages) > MAX_ITEMS:
            raise too_many("messages", "messages")
        ask = _generating(chat, body, operation, 1)
    elif operation is Operation.COMPLETIONS:
        completion = _decode(_completion, body)
        prompts = yield from _count(completion.prompt, "prompt", commas)
        ask = _generating(completion, body, operation, prompts)
    else:
        embedding = _decode(_embedding, body)
        inputs = yield from _count(embedding.input, "input", commas)
        ask = _embedding_ask(embedding, body, inputs)
    yield
    yield from check_items(body, commas)
    return ask


def _generating(head: _Chat | _Completion, body: bytes, operation: Operation, prompts: int) -> Ask:
    for name, number in (("n", head.n), ("best_of", head.best_of)):
        if number is not None and not 1 <= number <= MAX_CHOICES:
            raise InvalidRequest(f"'{name}' must be from 1 to {MAX_CHOICES}", param=name)
    each = head.n or 1
    if prompts * each > MAX_ITEMS:
        raise too_many("answers, over all prompts", "n")
    said = {name: raw for name in _LIMITS if (raw := getattr(head, name)) is not _NULL}
    streaming, options = bool(head.stream), head.stream_options
    if options is not None and not streaming:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true", param="stream_options")
    return Ask(
        model=head.model,
        body=body,
        streaming=streaming,
        include_usage=bool(options is not None and options.include_usage),
        choices=prompts * each,
        operation=operation,
        max_tokens=read_limit(said, operation),
        drafts=prompts * max(each, head.best_of or 1),
    )


def _embedding_ask(head: _Embedding, body: bytes, inputs: int) -> Ask:
    if head.encoding_format not in ENCODINGS:
        raise InvalidRequest("'encoding_format' is 'float' or 'base64'", param="encoding_format")
    if head.stream:
        raise InvalidRequest("'stream' is not for embeddings: they come in one piece", param="stream")
    return Ask(
        model=head.model,
        body=body,
        streaming=False,
        include_usage=False,
        choices=inputs,
        operation=Operation.EMBEDDINGS,
        drafts=0,
    )


def _count(raw: msgspec.Raw, field: str, commas: int) -> Generator[None, None, int]:
    """How many texts there are: a list of numbers is one, as tokens."""
    yield
    begins = bytes(memoryview(raw)[:1])
    if begins == b'"':
        return 1
    if begins != b"[":
        try:
            _kind.decode(raw)
        except msgspec.ValidationError as error:
            raise _refusal(str(error), field) from None
    first = _FIRST.match(memoryview(raw))
    if first is not None and first[1] in _TOKEN:
        return 1
    yield from check_texts(raw, field, commas)
    count = len(_listed.decode(raw))
    if not count:
        raise InvalidRequest(
            f"'{field}' is empty; send a string, or an array with something in it", param=field
        )
    if count > MAX_ITEMS:
        raise too_many("texts", field)
    return count


def _decode(decoder: msgspec.json.Decoder[Head], body: bytes) -> Head:
    try:
        head = decoder.decode(body)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not head.model:
        raise InvalidRequest("'model' is empty; GET /v1/models lists the names", param="model")
    return head


def _refusal(reason: str, field: str = "") -> InvalidRequest:
    """Msgspec's words, with its ``$.path`` (within ``field``) as OpenAI's ``param``."""
    what, _, path = reason.partition(" - at `$")
    param = field + path.rstrip("`").removeprefix(".") or None
    if what.startswith("Object missing required field") and param is None:
        param = what.partition("`")[2].partition("`")[0] or None
    where = f"'{param}': " if param else ""
    return InvalidRequest(f"{where}{what[:1].lower()}{what[1:]}", param=param)
