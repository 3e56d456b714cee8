"""How a quota stands: per key and window what is used, what is left, and when it is whole again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from tierfall.ledger import Account, Spent, Window, Wish, check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.ledger import Limit, Metric
    from tierfall.quota.plan import Plan


class WindowStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of one key."""

    metric: Metric
    window: Window
    of: str
    """The provider's name of the model that is counted; empty for all models of the key."""
    limit: int
    used: int
    left: int
    resets_at: float | None
    """Unix seconds at which it is whole again if nothing else is used; None for one that never is, or is."""


class KeyStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One key of the tier."""

    key: str
    windows: tuple[WindowStanding, ...]
    spent: str = ""
    """Why it cannot be used now; empty while it can."""
    lasting: bool = False
    """Whether waiting seconds will not help."""
    retry_after: float | None = None
    """Seconds until it can be used again; None when it can, or never can."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One model with a quota."""

    model: str
    tier: str
    keys: tuple[KeyStanding, ...]

    @property
    def spent(self) -> bool:
        """Whether no key can be used now."""
        return all(key.spent for key in self.keys)


def standing_of(plan: Plan, accounts: Mapping[str, Account], now: float) -> Standing:
    """How a model's quota stands.

    Args:
        plan: Its limits and keys.
        accounts: The ledger's documents by scope; of one that is missing nothing is used.
        now: Unix seconds.
    """
    return Standing(
        model=plan.model,
        tier=plan.tier,
        keys=tuple(
            _key(plan, label, accounts.get(scope, Account()), now)
            for label, scope in zip(plan.keys, plan.scopes, strict=True)
        ),
    )


def refusal(plan: Plan, accounts: Mapping[str, Account], now: float, patience_s: float) -> Spent | None:
    """Why no key of the plan has anything left for so long; of several keys' reasons, the one to end first.

    Args:
        plan: Its limits and keys.
        accounts: As for :func:`standing_of`.
        now: Unix seconds.
        patience_s: What becomes free within so many seconds counts as left.
    """
    first: Spent | None = None
    for scope in plan.scopes:
        account = accounts.get(scope)
        found = None if account is None else _spent(plan, account, now, patience_s)
        if found is None:
            return None
        if first is None or _wait(found) < _wait(first):
            first = found
    return first


def _key(plan: Plan, label: str, account: Account, now: float) -> KeyStanding:
    windows = tuple(_window(limit, account, now) for limit in plan.limits)
    found = _spent(plan, account, now, 0.0)
    if found is None:
        return KeyStanding(key=label, windows=windows)
    return KeyStanding(
        key=label,
        windows=windows,
        spent=found.message,
        lasting=found.lasting,
        retry_after=found.retry_after,
    )


def _window(limit: Limit, account: Account, now: float) -> WindowStanding:
    used = account.used(limit, now)
    ends = [limit.counts_until(cell.start) for cell in account.counting(limit, now) if cell.used]
    last = max(ends, default=math.inf)
    return WindowStanding(
        metric=limit.metric,
        window=limit.window,
        of=limit.of,
        limit=limit.amount,
        used=used,
        left=max(0, limit.amount - used),
        resets_at=last if last < math.inf else None,
    )


def _spent(plan: Plan, account: Account, now: float, patience_s: float) -> Spent | None:
    """Whether not even the smallest request fits; the spacing of requests is no reason."""
    smallest = Wish(
        limits=plan.limits,
        amounts={limit.metric: 1 for limit in plan.limits},
        patience_s=patience_s,
        of=plan.of,
    )
    return check(account, smallest, now)


def _wait(found: Spent) -> float:
    return math.inf if found.retry_after is None else found.retry_after
