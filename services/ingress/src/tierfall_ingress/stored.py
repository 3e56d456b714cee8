"""The keys that NATS keeps, as this ingress knows them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from tierfall.errors import StoreUnavailable
from tierfall.keys import unpack_record
from tierfall.store import KEYS, Bucket
from tierfall_ingress.keys import Allowance, Caller

if TYPE_CHECKING:
    from tierfall.bus import Bus
    from tierfall.store import Entry

FIRST_READ_S: Final = 2.0
"""How long an ingress that starts waits for the keys before it listens without them."""
AGAIN_S: Final = 1.0
"""When to ask again while the keys are still being read."""
_log: Final = logging.getLogger("tierfall.ingress")


class StoredKeys:
    """Follows the bucket, so that a key made or revoked anywhere counts here at once.

    While NATS is away the keys known last are let in; without NATS no request is answered anyhow.

    Args:
        bus: The ingress's.
        replicas: As :class:`tierfall.store.Bucket`'s.
    """

    def __init__(self, bus: Bus, replicas: int) -> None:
        self._callers: dict[bytes, Caller] = {}
        self._digests: dict[str, bytes] = {}
        self._watch = Bucket(bus, KEYS, replicas=replicas).watch(self._take)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._callers)

    @property
    def problem(self) -> str:
        """Why the keys cannot be followed at the moment; empty while they are."""
        return self._watch.problem

    def find(self, digest: bytes) -> Caller | None:
        """Whose key has this digest.

        Raises:
            StoreUnavailable: Nobody's that is known, but they have not all been read since the start.
        """
        found = self._callers.get(digest)
        if found is None and not self._watch.complete:
            why = self.problem or "they are being read"
            raise StoreUnavailable(f"the keys that NATS keeps are not known yet: {why}", retry_after=AGAIN_S)
        return found

    async def wait_read(self) -> None:
        """Waits until all keys are known, so that the first request of a new ingress is not put off.

        Not for long: without JetStream they never are, and the keys of the config work all the same.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_S):
                await self._watch.wait_complete()

    async def close(self) -> None:
        """Follows no more."""
        await self._watch.close()

    def _take(self, entry: Entry) -> None:
        if (known := self._digests.pop(entry.key, None)) is not None:
            del self._callers[known]
        if entry.deleted:
            return
        try:
            record = unpack_record(entry.value)
            digest = bytes.fromhex(record.digest)
        except ValueError as error:
            _log.error("the stored key %s cannot be read, so it is not let in: %s", entry.key, error)
            return
        self._digests[entry.key] = digest
        self._callers[digest] = Caller(
            entry.key,
            None if record.models is None else frozenset(record.models),
            Allowance(record.scope, record.limits) if record.limits else None,
        )
