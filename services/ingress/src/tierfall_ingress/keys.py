"""Client keys: who may call, and which models."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

from tierfall.errors import KeyRefused, ModelForbidden

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall.config import ApiKey

_SCHEME: Final = "bearer"


class Caller(NamedTuple):
    """Whom a request comes from, as far as the gateway knows."""

    name: str
    models: frozenset[str] | None
    """The models that the caller may use; ``None`` for all."""

    def may_use(self, model: str) -> bool:
        """Whether the key allows this model."""
        return self.models is None or model in self.models

    def check(self, model: str) -> None:
        """Raises :class:`ModelForbidden` unless the key allows this model."""
        if not self.may_use(model):
            raise ModelForbidden(f"this API key may not use model {model!r}", param="model")


ANYBODY: Final = Caller("anybody", None)


class KeyRing:
    """The configured keys, hashed; with none, anybody may call (the config allows that on loopback only)."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._callers = [
            (
                _digest(key.key.value),
                Caller(key.name or f"key-{number}", None if key.models is None else frozenset(key.models)),
            )
            for number, key in enumerate(keys, start=1)
        ]

    def caller(self, authorization: str | None) -> Caller:
        """Who sends this ``Authorization`` header.

        Every key is compared, in constant time, so that the time taken tells nothing.

        Raises:
            KeyRefused: There are keys, and this is none of them.
        """
        if not self._callers:
            return ANYBODY
        if not authorization:
            raise KeyRefused("no API key: send it as 'Authorization: Bearer KEY'")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != _SCHEME or not key.strip():
            raise KeyRefused("the Authorization header is not of the form 'Bearer KEY'")
        digest = _digest(key.strip())
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise KeyRefused("this API key is not known here")
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
