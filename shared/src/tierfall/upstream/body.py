"""The request body on its way to an engine: what the gateway must set is set, the rest keeps its bytes."""

from __future__ import annotations

from typing import Final

import msgspec

from tierfall.errors import InvalidRequest

Body = dict[str, msgspec.Raw]

_TRUE: Final = msgspec.Raw(b"true")
_encoder: Final = msgspec.json.Encoder()
_listed: Final = msgspec.json.Decoder(list[msgspec.Raw])
_options: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


def prepare(body: Body, backend_model: str, *, include_usage: bool = True) -> None:
    """Makes a client's body a streaming request for ``backend_model``, in place.

    Args:
        body: The client's JSON object; the values' bytes are kept.
        backend_model: The name that the engine knows the model by.
        include_usage: Whether the engine takes ``stream_options``; otherwise they are taken out.

    Raises:
        InvalidRequest: ``stream_options`` is neither an object nor null.
    """
    set_model(body, backend_model)
    body["stream"] = _TRUE
    if not include_usage:
        body.pop("stream_options", None)
        return
    try:
        options = _options.decode(body.get("stream_options", b"null")) or {}
    except msgspec.DecodeError:
        raise InvalidRequest("stream_options must be an object", param="stream_options") from None
    options["include_usage"] = _TRUE
    body["stream_options"] = msgspec.Raw(_encoder.encode(options))


def set_model(body: Body, backend_model: str) -> None:
    """Puts the name that the engine knows the model by into the body."""
    body["model"] = msgspec.Raw(_encoder.encode(backend_model))


def continued(messages: msgspec.Raw, text: str, *flags: str) -> msgspec.Raw:
    """The messages with the beginning of their answer behind them; what was there keeps its bytes.

    Args:
        messages: The request's.
        text: What the answer begins with.
        flags: Members of the added message that are set to true.

    Raises:
        InvalidRequest: ``messages`` is not an array.
    """
    try:
        listed = _listed.decode(messages)
    except msgspec.DecodeError:
        raise InvalidRequest("messages must be an array", param="messages") from None
    listed.append(
        msgspec.Raw(_encoder.encode({"role": "assistant", "content": text, **dict.fromkeys(flags, True)}))
    )
    return msgspec.Raw(_encoder.encode(listed))


def encode(body: Body) -> bytes:
    """The body as JSON text, each value's bytes as they are."""
    return _encoder.encode(body)
