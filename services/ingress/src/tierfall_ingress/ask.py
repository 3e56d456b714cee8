"""What the ingress reads of a request: just what routing needs. The raw body travels on."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from tierfall.errors import InvalidRequest
from tierfall.protocol.operation import Operation

MAX_CHOICES: Final = 128
"""OpenAI's own limit of ``n``."""


ENCODINGS: Final = (None, "float", "base64")
"""What ``encoding_format`` may be: the forms of a vector that are known here."""


class StreamOptions(msgspec.Struct):
    """``stream_options``, as far as it is read."""

    include_usage: bool | None = None


class _Chat(msgspec.Struct):
    model: str
    messages: list[dict[str, msgspec.Raw]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None


class _Completion(msgspec.Struct):
    model: str
    prompt: str | list[Any]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None


class _Embedding(msgspec.Struct):
    model: str
    input: str | list[Any]
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


Head = TypeVar("Head", _Chat, _Completion, _Embedding)

_BOM: Final = b"\xef\xbb\xbf"
_chat: Final = msgspec.json.Decoder(_Chat)
_completion: Final = msgspec.json.Decoder(_Completion)
_embedding: Final = msgspec.json.Decoder(_Embedding)


def parse_ask(body: bytes, operation: Operation = Operation.CHAT) -> Ask:
    """Checks what has to be right for any backend, and reads what routing needs.

    Of two members with the same name the last counts, as in Python's and JavaScript's own parsers, and it is
    the only one that travels on.

    Raises:
        InvalidRequest: With ``param`` where the fault has a place; never with a value of the body.
    """
    if operation is Operation.CHAT:
        chat = _decode(_chat, body, "messages")
        if not chat.messages:
            raise InvalidRequest("'messages' is empty; send at least one message", param="messages")
        return _generating(chat, body, operation, 1)
    if operation is Operation.COMPLETIONS:
        completion = _decode(_completion, body, "prompt")
        return _generating(completion, body, operation, _count(completion.prompt, "prompt"))
    return _embedding_ask(body)


def _generating(head: _Chat | _Completion, body: bytes, operation: Operation, prompts: int) -> Ask:
    if head.n is not None and not 1 <= head.n <= MAX_CHOICES:
        raise InvalidRequest(f"'n' must be from 1 to {MAX_CHOICES}", param="n")
    streaming, options = bool(head.stream), head.stream_options
    if options is not None and not streaming:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true", param="stream_options")
    return Ask(
        model=head.model,
        body=body,
        streaming=streaming,
        include_usage=bool(options is not None and options.include_usage),
        choices=prompts if head.n is None else prompts * head.n,
        operation=operation,
    )


def _embedding_ask(body: bytes) -> Ask:
    head = _decode(_embedding, body, "input")
    if head.encoding_format not in ENCODINGS:
        raise InvalidRequest("'encoding_format' is 'float' or 'base64'", param="encoding_format")
    if head.stream:
        raise InvalidRequest("'stream' is not for embeddings: they come in one piece", param="stream")
    return Ask(
        model=head.model,
        body=body,
        streaming=False,
        include_usage=False,
        choices=_count(head.input, "input"),
        operation=Operation.EMBEDDINGS,
    )


def _count(text: str | list[Any], field: str) -> int:
    """How many texts there are: a list of numbers is one, as tokens."""
    if not isinstance(text, list):
        return 1
    if not text:
        raise InvalidRequest(
            f"'{field}' is empty; send a string, or an array with something in it", param=field
        )
    return 1 if isinstance(text[0], int) else len(text)


def _decode(decoder: msgspec.json.Decoder[Head], body: bytes, text: str) -> Head:
    if not body or body.isspace():
        raise InvalidRequest(f"the body is empty; send a JSON object with 'model' and '{text}'")
    if body.startswith(_BOM):
        raise InvalidRequest("the body begins with a byte order mark; JSON is sent without one")
    try:
        if not body.isascii():
            body.decode()  # the parser does not look into strings that it skips
        head = decoder.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} cannot be decoded") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not head.model:
        raise InvalidRequest("'model' is empty; GET /v1/models lists the names", param="model")
    return head


def _refusal(reason: str) -> InvalidRequest:
    """Msgspec's words, with its ``$.path`` as OpenAI's ``param``."""
    what, _, path = reason.partition(" - at `$")
    param = path.rstrip("`").removeprefix(".") or None
    if what.startswith("Object missing required field") and param is None:
        param = what.partition("`")[2].partition("`")[0] or None
    where = f"'{param}': " if param else ""
    return InvalidRequest(f"{where}{what[:1].lower()}{what[1:]}", param=param)
