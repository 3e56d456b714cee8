"""What is decided on an account: never too much, never half of it, and the right time to come back."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tierfall.errors import StoreUnreadable
from tierfall.ledger import (
    Account,
    Bench,
    Grant,
    Limit,
    Metric,
    Pace,
    Spent,
    Window,
    Wish,
    Word,
    booking,
    pack_account,
    unpack_account,
)
from tierfall.ledger.account import Stamp
from tierfall.ledger.limit import MINUTE_S, SKEW_S, SLICE_S

NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC).timestamp()
PACIFIC = "America/Los_Angeles"
REQUESTS = Metric.REQUESTS
TOKENS = Metric.TOKENS
ONE = {REQUESTS: 1}


def limit(amount: int, window: Window, metric: Metric = REQUESTS, **more: Any) -> Limit:
    """A limit on requests, unless it says otherwise."""
    return Limit(metric, amount, window, **more)


def wish(*limits: Limit, **more: Any) -> Wish:
    """One request within these limits."""
    return Wish(limits=limits, **{"amounts": ONE, **more})


class Till:
    """An account and the grants made on it, one id each."""

    def __init__(self) -> None:
        self.account = Account()
        self.number = 0

    def ask(self, wanted: Wish, at: float) -> Grant:
        """Reserves at ``at``, on a document that went through JSON as it does in life."""
        self.number += 1
        self.account = unpack_account(pack_account(self.account))
        self.account.tidy(at)
        return booking.reserve(self.account, "scope", f"id{self.number}", wanted, at)

    def granted(self, wanted: Wish, at: float, tries: int) -> int:
        """How many of so many tries are granted."""
        return sum(self.refusal(wanted, at) is None for _ in range(tries))

    def answer(self, wanted: Wish, at: float) -> Grant | Spent:
        """What becomes of it."""
        try:
            return self.ask(wanted, at)
        except Spent as spent:
            return spent

    def refusal(self, wanted: Wish, at: float) -> Spent | None:
        """Why it is refused, if it is."""
        answer = self.answer(wanted, at)
        return answer if isinstance(answer, Spent) else None

    def spent(self, wanted: Wish, at: float) -> Spent:
        """Why it is refused."""
        found = self.refusal(wanted, at)
        assert found is not None
        return found


@pytest.mark.parametrize("window", list(Window))
def test_a_burst_gets_the_amount_and_no_more(window: Window) -> None:
    """Of ten times the amount at once, exactly the amount is granted, in every kind of window."""
    assert Till().granted(wish(limit(7, window)), NOON, 70) == 7


@settings(max_examples=300)
@given(
    amount=st.integers(1, 6),
    asks=st.lists(
        st.tuples(st.floats(0, 40), st.sampled_from([0.0, 5.0, 90.0]), st.sampled_from([0.0, 3.0, 15.0])),
        min_size=1,
        max_size=60,
    ),
)
@example(amount=2, asks=[(0.0, 90.0, 15.0), (0.0, 90.0, 15.0), (1.0, 0.0, 0.0)])
def test_no_sixty_seconds_hold_more_than_the_amount(
    amount: int, asks: list[tuple[float, float, float]]
) -> None:
    """Whenever requests come, some with patience and a pace, any 60 s let at most the amount go."""
    till, now, went = Till(), NOON, []
    for gap, patience_s, every_s in asks:
        now += gap
        pace = Pace(every_s, str(every_s)) if every_s else None
        wanted = wish(limit(amount, Window.MINUTE), patience_s=patience_s, pace=pace)
        answer = till.answer(wanted, now)
        if isinstance(answer, Spent):
            assert answer.retry_after is not None
            assert answer.retry_after > patience_s
        else:
            assert now <= answer.turn <= now + patience_s
            went.append(answer.turn)
    for begin in went:
        assert sum(begin <= turn < begin + MINUTE_S for turn in went) <= amount


@settings(max_examples=200)
@given(
    amount=st.integers(1, 4),
    asks=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 2)), min_size=1, max_size=50),
    skews=st.tuples(*[st.floats(0, SKEW_S)] * 3),
)
def test_clocks_that_differ_let_nothing_more_through(
    amount: int, asks: list[tuple[float, int]], skews: tuple[float, float, float]
) -> None:
    """Three replicas whose clocks are up to 2 s apart: still no 60 s with more than the amount."""
    till, now, went = Till(), NOON, []
    for gap, replica in asks:
        now += gap
        its_clock = now + skews[replica]
        at = till.account.clock(its_clock)
        if not isinstance(till.answer(wish(limit(amount, Window.MINUTE)), at), Spent):
            till.account.writers[str(replica)] = Stamp(1, its_clock)
            went.append(now)
    for begin in went:
        assert sum(begin <= time < begin + MINUTE_S for time in went) <= amount


@given(st.lists(st.floats(0, 20), min_size=1, max_size=40))
def test_coming_back_when_told_is_enough(gaps: list[float]) -> None:
    """Who waits as long as a refusal says is granted then, if nobody else came."""
    till, now = Till(), NOON
    wanted = wish(limit(3, Window.MINUTE), limit(9, Window.DAY))
    for gap in gaps:
        now += gap
        spent = till.refusal(wanted, now)
        if spent is not None:
            assert spent.retry_after is not None
            now += spent.retry_after
            till.ask(wanted, now)


def test_a_minute_is_over_soon_after_sixty_seconds() -> None:
    """What is given away for the minute's exactness is at most a slice and the clocks' difference."""
    till, wanted = Till(), wish(limit(1, Window.MINUTE))
    till.ask(wanted, NOON)
    assert till.refusal(wanted, NOON + MINUTE_S) is not None
    assert till.refusal(wanted, NOON + MINUTE_S + SLICE_S + SKEW_S) is None


def test_all_limits_or_none() -> None:
    """A wish that one limit refuses counts in none, so that another model's requests still fit."""
    till = Till()
    both = wish(limit(5, Window.MINUTE), limit(2, Window.DAY, of="a"), of="a")
    assert till.granted(both, NOON, 5) == 2
    assert till.granted(wish(limit(5, Window.MINUTE)), NOON, 5) == 3


