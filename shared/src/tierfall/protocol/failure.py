"""An error of the tree as it crosses a process border."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from tierfall.errors import ERROR_CLASSES, BackendFault, TierfallError

MAX_WAIT_S: Final = 366 * 86_400.0
"""No provider's quota is reset later than that."""


Status = Annotated[int, msgspec.Meta(ge=400, le=599)]
"""No other status says that something failed."""
Wait = Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)]


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One error: ``slug`` names its class, the rest is what differs from the class's defaults."""

    slug: str
    message: str
    status: Status
    code: str | None = None
    param: str | None = None
    retry_after: Wait | None = None
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
            retry_after=None if error.retry_after is None else min(error.retry_after, MAX_WAIT_S),
            should_retry=error.should_retry,
        )
    )


def unpack_failure(payload: bytes) -> TierfallError:
    """The error of an ERROR frame; a class or bytes that this version does not know is a backend fault."""
    try:
        failure = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
