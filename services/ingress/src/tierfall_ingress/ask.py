"""What the ingress reads of a chat request: just what routing needs. The raw body travels on."""

from __future__ import annotations

from typing import Final

import msgspec

from tierfall.errors import InvalidRequest

MAX_CHOICES: Final = 128
"""OpenAI's own limit of ``n``."""


class StreamOptions(msgspec.Struct):
    """``stream_options``, as far as it is read."""

    include_usage: bool | None = None


class _Head(msgspec.Struct):
    model: str
    messages: list[dict[str, msgspec.Raw]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None


class Ask(msgspec.Struct, frozen=True):
    """One chat request, ready to be sent up the ladder."""

    model: str
    body: bytes
    streaming: bool
    include_usage: bool
    choices: int
    """How many answers are asked for: ``n``."""


_BOM: Final = b"\xef\xbb\xbf"
_head: Final = msgspec.json.Decoder(_Head)


def parse_ask(body: bytes) -> Ask:
    """Checks what has to be right for any backend, and reads what routing needs.

    Of two members with the same name the last counts, as in Python's and JavaScript's own parsers, and it is
    the only one that travels on.

    Raises:
        InvalidRequest: With ``param`` where the fault has a place; never with a value of the body.
    """
    head = _decode(body)
    if not head.model:
        raise InvalidRequest("'model' is empty; GET /v1/models lists the names", param="model")
    if not head.messages:
        raise InvalidRequest("'messages' is empty; send at least one message", param="messages")
    if head.n is not None and not 1 <= head.n <= MAX_CHOICES:
        raise InvalidRequest(f"'n' must be from 1 to {MAX_CHOICES}", param="n")
    streaming, options = bool(head.stream), head.stream_options
    if options is not None and not streaming:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true", param="stream_options")
    include_usage = bool(options is not None and options.include_usage)
    return Ask(
        model=head.model,
        body=body,
        streaming=streaming,
        include_usage=include_usage,
        choices=1 if head.n is None else head.n,
    )


def _decode(body: bytes) -> _Head:
    if not body or body.isspace():
        raise InvalidRequest("the body is empty; send a JSON object with 'model' and 'messages'")
    if body.startswith(_BOM):
        raise InvalidRequest("the body begins with a byte order mark; JSON is sent without one")
    try:
        if not body.isascii():
            body.decode()  # the parser does not look into strings that it skips
        return _head.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} cannot be decoded") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def _refusal(reason: str) -> InvalidRequest:
    """Msgspec's words, with its ``$.path`` as OpenAI's ``param``."""
    what, _, path = reason.partition(" - at `$")
    param = path.rstrip("`").removeprefix(".") or None
    if what.startswith("Object missing required field") and param is None:
        param = what.partition("`")[2].partition("`")[0] or None
    where = f"'{param}': " if param else ""
    return InvalidRequest(f"{where}{what[:1].lower()}{what[1:]}", param=param)
