"""What is decided on an account: reserve, settle, refund, and what the provider says. No clock, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.ledger.account import FAR_AHEAD_S, Account, Bench, Open, Release
from tierfall.ledger.limit import Limit, Metric, Window
from tierfall.ledger.spent import Spent

if TYPE_CHECKING:
    from collections.abc import Mapping

HELD_S: Final = 900.0
"""How long a reservation waits for its owner to settle it, unless it says otherwise."""
_MAX_MOVES: Final = 32
"""How often a turn is moved to where the next limit has room, before the request is refused."""


class Pace(msgspec.Struct, frozen=True):
    """Requests are to be at least ``every_s`` apart; ``of`` names what is paced, as in a limit."""

    every_s: float
    of: str = ""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to use: all of it, within all limits, or nothing.

    Attributes:
        limits: All that apply.
        amounts: How much of each metric it may come to; a metric that is left out is not counted.
        estimates: How much it will probably be, where that is less: what is counted in the end when nobody
            settles.
        pace: The spacing to keep, if any.
        patience_s: How long it may wait for its turn; 0 s: now or not at all.
        of: Which benches apply besides that of the whole scope.
        held_s: Seconds from its turn after which a silent owner is taken for dead.
    """

    limits: tuple[Limit, ...]
    amounts: Mapping[Metric, int]
    estimates: Mapping[Metric, int] = {}
    pace: Pace | None = None
    patience_s: float = 0.0
    of: str = ""
    held_s: float = HELD_S


class Part(msgspec.Struct, frozen=True):
    """What a grant counts in one cell."""

    key: str
    metric: Metric
    start: int
    reserved: int
    estimate: int


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A wish that was granted: to be settled or refunded once, by whom it was given to.

    Attributes:
        scope: Whose account it is.
        id: Unique in the account.
        turn: When to go, in Unix seconds; in the past or present for at once.
        parts: What it counts where.
        pace: The spacing that it keeps.
    """

    scope: str
    id: str
    turn: float
    parts: tuple[Part, ...]
    pace: Pace | None = None


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider says about one limit in an answer's headers.

    Attributes:
        limit: Ours that it speaks of.
        left: How much of it is left.
        resets_in_s: Seconds until all of it is there again; None when it does not say.
    """

    limit: Limit
    left: int
    resets_in_s: float | None = None


def reserve(account: Account, scope: str, id_: str, wish: Wish, at: float) -> Grant:
    """Counts a wish in the account.

    Args:
        account: Changed only when the wish is granted.
        scope: Whose account it is.
        id_: Unique in the account.
        wish: What is wanted.
        at: Unix seconds.

    Raises:
        Spent: It does not fit.
    """
    turn = _turn(account, wish, at)
    parts = []
    for limit in wish.limits:
        amount = wish.amounts.get(limit.metric)
        if amount is None:
            continue
        account.drop_gone(limit, at)
        start = limit.cell_start(turn)
        account.add(limit.key, start, amount)
        estimate = min(amount, wish.estimates.get(limit.metric, amount))
        parts.append(Part(limit.key, limit.metric, start, amount, estimate))
    releases = tuple(
        Release(part.key, part.start, part.reserved - part.estimate)
        for part in parts
        if part.reserved > part.estimate
    )
    if releases:
        account.open[id_] = Open(turn + wish.held_s, releases)
    if wish.pace is not None:
        account.turns[wish.pace.of] = turn + wish.pace.every_s
    return Grant(scope=scope, id=id_, turn=turn, parts=tuple(parts), pace=wish.pace)


def check(account: Account, wish: Wish, at: float) -> Spent | None:
    """Why a wish would not be granted now; the account stays as it is."""
    try:
        _turn(account, wish, at)
    except Spent as spent:
        return spent.with_traceback(None)  # whose frames lead to the request that is asked about
    return None


def settle(account: Account, grant: Grant, actual: Mapping[Metric, int]) -> None:
    """Puts what was really used in place of what was reserved; metrics not named stay as reserved."""
    silent = account.open.pop(grant.id, None) is None
    for part in grant.parts:
        if part.metric in actual:
            # Once its time was over, it was counted with its estimate.
            counted = part.estimate if silent else part.reserved
            account.correct(part.key, part.start, actual[part.metric] - counted)


def refund(account: Account, grant: Grant) -> None:
    """Takes a grant back as if it had never been: nothing of it has reached the provider."""
    settle(account, grant, dict.fromkeys(Metric, 0))
    pace = grant.pace
    if pace is not None and account.turns.get(pace.of) == grant.turn + pace.every_s:
        account.turns[pace.of] = grant.turn  # nobody stands behind it


def bench(account: Account, of: str, found: Bench) -> None:
    """Leaves a part of the scope, or all of it, alone until then; never for less than was said before."""
    known = account.benched.get(of)
    if known is None or known.until < found.until or not known.holds(found.since):
        account.benched[of] = found


def heed(account: Account, word: Word, at: float) -> None:
    """Corrects a count upwards by what a provider says is left.

    Never downwards: what it counts does not yet hold the requests that are on their way to it.
    """
    limit = word.limit
    missing = limit.amount - word.left - account.used(limit, at)
    if missing <= 0 or word.left < 0:
        return
    start = limit.cell_start(at)
    if limit.window is Window.MINUTE and word.resets_in_s is not None:
        # In the slice that stops to count when the provider's minute is over.
        lasts_s = limit.counts_until(start) - at
        start = min(start, limit.cell_start(at - lasts_s + word.resets_in_s))
    account.add(limit.key, start, missing)


def _turn(account: Account, wish: Wish, at: float) -> float:
    """When all limits have room.

    Raises:
        Spent: Not within the wish's patience.
    """
    turn = at
    for of in dict.fromkeys(("", wish.of)):
        found = account.benched.get(of)
        if found is not None and found.holds(at):
            if found.until > at + wish.patience_s:
                raise Spent.benched(found, at)
            turn = max(turn, found.until)
    if wish.pace is not None:
        paced = account.turns.get(wish.pace.of, at)
        if paced <= at + FAR_AHEAD_S:
            turn = max(turn, paced)
        if turn > at + wish.patience_s:
            raise Spent.paced(wish.pace.every_s, turn - at)
    for _ in range(_MAX_MOVES):
        moved = _room_from(account, wish, turn, at)
        if moved == turn:
            return turn
        turn = moved
    raise Spent.paced(0.0, wish.patience_s)


def _room_from(account: Account, wish: Wish, turn: float, at: float) -> float:
    """``turn`` if every limit has room then, else the first later time at which each has by itself.

    Raises:
        Spent: That is not within the wish's patience; it tells of the limit that takes longest.
    """
    latest, worst = turn, None
    for limit in wish.limits:
        need = wish.amounts.get(limit.metric)
        if need is None:
            continue
        free_at = account.free_at(limit, turn, need)
        if free_at is None:
            raise Spent.of_limit(limit, account.used(limit, turn), need, None)
        if free_at > latest:
            latest, worst = free_at, (limit, need)
    if worst is not None and latest > at + wish.patience_s:
        limit, need = worst
        raise Spent.of_limit(limit, account.used(limit, turn), need, latest - at)
    return latest
