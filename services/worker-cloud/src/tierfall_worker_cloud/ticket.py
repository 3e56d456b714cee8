"""A request that may go out with one of the tier's keys, and what becomes of its reservation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tierfall.chat.weight import chunk_bytes
from tierfall.chat.weight import tokens as count
from tierfall.errors import (
    BackendDown,
    InvalidRequest,
    OutOfFiles,
    ProviderRefused,
    QuotaExhausted,
    RateLimited,
)
from tierfall.ledger import Bench, Limit, Metric, Window
from tierfall.upstream import KEY_REFUSED
from tierfall_worker_cloud import said, tokens

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from tierfall.ledger import Grant, Ledger
    from tierfall.quota import Plan
    from tierfall.worker import Ask
    from tierfall_worker_cloud.access import Access
    from tierfall_worker_cloud.providers import Provider
    from tierfall_worker_cloud.tokens import Estimate

UNPAID_S: Final = 60.0
"""How long a key whose provider calls its quota spent is left alone, when it does not say until when."""
_LIMITED: Final = frozenset({200, 402, 429, 498})
"""The statuses that speak of a limit; Groq's 413 speaks of the one request that is above it."""


class Reservation:
    """What a ticket has reserved in the ledger.

    Args:
        ledger: Where.
        plan: The model's quota.
        grant: What was granted.
        estimate: Its tokens.
    """

    def __init__(self, ledger: Ledger, plan: Plan, grant: Grant, estimate: Estimate) -> None:
        self.ledger = ledger
        self.plan = plan
        self.grant = grant
        self.estimate = estimate


class Ticket:
    """One attempt with one key; :meth:`close` must be called once, whatever happens.

    Args:
        access: The key.
        provider: Whose it is.
        of: The provider's name of the model.
        reservation: What it holds in the ledger, where the model has a quota.

    Attributes:
        access: Likewise.
        counts: Whether tokens are counted.
    """

    def __init__(
        self, access: Access, provider: Provider, of: str, reservation: Reservation | None = None
    ) -> None:
        self.access = access
        self._provider = provider
        self._of = of
        self._reservation = reservation
        self._sent = False
        self._status = 0
        self._chunks = 0
        self._size = 0
        self._used: int | None = None
        self.counts = reservation is not None and any(
            part.metric is Metric.TOKENS for part in reservation.grant.parts
        )

    @property
    def wait_s(self) -> float:
        """Seconds until it is this request's turn; 0 or less when it is."""
        held = self._reservation
        return 0.0 if held is None else held.grant.turn - held.ledger.now()

    def send(self, ask: Ask, body: bytes) -> AsyncGenerator[bytes, None]:
        """Asks the provider: from here on it may have heard of it."""
        self._sent = True
        return self.access.upstream.answer(ask.operation, body, ask.trace_headers, self._head)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer's status and headers are there: what they say of limits corrects our count."""
        self._status = status
        held = self._reservation
        if held is not None and self._provider.gauges:
            found = list(said.words(self._provider.gauges, headers, held.plan.limits))
            if found:
                held.ledger.heed(self.access.scope, found)

    def saw(self, payload: bytes) -> None:
        """A chunk has come; only told where tokens count."""
        self._chunks += 1
        self._size += chunk_bytes(payload)
        self._used = tokens.used(payload) or self._used

    def close(self, error: BaseException | None) -> None:
        """The attempt is over: settles what it reserved, and leaves alone what the provider spoke of."""
        if isinstance(error, RateLimited | QuotaExhausted) and self._status in _LIMITED:
            self._rest(error)
        held = self._reservation
        if held is None:
            return
        if not self._sent or isinstance(error, BackendDown | OutOfFiles | ProviderRefused):
            held.ledger.refund(held.grant)
        elif self.counts:
            held.ledger.settle(held.grant, {Metric.TOKENS: self._tokens(held.estimate, error)})

    def _tokens(self, estimate: Estimate, error: BaseException | None) -> int:
        if self._used is not None:
            return self._used
        if isinstance(error, RateLimited | QuotaExhausted | InvalidRequest):
            return 0  # refused before a token of it was read
        return estimate.prompt + count(self._chunks, self._size)

    def _rest(self, error: RateLimited | QuotaExhausted) -> None:
        lasting = isinstance(error, QuotaExhausted)
        of = self._of if not lasting or self._provider.spent_by_model else ""
        wait_s = error.retry_after
        if lasting and self._provider.spent_by_model:
            wait_s = self._until_midnight()
        elif lasting and wait_s is None:
            wait_s = UNPAID_S
        if wait_s is None:
            return
        why = self.access.redactor.text(error.message)  # clients read it, from the ledger too
        self.access.rest(of, wait_s, why, lasting=lasting)
        held = self._reservation
        if held is not None:
            now = held.ledger.now()
            found = Bench(now + wait_s, why, lasting, since=now)
            held.ledger.bench(self.access.scope, of, found)

    def _until_midnight(self) -> float:
        held = self._reservation
        now = time.time() if held is None else held.ledger.now()
        day = Limit(Metric.REQUESTS, 0, Window.DAY, self._zone())
        return day.counts_until(day.cell_start(now)) - now

    def _zone(self) -> str:
        held = self._reservation
        return self._provider.zone if held is None else held.plan.zone


def concerns_key(error: BaseException) -> bool:
    """Whether another key of the same tier may do better."""
    if isinstance(error, ProviderRefused):
        return error.code == KEY_REFUSED
    return isinstance(error, RateLimited | QuotaExhausted)