def test_limits_of_different_things_do_not_mix() -> None:
    """Two models of one account have counts of their own."""
    till = Till()
    assert till.granted(wish(limit(2, Window.DAY, of="a")), NOON, 5) == 2
    assert till.granted(wish(limit(3, Window.DAY, of="b")), NOON, 5) == 3


def test_a_day_ends_at_midnight_of_its_zone() -> None:
    """Gemini's day: spent at 23:59 in California, whole again at midnight there and not at UTC's."""
    till, wanted = Till(), wish(limit(2, Window.DAY, zone=PACIFIC))
    evening = dt.datetime(2026, 11, 25, 15, 59, tzinfo=ZoneInfo(PACIFIC)).timestamp()
    assert till.granted(wanted, evening, 3) == 2
    utc_midnight = dt.datetime(2026, 11, 26, tzinfo=dt.UTC).timestamp()
    spent = till.spent(wanted, utc_midnight + 1)
    midnight = dt.datetime(2026, 11, 26, tzinfo=ZoneInfo(PACIFIC)).timestamp()
    assert spent.retry_after == pytest.approx(midnight - utc_midnight - 1)
    assert spent.lasting
    assert "2 requests a day" in spent.message
    assert PACIFIC in spent.message
    assert till.refusal(wanted, midnight - 0.5) is not None
    assert till.granted(wanted, midnight, 3) == 2


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 8), 23), ((2026, 11, 1), 25), ((2026, 6, 1), 24)])
def test_days_of_all_lengths(day: tuple[int, int, int], hours: int) -> None:
    """The day on which the clocks are set has 23 or 25 hours, and is one day."""
    noon = dt.datetime(*day, 12, tzinfo=ZoneInfo(PACIFIC)).timestamp()
    one = limit(1, Window.DAY, zone=PACIFIC)
    start = one.cell_start(noon)
    assert one.counts_until(start) - start == hours * 3600


def test_a_month_ends_with_its_last_day() -> None:
    """A month's budget is whole again on the first."""
    till, wanted = Till(), wish(limit(1, Window.MONTH))
    till.ask(wanted, dt.datetime(2026, 12, 31, 23, tzinfo=dt.UTC).timestamp())
    january = dt.datetime(2027, 1, 1, tzinfo=dt.UTC).timestamp()
    assert till.spent(wanted, january - 60).retry_after == pytest.approx(60)
    assert till.refusal(wanted, january) is None


