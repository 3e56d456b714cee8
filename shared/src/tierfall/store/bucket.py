"""A bucket: documents under keys, each changed by compare-and-set."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import TYPE_CHECKING, Any, Final, Self

from tierfall.errors import Conflict, StoreSilent, StoreUnavailable
from tierfall.store import names
from tierfall.store.clock import StoreClock
from tierfall.store.entry import Entry
from tierfall.store.jetstream import (
    NAME_IN_USE,
    NO_CLUSTER,
    NO_SUCH_MESSAGE,
    NO_SUCH_STREAM,
    WRONG_LAST_SEQUENCE,
    Refused,
    ask,
)
from tierfall.store.markers import DELETION, OPERATION, is_deletion
from tierfall.store.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierfall.bus import Bus

EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
CLUSTER_REPLICAS: Final = 3
LISTED_WITHIN_S: Final = 10.0
ROLLUP: Final = "allow_rollup_hdrs"
"""Whether one message to any key may wipe all others (``Nats-Rollup: all``). Nothing here needs it."""
DUPLICATES_NS: Final = 120 * 10**9


logger = logging.getLogger("tierfall.store")


class Bucket:
    """One JetStream key-value bucket with a history of one, the same that ``nats kv`` shows.

    Every method asks NATS once or twice and may be called at any time, also before the bucket is there; reads
    are answered by the stream's leader, so they see what was acknowledged before.

    Args:
        bus: The connection.
        name: The bucket's name: letters, digits, dash and underscore.
        replicas: On how many servers of a cluster it is kept: 1, 3 or 5. 0: as it is if it is there, else
            three in a cluster and one on a single server.

    Raises:
        ValueError: Not a bucket's name.
    """

    def __init__(self, bus: Bus, name: str, *, replicas: int = 0) -> None:
        if not names.NAME.fullmatch(name):
            raise ValueError(f"not a bucket's name (letters, digits, dash, underscore): {name!r}")
        self.name = name
        self.clock = StoreClock(bus, name)
        self._bus = bus
        self._replicas = replicas
        self._checked = False

    @classmethod
    async def open(cls, bus: Bus, name: str, *, replicas: int = 0) -> Self:
        """A bucket that is there, made if need be; see :meth:`ensure` for what it raises."""
        bucket = cls(bus, name, replicas=replicas)
        await bucket.ensure()
        return bucket

    async def ensure(self) -> str:
        """Makes the bucket if it is not there, and keeps it on as many servers as configured.

        One that an older version made allows rollups: that is ended, if this user may.

        Returns:
            When it was made, as NATS writes it: another time means another bucket.

        Raises:
            StoreUnavailable: There is no JetStream, or it refuses; the message says what to change.
            BusDown: NATS is not connected.
        """
        try:
            found = await self._info() or await self._create(self._replicas or CLUSTER_REPLICAS)
            config = found["config"]
            if self._replicas and config.get("num_replicas", 1) != self._replicas:
                config["num_replicas"] = self._replicas
                await ask(self._bus, names.update(self.name), config)
            if not self._checked and config.get(ROLLUP):
                await self._end_rollup(config)
            self._checked = True
            return str(found["created"])
        except Refused as error:
            hint = "; set nats.replicas: 1" if error.number == NO_CLUSTER else ""
            raise StoreUnavailable(f"JetStream refuses the bucket {self.name}: {error.text}{hint}") from None

    async def made(self) -> str | None:
        """When it was made, as :meth:`ensure` returns it; ``None``: it is not there.

        Raises:
            StoreUnavailable, BusDown: As :meth:`ensure`.
        """
        try:
            found = await self._info()
        except Refused as error:
            raise StoreUnavailable(f"JetStream does not show {self.name}: {error.text}") from None
        return None if found is None else str(found["created"])

    async def try_write(self) -> None:
        """Writes a few bytes under :data:`tierfall.store.names.TRIED`, to find out whether that works.

        Raises:
            StoreUnavailable: It does not; the message says what to do.
            BusDown: NATS is not connected.
        """
        try:
            await self._write(names.TRIED, b"{}", {}, None)
        except StoreSilent as error:
            await self.made()  # silent too when there is no leader, or no JetStream
            raise StoreUnavailable(
                f"{error.message}; it answers reads: NATS cannot write its store, most likely as its disk is"
                " full. nats-server's log names the cause. Make room; then nats-server must be started again"
                " (`tierfall up` does that by itself)"
            ) from None

    async def get(self, key: str) -> Entry | None:
        """What stands under the key now, if anything does.

        Raises:
            StoreUnavailable, BusDown: As :meth:`ensure`.
            ValueError: Not a key.
        """
        entry = await self._last(key)
        return None if entry is None or entry.deleted else entry

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> int:
        """Writes, if the key is as the caller knows it.

        Args:
            key: Letters, digits, ``- / _ =`` and single dots.
            value: At most :attr:`tierfall.bus.Bus.max_payload` bytes, less some for headers.
            expected: The revision that the key must have now; 0: it must not be there; ``None``: whatever.

        Returns:
            The new revision.

        Raises:
            Conflict: It is at another revision: nothing was written.
            StoreUnavailable: As :meth:`ensure`. If the answer was lost, the value may have been written: read
                it again before writing anything that depends on it.
            BusDown: NATS is not connected: nothing was written.
            PayloadTooLarge, ValueError: As :meth:`tierfall.bus.Bus.publish`.
        """
        try:
            return await self._write(key, value, {}, expected)
        except Conflict:
            if expected != 0:
                raise
            # A key that was deleted has a revision too: that of its deletion.
            last = await self._last(key)
            if last is None or not last.deleted:
                raise
            return await self._write(key, value, {}, last.revision)

    async def delete(self, key: str, expected: int | None = None) -> int:
        """Deletes a key, which need not be there; ``expected``, what it returns and raises as :meth:`put`."""
        return await self._write(key, b"", {OPERATION: DELETION}, expected)

    async def entries(self) -> dict[str, Entry]:
        """Everything that is there now, by key; for tools.

        Raises:
            StoreUnavailable, BusDown: As :meth:`ensure`.
        """
        await self.ensure()
        found: dict[str, Entry] = {}

        def take(entry: Entry) -> None:
            if not entry.deleted:
                found[entry.key] = entry

        watch = self.watch(take)
        try:
            async with asyncio.timeout(LISTED_WITHIN_S):
                await watch.wait_complete()
        except TimeoutError:
            why = watch.problem or f"not within {LISTED_WITHIN_S:g} s"
            raise StoreUnavailable(f"the bucket {self.name} cannot be read: {why}") from None
        finally:
            await watch.close()
        return found

    def watch(self, callback: Callable[[Entry], None]) -> Watch:
        """Tells of every entry that is there and then of every change, over restarts; see :class:`Watch`."""
        return Watch(self._bus, self.name, self.ensure, callback)

    async def _info(self) -> dict[str, Any] | None:
        try:
            found = await ask(self._bus, names.info(self.name), b"")
        except Refused as error:
            if error.number == NO_SUCH_STREAM:
                return None
            raise
        return found

    async def _create(self, replicas: int) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "name": names.stream(self.name),
            "subjects": [names.entries(self.name)],
            "storage": "file",
            "num_replicas": replicas,
            "max_msgs_per_subject": 1,
            "discard": "new",
            ROLLUP: False,
            "deny_delete": True,
            "allow_direct": True,
            "duplicate_window": DUPLICATES_NS,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_consumers": -1,
            "max_msg_size": -1,
            "retention": "limits",
        }
        try:
            return await ask(self._bus, names.create(self.name), wanted)
        except Refused as error:
            if error.number == NO_CLUSTER and not self._replicas:
                return await self._create(1)
            # Somebody with another config was quicker.
            if error.number != NAME_IN_USE or (found := await self._info()) is None:
                raise
            return found

    async def _end_rollup(self, found: dict[str, Any]) -> None:
        try:
            await ask(self._bus, names.update(self.name), {**found, ROLLUP: False})
        except (Refused, StoreUnavailable) as error:
            text = "the bucket %s still allows rollups, so a user who may write one key may wipe all: %s"
            logger.warning(text, self.name, error)

    async def _last(self, key: str) -> Entry | None:
        try:
            found = await ask(self._bus, names.read(self.name), {"last_by_subj": names.entry(self.name, key)})
        except Refused as error:
            if error.number in {NO_SUCH_MESSAGE, NO_SUCH_STREAM}:
                return None
            raise StoreUnavailable(f"JetStream does not read {self.name}: {error.text}") from None
        message = found["message"]
        block = base64.b64decode(message.get("hdrs", ""))
        return Entry(key, base64.b64decode(message.get("data", "")), message["seq"], is_deletion(block))

    async def _write(self, key: str, value: bytes, headers: dict[str, str], expected: int | None) -> int:
        if expected is not None:
            headers[EXPECTED] = str(expected)
        nobody = (
            f"the bucket {self.name} is not there: NATS has no JetStream, it was removed, or its servers are "
            "choosing a leader"
        )
        try:
            acknowledged = await ask(self._bus, names.entry(self.name, key), value, headers, nobody=nobody)
        except Refused as error:
            if error.number == WRONG_LAST_SEQUENCE:
                raise Conflict(f"{key} in {self.name} has changed meanwhile") from None
            raise StoreUnavailable(f"JetStream does not write {self.name}: {error.text}") from None
        return int(acknowledged["seq"])
