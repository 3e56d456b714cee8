"""The one who writes a scope's document: a loop turn's changes in one write, one write at a time.

Each write names the revision that it was decided on, so two replicas never decide on the same one: the later
write is refused, and decided anew on what the first one left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Final, Protocol

from tierfall.errors import (
    BusDown,
    BusError,
    Conflict,
    PayloadTooLarge,
    StoreUnavailable,
    StoreUnreadable,
)
from tierfall.ledger.account import Account, Stamp, pack_account, unpack_account
from tierfall.ledger.booking import reserve
from tierfall.ledger.spent import Spent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from tierfall.ledger.booking import Grant, Wish
    from tierfall.ledger.outage import Outage
    from tierfall.store import Entry

    Change = Callable[[Account, float], object]

STORE_TIMEOUT_S: Final = 1.0
"""For one read or write, which takes a millisecond or two; one without an answer is looked up."""
FRESH_S: Final = 1.0
"""A document that is not older is known well enough to refuse by; to grant, none is too old."""
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 1.0
JITTER_S: Final = 0.002
"""Most that a writer waits after its second conflict; twice as long after each further one."""
JITTER_MAX_S: Final = 0.064

_log: Final = logging.getLogger("tierfall.ledger")


class Clock(Protocol):
    """What a teller needs of :class:`tierfall.store.StoreClock`."""

    def now(self) -> float:
        """Unix seconds."""

    async def sync(self) -> None:
        """Makes sure that it is right; returns at once when it has been made sure of lately."""


class Store(Protocol):
    """What a teller needs of :class:`tierfall.store.Bucket`."""

    @property
    def clock(self) -> Clock:
        """The time that all who share the store go by."""

    async def get(self, key: str) -> Entry | None:
        """The document and its revision."""

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> int:
        """Writes, if the revision is still the expected one."""


class WishSlip:
    """A wish on its way, and whoever waits for it."""

    __slots__ = ("answer", "id", "wish")

    def __init__(self, wish: Wish, id_: str, answer: asyncio.Future[Grant]) -> None:
        self.wish = wish
        self.id = id_
        self.answer = answer


class Outcome:
    """What a batch came to on one revision of the document."""

    def __init__(self, batch: list[WishSlip | Change]) -> None:
        self.covers = frozenset(map(id, batch))
        self.granted: list[tuple[WishSlip, Grant]] = []
        self.refused: list[tuple[WishSlip, Spent]] = []


class Teller:
    """Works through what is to be changed in one scope's document.

    Args:
        scope: The document's key.
        store: Where it is.
        writer: The id of this replica among all writers.
        outage: Of the store, shared by all its tellers.
        refund: Called with a grant that nobody waits for any longer.
    """

    def __init__(
        self,
        scope: str,
        store: Store,
        *,
        writer: str,
        outage: Outage,
        refund: Callable[[Grant], None],
    ) -> None:
        self._scope = scope
        self._store = store
        self._writer = writer
        self._outage = outage
        self._refund = refund
        self._loop = asyncio.get_running_loop()
        self._queue: list[WishSlip | Change] = []
        self._task: asyncio.Task[None] | None = None
        self._document = b""
        self._revision = 0
        self._read_at = float("-inf")
        self._number = 0
        self._unknown: dict[int, Outcome] = {}
        """Writes of the last batch that had no answer, by number."""
        self._wake = asyncio.Event()
        self.writes = 0
        self.conflicts = 0

    @property
    def account(self) -> Account:
        """The document as it was last read or written here."""
        return unpack_account(self._document, self._scope) if self._revision else Account()

    def put(self, what: WishSlip | Change) -> None:
        """Adds to the next batch, which begins with the next turn of the loop.

        A wish fails at once while it is known that the store does not answer.
        """
        if isinstance(what, WishSlip) and self._outage.lasting:
            refusal = self._outage.refusal()
            if refusal is not None:
                what.answer.set_exception(refusal)
                return
            self._wake.set()  # this one finds out whether it does by now
        self._queue.append(what)
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._work(), name=f"teller {self._scope}")

    async def idle(self) -> None:
        """Waits until nothing is left to write."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """Gives up what is not written yet."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        batch: list[WishSlip | Change] = []
        pause_s = RETRY_MIN_S
        while batch or self._queue or self._unknown:
            batch += self._queue
            self._queue.clear()
            try:
                outcome = await self._write(batch)
            except Exception as error:  # noqa: BLE001 - whoever waits is told, and the next batch has its own try
                batch = self._give_up(batch, error)
                await self._pause(random.uniform(0.5, 1.0) * pause_s)  # noqa: S311 - no secret depends on it
                pause_s = min(2 * pause_s, RETRY_MAX_S)
            else:
                self._tell(outcome)
                batch = [each for each in batch if id(each) not in outcome.covers]
                pause_s = RETRY_MIN_S

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _write(self, batch: list[WishSlip | Change]) -> Outcome:
        """Decides the batch and writes it, as often as others are faster."""
        await self._store.clock.sync()
        looked = bool(self._unknown)
        if looked:
            await self._read()
        tries = 0
        while True:
            account = self.account
            made = self._made(account)
            if made is not None:
                return made
            now = self._store.clock.now()
            outcome = self._decide(account, batch, now)
            if not outcome.granted and all(isinstance(each, WishSlip) for each in batch):
                if looked or self._loop.time() - self._read_at <= FRESH_S:
                    self._unknown.clear()  # one that is made yet counts for nobody, until it is over
                    return outcome
                await self._read()
                looked = True
                continue
            try:
                await self._try_write(account, outcome, now)
            except Conflict:
                self.conflicts += 1
                tries += 1
                if tries > 1:
                    most_s = min(JITTER_S * 2 ** (tries - 2), JITTER_MAX_S)
                    await asyncio.sleep(random.uniform(0, most_s))  # noqa: S311 - no secret depends on it
                await self._read()
                looked = True
            else:
                return outcome

    def _made(self, account: Account) -> Outcome | None:
        """The outcome of a write without an answer, if it was made after all; its batch is done then."""
        stamp = account.writers.get(self._writer)
        made = self._unknown.get(stamp.number) if stamp is not None else None
        if made is not None:
            self._unknown.clear()
        return made

    def _decide(self, account: Account, batch: list[WishSlip | Change], now: float) -> Outcome:
        at = account.clock(now)
        account.tidy(at)
        outcome = Outcome(batch)
        for each in batch:
            if not isinstance(each, WishSlip):
                each(account, at)
            elif not each.answer.done():
                try:
                    grant = reserve(account, self._scope, each.id, each.wish, at)
                except Spent as spent:
                    # Its traceback has this frame, and this frame the outcome.
                    outcome.refused.append((each, spent.with_traceback(None)))
                else:
                    outcome.granted.append((each, grant))
        return outcome

    async def _try_write(self, account: Account, outcome: Outcome, now: float) -> None:
        self._number += 1
        number = self._number
        account.writers[self._writer] = Stamp(number, now)
        document = pack_account(account)
        self._unknown[number] = outcome
        try:
            async with _answer_within(f"a write of {self._scope}"):
                revision = await self._store.put(self._scope, document, expected=self._revision)
        except (Conflict, BusDown):
            del self._unknown[number]  # surely not made
            raise
        except StoreUnavailable:
            self._outage.write_failed()
            raise
        self._outage.over()
        # Writes of this batch without an answer are decided by this one: they expected the same revision.
        self._unknown.clear()
        self.writes += 1
        self._document, self._revision = document, revision
        self._read_at = self._loop.time()

    async def _read(self) -> None:
        asked_at = self._loop.time()
        async with _answer_within(f"a read of {self._scope}"):
            entry = await self._store.get(self._scope)
        self._outage.read()
        self._document = entry.value if entry is not None else b""
        self._revision = entry.revision if entry is not None else 0
        self._read_at = asked_at

    def _give_up(self, batch: list[WishSlip | Change], error: Exception) -> list[WishSlip | Change]:
        """Tells those who have waited long enough; what is left of the batch is tried again."""
        known = isinstance(error, (BusError, TimeoutError))
        if not known or isinstance(error, (PayloadTooLarge, StoreUnreadable)):
            # One that cannot be read stays as it is: to write over it would open a limit that may be spent.
            trace = None if known else error
            _log.error("the document %s cannot be changed: %s", self._scope, error, exc_info=trace)
            self._fail(batch, error)
            self._revision, self._document, self._read_at = 0, b"", float("-inf")
            self._unknown.clear()
            return []
        if self._outage.failed(error):
            _log.warning("the document %s cannot be reached: %s", self._scope, error)
        if self._outage.lasting:
            self._fail(batch, error)
        return [each for each in batch if not (isinstance(each, WishSlip) and each.answer.done())]

    def _fail(self, batch: Iterable[WishSlip | Change], error: Exception) -> None:
        for each in batch:
            if isinstance(each, WishSlip) and not each.answer.done():
                each.answer.set_exception(error)

    def _tell(self, outcome: Outcome) -> None:
        for slip, grant in outcome.granted:
            if slip.answer.done():
                self._refund(grant)  # who wanted it has gone
            else:
                slip.answer.set_result(grant)
        for slip, spent in outcome.refused:
            if not slip.answer.done():
                slip.answer.set_exception(spent)


@contextlib.asynccontextmanager
async def _answer_within(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            yield
    except TimeoutError:
        raise StoreUnavailable(f"JetStream did not answer {what} within {STORE_TIMEOUT_S:g} s") from None
