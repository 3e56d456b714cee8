"""Following a bucket: its entries, then every change, whatever happens to the connection or the server.

It reads through an ordered consumer: ephemeral, without acknowledgements, with a count of its own in every
message and a heartbeat when there is none. A gap in the count, silence, or a reconnect ends it; the next one
begins with the last entry of every key again, so there is no place from which it would have to go on, and
nothing that could be missed. What is gone meanwhile, even with the whole stream, is told as deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Final

from tierfall.errors import BusError, StoreUnavailable
from tierfall.store import feed, names
from tierfall.store.entry import Entry
from tierfall.store.jetstream import Refused, ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tierfall.bus import Bus

logger = logging.getLogger("tierfall.store")

RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 5.0


class Watch:
    """Made by :meth:`tierfall.store.Bucket.watch`; it runs until it is closed.

    Args:
        bus: The connection.
        bucket: The bucket's name.
        ensure: Makes the bucket if it is not there.
        callback: Called with each entry, in the order of their changes, on the event loop. It may get an
            entry that it has had already, and must not raise: what it misses it does not get again.
    """

    def __init__(
        self,
        bus: Bus,
        bucket: str,
        ensure: Callable[[], Awaitable[object]],
        callback: Callable[[Entry], None],
    ) -> None:
        self.problem = ""
        """Why the bucket cannot be followed at the moment; empty while it is."""
        self._bus = bus
        self._bucket = bucket
        self._ensure = ensure
        self._callback = callback
        self._live: set[str] = set()
        self._complete = asyncio.Event()
        self._broken = asyncio.Event()
        self._closed = False
        bus.on_state(self._on_state)
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"watch {bucket}")

    @property
    def complete(self) -> bool:
        """Whether all that was there at the beginning has been told, once; it stays so."""
        return self._complete.is_set()

    async def wait_complete(self) -> None:
        """Returns once :attr:`complete`; for ever without JetStream, so give it a timeout."""
        await self._complete.wait()

    async def close(self) -> None:
        """Tells nothing any more. Again, it does nothing."""
        self._closed = True
        self._task.cancel()
        await asyncio.wait([self._task])

    def _on_state(self, connected: bool) -> None:  # noqa: FBT001 - the bus calls it so
        # What was on its way when the connection broke is lost.
        if connected and not self._closed:
            self._broken.set()

    async def _keep(self) -> None:
        delay_s = RETRY_MIN_S
        while True:
            try:
                await self._follow()
                delay_s = RETRY_MIN_S
            except BusError as error:
                if error.message != self.problem:
                    logger.warning("cannot follow the bucket %s: %s", self._bucket, error.message)
                self.problem = error.message
                delay_s = min(2 * delay_s, RETRY_MAX_S)
            self._broken.clear()
            # A moment's rest, which a reconnect ends.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s * random.uniform(0.5, 1.0)):  # noqa: S311 - no secret
                    await self._broken.wait()
            self._broken.clear()

    async def _follow(self) -> None:
        """One consumer's life, to its end."""
        await self._ensure()
        current = feed.Feed(self._bucket, self._tell, self._caught_up, self._broken.set)
        inbox = self._bus.inbox()
        subscription = await self._bus.subscribe(inbox, current.take)
        try:
            try:
                begun = await ask(
                    self._bus,
                    names.consume(self._bucket, f"{current.name}.{names.entries(self._bucket)}"),
                    feed.consumer(self._bucket, current.name, inbox),
                )
            except Refused as error:
                raise StoreUnavailable(f"JetStream does not read {self._bucket}: {error.text}") from None
            current.begin(begun)
            if self.problem:
                logger.info("following the bucket %s again", self._bucket)
            self.problem = ""
            await self._until_broken(current)
        finally:
            current.end()
            # NATS removes a consumer that nobody listens to.
            await subscription.close()

    async def _until_broken(self, current: feed.Feed) -> None:
        while not self._broken.is_set():
            try:
                async with asyncio.timeout(feed.SILENT_S):
                    await self._broken.wait()
            except TimeoutError:
                if current.silent():
                    return

    def _tell(self, entry: Entry) -> None:
        if entry.deleted:
            self._live.discard(entry.key)
        else:
            self._live.add(entry.key)
        self._callback(entry)

    def _caught_up(self, seen: set[str]) -> None:
        """All that is there has been told; whatever else was told before is there no more."""
        for key in sorted(self._live - seen):
            self._tell(Entry(key, b"", 0, deleted=True))
        self._complete.set()
