"""That the store does not answer, known to all who would ask it next."""

from __future__ import annotations

import time
from typing import Final

from tierfall.errors import BusError, StoreAbsent, StoreUnavailable

PATIENCE_S: Final = 5.0
"""How long wishes wait for a store that has ceased to answer, as while a NATS server is restarted."""
REMEMBERED_S: Final = 2.0
"""After that, one wish in so many seconds finds out whether it answers again; all others fail at once."""


class Outage:
    """One store's, shared by all tellers of a ledger."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._writes_fail = False
        self._why = ""
        self._next_try = 0.0

    @property
    def lasting(self) -> bool:
        """Whether the store has not answered for longer than a wish waits."""
        return self._since is not None and time.monotonic() - self._since >= PATIENCE_S

    def failed(self, error: Exception) -> bool:
        """A read or write has failed; whether it is the first one that did."""
        first = self._since is None
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if isinstance(error, StoreAbsent):
            self._since = float("-inf")  # it will not come by waiting
        if not self.lasting or first:
            self._next_try = now + REMEMBERED_S
        self._why = error.message if isinstance(error, BusError) else str(error) or "no answer in time"
        return first

    def write_failed(self) -> None:
        """What failed is a write: NATS answers reads also while it cannot write its store."""
        self._writes_fail = True

    def read(self) -> None:
        """The store has answered a read."""
        if not self._writes_fail:
            self._since = None

    def over(self) -> None:
        """The store has made a write."""
        self._since = None
        self._writes_fail = False

    def refusal(self) -> StoreUnavailable | None:
        """What to refuse a wish with, without asking the store; None: ask it."""
        if not self.lasting:
            return None
        now = time.monotonic()
        if now >= self._next_try:
            self._next_try = now + REMEMBERED_S
            return None
        return StoreUnavailable(self._why)
