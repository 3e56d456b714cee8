"""Which key a request goes out with: one that works, is not to be left alone, and has quota."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final

from tierfall.chat.limit import LIMITS, refuse_uncounted
from tierfall.errors import (
    BusError,
    InvalidRequest,
    QuotaExhausted,
    QuotaUnknown,
    RateLimited,
    TierfallError,
    UnsupportedByTier,
)
from tierfall.ledger import Metric, Spent, Wish
from tierfall.protocol.operation import Operation
from tierfall.quota import as_error
from tierfall_worker_cloud import tokens
from tierfall_worker_cloud.ticket import Reservation, Ticket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tierfall.ledger import Grant, Ledger
    from tierfall.quota import Plan
    from tierfall.worker import Ask
    from tierfall_worker_cloud.access import Access
    from tierfall_worker_cloud.providers import Provider

ANSWER_S: Final = 2.0
"""What is left of the first-token deadline for the provider's answer, when a request waits for its turn."""


class Book:
    """The quotas of one tier, and the ledger that they are held in.

    Args:
        ledger: The replicas' common one.
        plans: By the provider's name of the model.
        known: The models that the config has on this tier.
        deadlines: The first-token deadline in seconds, by the model's configured name.
    """

    def __init__(
        self,
        ledger: Ledger,
        plans: Mapping[str, Plan],
        known: frozenset[str],
        deadlines: Mapping[str, float],
    ) -> None:
        self.ledger = ledger
        self._plans = plans
        self._known = known
        self._deadlines = deadlines

    def plan(self, ask: Ask) -> Plan | None:
        """The quota of the model that is asked for, if it has one.

        Raises:
            QuotaUnknown: This worker's config does not have the model, and others of the tier have quotas.
        """
        found = self._plans.get(ask.backend_model)
        if found is None and ask.backend_model not in self._known:
            raise QuotaUnknown(f"{ask.model} is not in this worker's config, so its quota is not known")
        return found

    def patience_s(self, ask: Ask, plan: Plan) -> float:
        """How long a request may wait for its turn; 0 s where the config does not smooth."""
        if plan.pace is None:
            return 0.0
        return max(0.0, self._deadlines.get(ask.model, 0.0) - ANSWER_S)


class Desk:
    """Admits requests, one key after the other, round robin.

    Args:
        accesses: The tier's keys.
        provider: Whose they are.
        book: The tier's quotas, if it has any.
    """

    def __init__(self, accesses: Sequence[Access], provider: Provider, book: Book | None) -> None:
        self._accesses = accesses
        self._provider = provider
        self._book = book
        self._turns = itertools.count()

    def round(self) -> list[Access]:
        """All keys, beginning with the next one."""
        first = next(self._turns) % len(self._accesses)
        return [*self._accesses[first:], *self._accesses[:first]]

    async def admit(self, ask: Ask, left: Sequence[Access]) -> Ticket:
        """Takes the first of these keys that can be used, and reserves what the request may come to.

        Raises:
            RateLimited, QuotaExhausted: None has room for it; the one to have some first is told of.
            BackendDown: None works.
            QuotaUnknown: A quota is configured and the ledger does not answer.
        """
        of = ask.backend_model
        plan = self._book.plan(ask) if self._book is not None else None
        usable, refused = self._usable(left, of)
        if not usable:
            raise soonest(refused)
        if self._book is None or plan is None:
            return Ticket(usable[0], self._provider, of)
        try:
            return await self._reserve(ask, usable, self._book, plan)
        except Spent as spent:
            raise soonest([*refused, as_error(spent)]) from None
        except (BusError, TimeoutError) as error:
            said = error.message if isinstance(error, TierfallError) else "JetStream gave no answer in time"
            raise QuotaUnknown(f"what is left of the quota of {ask.model} is not known: {said}") from error

    def _usable(self, left: Sequence[Access], of: str) -> tuple[list[Access], list[TierfallError]]:
        usable: list[Access] = []
        refused: list[TierfallError] = []
        for access in left:
            # The only key is tried although it was refused: the provider knows best whether that still holds.
            error = access.resting(of) or (access.down if len(self._accesses) > 1 else None)
            if error is None:
                usable.append(access)
            else:
                refused.append(error)
        return usable, refused

    async def _reserve(self, ask: Ask, usable: Sequence[Access], book: Book, plan: Plan) -> Ticket:
        amounts = [limit.amount for limit in plan.limits if limit.metric is Metric.TOKENS]
        answers = ask.operation is not Operation.EMBEDDINGS
        estimate = tokens.Estimate(0, 0, 0)
        if amounts and answers:
            _refuse_uncounted(ask)
        if amounts:
            estimate = tokens.estimate(ask.body, min(amounts), answers=answers)
        wish = Wish(
            limits=plan.limits,
            amounts={Metric.REQUESTS: 1, Metric.TOKENS: estimate.most},
            estimates={Metric.TOKENS: estimate.likely},
            pace=plan.pace,
            of=plan.of,
        )
        access, grant = await _first_to_grant(book.ledger, usable, wish, book.patience_s(ask, plan))
        return Ticket(access, self._provider, plan.of, Reservation(book.ledger, plan, grant, estimate))


def _refuse_uncounted(ask: Ask) -> None:
    limit = next((0 for name in LIMITS if name in ask.body), None)
    try:
        refuse_uncounted(ask.body, limit)
    except InvalidRequest as error:  # a tier without a limit of tokens may take it
        raise UnsupportedByTier(error.message, param=error.param) from None


async def _first_to_grant(
    ledger: Ledger, usable: Sequence[Access], wish: Wish, patience_s: float
) -> tuple[Access, Grant]:
    """The first key with room now; else the one that has room first, if that is within the patience.

    Raises:
        Spent: None has.
    """
    refused: list[tuple[float, Access, Spent]] = []
    for access in usable:
        try:
            return access, await ledger.reserve(access.scope, wish)
        except Spent as spent:
            wait_s = math.inf if spent.retry_after is None else spent.retry_after
            refused.append((wait_s, access, spent))
    wait_s, first, reason = min(refused, key=lambda each: each[0])
    if wait_s > patience_s:
        raise reason
    patient = Wish(
        limits=wish.limits,
        amounts=wish.amounts,
        estimates=wish.estimates,
        pace=wish.pace,
        of=wish.of,
        patience_s=patience_s,
    )
    return first, await ledger.reserve(first.scope, patient)


def soonest(errors: Sequence[TierfallError]) -> TierfallError:
    """Of what several keys were refused with: the one that will be over first, then the one worth most.

    A copy: the caller may still hold ``errors`` in a variable when it raises this.
    """
    return min(errors, key=_weight).detached()


def _weight(error: TierfallError) -> tuple[bool, float]:
    limited = isinstance(error, RateLimited | QuotaExhausted)
    wait_s = math.inf if error.retry_after is None else error.retry_after
    return not limited, wait_s