def test_a_total_never_comes_back() -> None:
    """A total that is used up has no time to come back at."""
    till, wanted = Till(), wish(limit(1, Window.TOTAL))
    till.ask(wanted, NOON)
    spent = till.spent(wanted, NOON + 1e8)
    assert (spent.retry_after, spent.lasting) == (None, True)


def test_what_is_larger_than_a_limit_never_fits() -> None:
    """A request above a minute's tokens is not told to wait."""
    spent = Till().spent(wish(limit(100, Window.MINUTE, TOKENS), amounts={TOKENS: 101}), NOON)
    assert (spent.retry_after, spent.lasting) == (None, True)
    assert "101 tokens at once are above the limit of 100 tokens a minute" in spent.message


def test_settling_gives_back_what_was_not_used() -> None:
    """Tokens are reserved at their most and counted as they were, in every window."""
    till = Till()
    limits = (limit(1000, Window.MINUTE, TOKENS), limit(1500, Window.DAY, TOKENS))
    wanted = wish(*limits, amounts={TOKENS: 900})
    grant = till.ask(wanted, NOON)
    assert till.refusal(wanted, NOON + 1) is not None
    booking.settle(till.account, grant, {TOKENS: 100})
    assert [till.account.used(one, NOON + 1) for one in limits] == [100, 100]
    till.ask(wanted, NOON + 1)


def test_using_more_than_reserved_is_a_debt() -> None:
    """What was really used counts, also above the limit."""
    till, day = Till(), limit(100, Window.DAY, TOKENS)
    grant = till.ask(wish(day, amounts={TOKENS: 50}), NOON)
    booking.settle(till.account, grant, {TOKENS: 130})
    assert till.account.used(day, NOON) == 130
    assert till.spent(wish(day, amounts={TOKENS: 1}), NOON).lasting


def test_settling_after_the_window_changes_nothing() -> None:
    """An answer that ends after midnight is not taken off the new day."""
    till, day = Till(), limit(100, Window.DAY, TOKENS)
    grant = till.ask(wish(day, amounts={TOKENS: 90}), NOON)
    tomorrow = NOON + 86_400
    till.ask(wish(day, amounts={TOKENS: 40}), tomorrow)
    booking.settle(till.account, grant, {TOKENS: 10})
    assert till.account.used(day, tomorrow) == 40


def test_a_refund_leaves_nothing_behind() -> None:
    """An attempt that never reached the provider counts nowhere, and its turn is free again."""
    till, day = Till(), limit(10, Window.DAY)
    wanted = wish(day, pace=Pace(15.0), patience_s=60)
    till.ask(wanted, NOON)
    second = till.ask(wanted, NOON)
    booking.refund(till.account, second)
    assert till.account.used(day, NOON) == 1
    assert till.ask(wanted, NOON).turn == second.turn


def test_a_silent_owner_keeps_its_requests_and_its_estimate() -> None:
    """When a worker dies, its request stays counted and its tokens shrink to what they probably were."""
    till = Till()
    requests, tokens = limit(10, Window.DAY), limit(1000, Window.DAY, TOKENS)
    wanted = wish(requests, tokens, amounts={REQUESTS: 1, TOKENS: 900}, estimates={TOKENS: 200}, held_s=60)
    grant = till.ask(wanted, NOON)
    till.account.tidy(NOON + 59)
    assert till.account.used(tokens, NOON + 59) == 900
    till.account.tidy(NOON + 61)
    assert till.account.used(tokens, NOON + 61) == 200
    assert till.account.used(requests, NOON + 61) == 1
    booking.settle(till.account, grant, {TOKENS: 300})
    assert till.account.used(tokens, NOON + 61) == 300, "it was slow, not dead"


def test_a_pace_spaces_a_burst() -> None:
    """Four a minute: a burst gets turns 15 s apart, as far as it can wait, and the rest a true time."""
    till, wanted = Till(), wish(pace=Pace(15.0), patience_s=30)
    assert [till.ask(wanted, NOON).turn - NOON for _ in range(3)] == [0, 15, 30]
    spent = till.spent(wanted, NOON)
    assert (spent.retry_after, spent.lasting) == (45, False)
    assert till.ask(wanted, NOON + 15).turn - NOON == 45


