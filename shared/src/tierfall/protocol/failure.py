"""An error of the tree as it crosses a process border."""

from __future__ import annotations

from typing import Final

import msgspec

from tierfall.errors import ERROR_CLASSES, BackendFault, TierfallError


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One error: ``slug`` names its class, the rest is what differs from the class's defaults."""

    slug: str
    message: str
    status: int
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Failure)


def pack_failure(error: TierfallError) -> bytes:
    """The payload of an ERROR frame."""
    return _encoder.encode(
        Failure(
            slug=error.slug,
            message=error.message,
            status=error.status,
            code=error.code,
            param=error.param,
            retry_after=error.retry_after,
            should_retry=error.should_retry,
        )
    )


def unpack_failure(payload: bytes) -> TierfallError:
    """The error of an ERROR frame; a class or bytes that this version does not know is a backend fault."""
    try:
        failure = _decoder.decode(payload)
    except msgspec.DecodeError:
        return BackendFault("the worker reported an error that this ingress cannot read")
    known = ERROR_CLASSES.get(failure.slug, BackendFault)
    return known(
        failure.message,
        param=failure.param,
        code=failure.code,
        status=failure.status,
        retry_after=failure.retry_after,
        should_retry=failure.should_retry,
    )
