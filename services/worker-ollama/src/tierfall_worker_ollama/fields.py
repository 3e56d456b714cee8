"""Taking typed fields out of a request body, with errors that name the field as OpenAI does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

# msgspec ends its messages with the place: "Expected `str`, got `int` - at `$[0].role`".
_PLACE: Final = re.compile(r" - at `\$?(?P<path>[^`]*)`$")
NULL: Final = b"null"


def take(body: Mapping[str, msgspec.Raw], name: str, kind: Any) -> Any:
    """The field ``name`` as ``kind``; ``None`` when it is missing or null.

    Raises:
        InvalidRequest: It has another type; ``param`` is its path (``messages[0].role``).
    """
    raw = body.get(name)
    if raw is None or bytes(raw) == NULL:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise wrong(name, error) from None


def wrong(name: str, error: Exception) -> InvalidRequest:
    """The error for a field that does not decode, at the place that msgspec names."""
    text = str(error)
    place = _PLACE.search(text)
    if place is None:
        return InvalidRequest(f"{name}: {text}", param=name)
    param = name + place["path"].replace("[...]", "")
    return InvalidRequest(f"{param}: {text[: place.start()]}", param=param)
