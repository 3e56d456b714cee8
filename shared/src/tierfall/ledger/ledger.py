"""The ledger: whoever is about to use something asks here first."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from typing import TYPE_CHECKING, Final

from tierfall.ledger.account import Account, unpack_account
from tierfall.ledger.booking import bench, heed, refund, settle
from tierfall.ledger.outage import Outage
from tierfall.ledger.teller import Teller, WishSlip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tierfall.ledger.account import Bench
    from tierfall.ledger.booking import Grant, Wish, Word
    from tierfall.ledger.limit import Metric
    from tierfall.ledger.teller import Store

CLOSE_TIMEOUT_S: Final = 3.0


class Ledger:
    """One replica's way to the accounts that all replicas share.

    Args:
        store: The bucket; see :class:`tierfall.store.Bucket`.
    """

    def __init__(self, store: Store) -> None:
        self.outage = Outage()
        """That the store does not answer, when it does not."""
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._writer = secrets.token_hex(4)
        self._ids = itertools.count(1)
        self._tellers: dict[str, Teller] = {}

    async def reserve(self, scope: str, wish: Wish) -> Grant:
        """Counts a wish before it is used; in all its limits, or in none.

        Waits for the write only. When the grant's ``turn`` is in the future, waiting for it is the caller's.

        Args:
            scope: The account: up to 200 of ``A-Z a-z 0-9 - _ = . /``.
            wish: What is to be used.

        Returns:
            The grant, to be given to :meth:`settle` or :meth:`refund` once. Not needed where what was counted
            is what is used.

        Raises:
            Spent: It does not fit; nothing was counted.
            BusError: The store does not answer: nobody knows what is left.
            TimeoutError: Likewise.
        """
        answer: asyncio.Future[Grant] = self._loop.create_future()
        id_ = f"{self._writer}.{next(self._ids)}"
        self._teller(scope).put(WishSlip(wish, id_, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.refund(answer.result())  # it came just when nobody wanted it any longer
            raise
        finally:
            del answer  # a refusal's traceback holds this frame, and the future the refusal

    def settle(self, grant: Grant, actual: Mapping[Metric, int]) -> None:
        """Puts what was used in place of what was reserved; written soon, or once the store is back."""
        if any(part.metric in actual and part.reserved != actual[part.metric] for part in grant.parts) or any(
            part.reserved != part.estimate for part in grant.parts
        ):
            self._change(grant.scope, lambda account, _: settle(account, grant, actual))

    def refund(self, grant: Grant) -> None:
        """Takes a grant back of which nothing was used."""
        self._change(grant.scope, lambda account, _: refund(account, grant))

    def bench(self, scope: str, of: str, found: Bench) -> None:
        """Lets all replicas leave a part of a scope (empty: all of it) alone for a while."""
        self._change(scope, lambda account, _: bench(account, of, found))

    def heed(self, scope: str, words: Iterable[Word]) -> None:
        """Corrects counts by what a provider says is left."""
        found = tuple(words)

        def correct(account: Account, at: float) -> None:
            for word in found:
                heed(account, word, at)

        self._change(scope, correct)

    def known(self, scope: str) -> Account:
        """The account as this replica last read or wrote it: after an answer of :meth:`reserve`, with it."""
        teller = self._tellers.get(scope)
        return Account() if teller is None else teller.account

    def now(self) -> float:
        """Unix seconds by the clock that all who share the store go by."""
        return self._store.clock.now()

    async def look(self, scope: str) -> Account:
        """The account as it is :meth:`now`; for tools, which have no watch on it.

        Raises:
            BusError, TimeoutError: The store does not answer.
        """
        entry = await self._store.get(scope)
        if entry is None:
            return Account()  # it may be that nothing was ever stored, not even the bucket made
        await self._store.clock.sync()
        return unpack_account(entry.value, scope)

    async def close(self) -> None:
        """Writes what is still to be settled, within a few seconds."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for teller in self._tellers.values():
                    await teller.idle()
        except TimeoutError:
            pass
        for teller in self._tellers.values():
            await teller.stop()

    def _change(self, scope: str, change: Callable[[Account, float], object]) -> None:
        self._teller(scope).put(change)

    def _teller(self, scope: str) -> Teller:
        teller = self._tellers.get(scope)
        if teller is None:
            teller = self._tellers[scope] = Teller(
                scope,
                self._store,
                writer=self._writer,
                outage=self.outage,
                refund=self.refund,
            )
        return teller
