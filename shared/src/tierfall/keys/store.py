"""Making, listing and revoking keys: what ``tierfall keys`` does."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Final

from tierfall.errors import BusError, ConfigError, Conflict, StoreUnavailable, StoreUnreadable
from tierfall.keys.record import KeyRecord, pack_record, unpack_record
from tierfall.keys.secret import digest, hint, new_key
from tierfall.ledger import Ledger
from tierfall.store import KEYS, QUOTA, Bucket, names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tierfall.bus import Bus
    from tierfall.config import Limits
    from tierfall.ledger import Account

ID_BYTES: Final = 8
CREATE: Final = names.create(KEYS)
"""Named in the message of who may not make the bucket."""


class KeyStore:
    """The stored keys.

    Args:
        bus: Connected as somebody who may write the bucket.
        replicas: As :class:`tierfall.store.Bucket`'s.
    """

    def __init__(self, bus: Bus, replicas: int = 0) -> None:
        self._keys = Bucket(bus, KEYS, replicas=replicas)
        self._quota = Bucket(bus, QUOTA, replicas=replicas)

    async def create(self, name: str, models: Sequence[str] | None, limits: Limits) -> str:
        """Makes a key; every ingress lets it in within a second.

        Args:
            name: Under which it is listed, logged and revoked.
            models: The models that it may use; ``None`` for all.
            limits: What it may use.

        Returns:
            The key, which is kept nowhere.

        Raises:
            ConfigError: There is one of this name.
            BusError: It cannot be stored; the message says why.
        """
        await self._ensure()
        key = new_key()
        record = KeyRecord(
            id=secrets.token_hex(ID_BYTES),
            digest=digest(key).hex(),
            hint=hint(key),
            created_at=int(time.time()),
            models=None if models is None else tuple(models),
            limits=limits,
        )
        try:
            await self._keys.put(name, pack_record(record), expected=0)
        except Conflict:
            raise ConfigError(
                f"there is a key named {name} already; revoke it, or choose another name"
            ) from None
        return key

    async def all(self) -> tuple[dict[str, KeyRecord], list[str]]:
        """The keys by name, and the names of those whose records this version cannot read.

        Raises:
            BusError: They cannot be read; the message says why.
        """
        await self._ensure()
        found: dict[str, KeyRecord] = {}
        unreadable = []
        for name, entry in sorted((await self._keys.entries()).items()):
            try:
                found[name] = unpack_record(entry.value)
            except ValueError:
                unreadable.append(name)
        return found, unreadable

    async def _ensure(self) -> None:
        try:
            await self._keys.ensure()
        except StoreUnavailable as error:
            if CREATE in error.message:
                # Only an ingress may make it, where users are those of `tierfall nats-config`.
                raise StoreUnavailable(
                    f"the bucket {KEYS} is not there yet: start an ingress with server.stored_keys: true"
                ) from None
            raise

    async def accounts(self, keys: Mapping[str, KeyRecord]) -> dict[str, Account]:
        """What each of these has used, by name; only of those with limits.

        Raises:
            BusError: It cannot be read; the message says why.
        """
        ledger = Ledger(self._quota)
        found = {}
        for name, record in keys.items():
            if record.limits:
                try:
                    found[name] = await ledger.look(record.scope)
                except StoreUnreadable as error:
                    raise StoreUnreadable(f"what {name} has used is not known: {error.message}") from None
        return found

    def now(self) -> float:
        """The Unix time that the accounts go by; right once :meth:`accounts` has been called."""
        return self._quota.clock.now()

    async def revoke(self, name: str) -> bool:
        """Ends a key; no ingress lets it in any more within a second. Requests under way go on.

        Returns:
            Whether there was one of this name.

        Raises:
            BusError: It cannot be deleted; the message says why.
        """
        await self._ensure()
        entry = await self._keys.get(name)
        if entry is None:
            return False
        await self._keys.delete(name)
        with contextlib.suppress(ValueError, BusError):  # its account harms nobody
            scope = unpack_record(entry.value).scope
            if await self._quota.get(scope) is not None:
                await self._quota.delete(scope)
        return True