def test_patience_waits_for_room_in_the_minute() -> None:
    """Who may wait is given the turn at which the minute has room, not a refusal."""
    till = Till()
    wanted = wish(limit(1, Window.MINUTE), patience_s=90)
    till.ask(wanted, NOON)
    assert till.ask(wanted, NOON).turn == NOON + MINUTE_S + SLICE_S + SKEW_S
    assert till.spent(wanted, NOON).retry_after == 2 * (MINUTE_S + SLICE_S + SKEW_S)


def test_a_turn_after_midnight_counts_for_the_new_day() -> None:
    """A request that waits over midnight takes nothing from the day on which it came."""
    till, day = Till(), limit(2, Window.DAY)
    late = dt.datetime(2026, 11, 25, 23, 59, 50, tzinfo=dt.UTC).timestamp()
    paced = wish(day, pace=Pace(15.0), patience_s=30)
    till.ask(paced, late)
    assert till.ask(paced, late).turn > late + 10
    assert till.account.used(day, late) == 1
    assert till.account.used(day, late + 15) == 1


def test_a_bench_is_kept() -> None:
    """What the provider asked for holds, for the model it spoke of and for the key as a whole."""
    till = Till()
    booking.bench(till.account, "a", Bench(NOON + 20, "groq said 429", lasting=False))
    booking.bench(till.account, "a", Bench(NOON + 10, "shorter", lasting=False))
    spent = till.spent(wish(of="a"), NOON)
    assert spent.retry_after == 20
    assert "groq said 429" in spent.message
    assert till.refusal(wish(of="b"), NOON) is None
    assert till.ask(wish(of="a", patience_s=30), NOON).turn == NOON + 20
    booking.bench(till.account, "", Bench(NOON + 99, "the account is out of money", lasting=True))
    assert till.spent(wish(of="b"), NOON).lasting
    assert till.refusal(wish(of="b"), NOON + 99) is None


def test_a_providers_word_only_takes_away() -> None:
    """Less left than we count corrects our count; more does not: it may not know of what is on its way."""
    till, day = Till(), limit(100, Window.DAY)
    till.ask(wish(day), NOON)
    booking.heed(till.account, Word(limit=day, left=40), NOON)
    assert till.account.used(day, NOON) == 60
    booking.heed(till.account, Word(limit=day, left=80), NOON)
    assert till.account.used(day, NOON) == 60


def test_a_providers_minute_ends_when_it_says() -> None:
    """A correction within the minute holds as long as the provider says, not another whole minute."""
    till, minute = Till(), limit(30, Window.MINUTE)
    booking.heed(till.account, Word(limit=minute, left=0, resets_in_s=7.5), NOON)
    retry_after = till.spent(wish(minute), NOON).retry_after
    assert retry_after is not None
    assert 7.5 - SLICE_S <= retry_after <= 7.5 + SLICE_S


def test_a_clock_that_is_behind_opens_no_old_day() -> None:
    """Two replicas' clocks differ over midnight: the spent day does not begin anew for the later one."""
    account = Account(writers={"a": Stamp(1, NOON + 1.5)})
    assert account.clock(NOON) == NOON + 1.5
    account = Account(writers={"a": Stamp(1, NOON + 86_400)})
    assert account.clock(NOON) == NOON, "a clock that is a day ahead is not followed"


def test_a_document_stays_small() -> None:
    """A day of traffic leaves a document of a few hundred bytes: what no longer counts is forgotten."""
    till = Till()
    wanted = wish(
        limit(10**6, Window.MINUTE), limit(10**6, Window.DAY), limit(10**9, Window.MINUTE, TOKENS),
        amounts={REQUESTS: 1, TOKENS: 500}, estimates={TOKENS: 100},
    )  # fmt: skip
    for second in range(0, 86_400, 20):
        grant = till.ask(wanted, NOON + second)
        booking.settle(till.account, grant, {TOKENS: 120})
    assert len(pack_account(till.account)) < 500


def test_a_foreign_document_is_a_clear_error() -> None:
    """Bytes that are no account are refused, not read as an empty one: that would open every limit."""
    with pytest.raises(StoreUnreadable, match="cannot be read"):
        unpack_account(b"hello")
