"""Client keys: who may call, which models, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tierfall.errors import KeyRefused, ModelForbidden
from tierfall.keys import config_scope, digest

if TYPE_CHECKING:
    from tierfall.config import ApiKey, Config, Limits, Server
    from tierfall_ingress.stored import StoredKeys

_SCHEME: Final = "bearer"


class Allowance(NamedTuple):
    """What a key may use, and the ledger's account in which it is counted."""

    scope: str
    limits: Limits


class Caller(NamedTuple):
    """Whom a request comes from, as far as the gateway knows."""

    name: str
    models: frozenset[str] | None
    """The models that the caller may use; ``None`` for all."""
    allowance: Allowance | None = None
    """``None`` for a key without limits: nothing is counted."""

    def may_use(self, model: str) -> bool:
        """Whether the key allows this model."""
        return self.models is None or model in self.models

    def ladder(self, config: Config, model: str) -> tuple[str, ...]:
        """The ladder of a model that the caller may use, without the fallbacks that it may not."""
        names = config.ladder(model)
        return names if self.models is None else tuple(name for name in names if self.may_use(name))

    def check(self, model: str) -> None:
        """Raises :class:`ModelForbidden` unless the key allows this model."""
        if not self.may_use(model):
            raise ModelForbidden(f"this API key may not use model {model!r}", param="model")


ANYBODY: Final = Caller("anybody", None)


class KeyRing:
    """The keys of the config and, with ``server.stored_keys``, those that NATS keeps; all by their digest.

    With neither, anybody may call (the config allows that on loopback only). Why a digest may be looked up in
    a table, and need not be compared with each, is told in :mod:`tierfall.keys.secret`.

    Attributes:
        open: Whether anybody may call.
    """

    def __init__(self, server: Server, stored: StoredKeys | None = None) -> None:
        self._callers = {
            digest(key.key.value): _caller(key, number) for number, key in enumerate(server.api_keys, start=1)
        }
        self._admins = frozenset(digest(key.value) for key in server.admin_keys)
        self._stored = stored
        self.open = not self._callers and stored is None

    @property
    def has_admins(self) -> bool:
        """Whether operators' pages need a key."""
        return bool(self._admins)

    def is_admin(self, key: str) -> bool:
        """Whether this is an operator's key."""
        return bool(self._admins) and digest(key) in self._admins

    def caller(self, authorization: str | None) -> Caller:
        """Who sends this ``Authorization`` header.

        Raises:
            KeyRefused: There are keys, and this is none of them.
            StoreUnavailable: It may be one that NATS keeps, and those have not been read yet.
        """
        if self.open:
            return ANYBODY
        if not authorization:
            raise KeyRefused("no API key: send it as 'Authorization: Bearer KEY'")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != _SCHEME or not key.strip():
            raise KeyRefused("the Authorization header is not of the form 'Bearer KEY'")
        shown = digest(key.strip())
        found = self._callers.get(shown)
        if found is None and self._stored is not None:
            found = self._stored.find(shown)
        if found is None:
            raise KeyRefused("this API key is not known here")
        return found


def _caller(key: ApiKey, number: int) -> Caller:
    name = key.name or f"key-{number}"
    models = None if key.models is None else frozenset(key.models)
    return Caller(name, models, Allowance(config_scope(name), key.limits) if key.limits else None)
