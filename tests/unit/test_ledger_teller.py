"""The ledger over a store that loses answers: nothing counted twice, nothing too much, little written."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.polling import until
from fakes.shaky_store import Mood, ShakyStore
from tierfall.errors import StoreUnavailable, StoreUnreadable
from tierfall.ledger import (
    Bench,
    Grant,
    Ledger,
    Limit,
    Metric,
    Pace,
    Spent,
    Window,
    Wish,
    outage,
    teller,
    unpack_account,
)
from tierfall.ledger.account import PAST_PERIODS_KEPT
from tierfall.store import Entry

DAY = Limit(Metric.REQUESTS, 10, Window.DAY)
TOKENS = Limit(Metric.TOKENS, 1000, Window.DAY)
NOON = 1_795_608_000.0
WISH = Wish(limits=(DAY,), amounts={Metric.REQUESTS: 1})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries that a test need not sit out."""
    monkeypatch.setattr(teller, "RETRY_MIN_S", 0.001)
    monkeypatch.setattr(teller, "RETRY_MAX_S", 0.002)


def ledger(store: ShakyStore) -> Ledger:
    """A replica whose clock stands still at noon."""
    store.clock.at = NOON
    return Ledger(store)


async def ask(*ledgers: Ledger, each: int, wish: Wish = WISH) -> tuple[list[Grant], list[Exception]]:
    """So many wishes at once at each replica: what was granted, and what came instead."""
    found = await asyncio.gather(
        *(one.reserve("scope", wish) for one in ledgers for _ in range(each)), return_exceptions=True
    )
    return [x for x in found if isinstance(x, Grant)], [x for x in found if isinstance(x, Exception)]


def used(store: ShakyStore, limit: Limit = DAY) -> int:
    """What the document says."""
    return unpack_account(store.entries["scope"].value).used(limit, NOON)


async def test_a_burst_is_one_write() -> None:
    """Ten times the limit within one turn of the loop: one write, the limit granted, the rest refused."""
    store = ShakyStore()
    one = ledger(store)
    granted, refused = await ask(one, each=100)
    assert (len(granted), len(refused), store.puts) == (10, 90, 1)
    assert all(isinstance(error, Spent) for error in refused)
    await one.close()


async def test_what_is_spent_costs_no_write_and_no_read() -> None:
    """While the document is fresh, a refusal comes from memory."""
    store = ShakyStore()
    one = ledger(store)
    await ask(one, each=20)
    before = store.gets, store.puts
    assert len((await ask(one, each=20))[1]) == 20
    assert (store.gets, store.puts) == before
    await one.close()


async def test_a_refusal_from_old_memory_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another replica gave back is found, before a request is refused by what was known long ago."""
    monkeypatch.setattr(teller, "FRESH_S", -1.0)
    store = ShakyStore()
    one, two = ledger(store), ledger(store)
    grants, _ = await ask(one, each=10)
    assert len((await ask(two, each=1))[1]) == 1
    one.refund(grants[0])
    await until(lambda: used(store) == 9)
    assert len((await ask(two, each=1))[0]) == 1
    await one.close()
    await two.close()


async def test_replicas_share_one_limit() -> None:
    """Five replicas in each other's way grant the limit together, exactly."""
    store = ShakyStore()
    replicas = [ledger(store) for _ in range(5)]
    granted, refused = await ask(*replicas, each=20)
    assert (len(granted), len(refused), used(store)) == (10, 90, 10)
    for replica in replicas:
        await replica.close()


@settings(max_examples=150, deadline=None)
@given(
    moods=st.lists(st.sampled_from(Mood), max_size=12),
    replicas=st.integers(1, 3),
    each=st.integers(1, 12),
    waves=st.integers(1, 3),
)
def test_lost_answers_are_neither_counted_twice_nor_forgotten(
    moods: list[Mood], replicas: int, each: int, waves: int
) -> None:
    """Whatever becomes of the writes, the document holds just what was granted, and never above the limit."""

    async def run() -> None:
        store = ShakyStore(moods)
        ledgers = [ledger(store) for _ in range(replicas)]
        granted = 0
        for _ in range(waves):
            grants, others = await ask(*ledgers, each=each)
            granted += len(grants)
            assert all(isinstance(error, Spent) for error in others)
        assert granted == min(10, replicas * each * waves)
        assert used(store) == granted
        for one in ledgers:
            await one.close()

    asyncio.run(run())


async def test_settlements_survive_lost_answers() -> None:
    """A settlement whose write has no answer is made once: not twice, not never."""
    store = ShakyStore()
    one = ledger(store)
    wish = Wish(limits=(TOKENS,), amounts={Metric.TOKENS: 400})
    grants, _ = await ask(one, each=2, wish=wish)
    for mood, grant in zip((Mood.LOST, Mood.LATE), grants, strict=True):
        store._moods = [mood]
        one.settle(grant, {Metric.TOKENS: 150})
        await one.close()
    assert used(store, TOKENS) == 300


async def test_who_leaves_takes_nothing_along() -> None:
    """A client that hangs up while its wish is being written leaves the limit as it was."""
    store = ShakyStore()
    one = ledger(store)
    for turns in range(6):
        task = asyncio.create_task(one.reserve("scope", WISH))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            one.refund(task.result())
        await one.close()
        assert "scope" not in store.entries or used(store) == 0


async def test_a_store_that_is_away_for_a_moment_is_waited_for() -> None:
    """A restart of NATS delays wishes, and grants none twice."""
    store = ShakyStore()
    store.down = True
    one = ledger(store)
    asking = asyncio.create_task(ask(one, each=20))
    await until(lambda: store.turned_away)
    store.down = False
    granted, refused = await asking
    assert (len(granted), len(refused), used(store)) == (10, 10, 10)
    await one.close()


async def test_a_store_that_stays_away_grants_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what is left: wishes fail with the store's own words, and what was settled is kept."""
    store = ShakyStore()
    one = ledger(store)
    wish = Wish(limits=(TOKENS,), amounts={Metric.TOKENS: 400})
    grants, _ = await ask(one, each=1, wish=wish)
    monkeypatch.setattr(outage, "PATIENCE_S", 0.0)
    store.down = True
    one.settle(grants[0], {Metric.TOKENS: 10})
    with pytest.raises(StoreUnavailable, match="no answer"):
        await one.reserve("scope", wish)
    store.down = False
    await one.close()
    assert used(store, TOKENS) == 10


async def test_a_foreign_document_closes_the_limit() -> None:
    """What cannot be read is not overwritten and not ignored: the wish fails, and says why."""
    store = ShakyStore()
    store.entries["scope"] = Entry("scope", b"not ours", 1)
    one = ledger(store)
    with pytest.raises(StoreUnreadable, match="cannot be read"):
        await one.reserve("scope", WISH)
    assert store.entries["scope"].value == b"not ours"
    await one.close()


async def test_a_store_that_is_known_to_be_away_is_not_asked_again_for_each_wish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once it has been away for longer than anybody waits, wishes of all scopes fail at once; one looks."""
    store = ShakyStore()
    one = ledger(store)
    monkeypatch.setattr(outage, "PATIENCE_S", 0.0)
    monkeypatch.setattr(outage, "REMEMBERED_S", 3600.0)
    store.down = True
    with pytest.raises(StoreUnavailable, match="gave no answer"):
        await one.reserve("scope", WISH)
    asked = store.turned_away
    for scope in ("scope", "another", "a third"):
        with pytest.raises(StoreUnavailable, match="gave no answer"):
            await one.reserve(scope, WISH)
    assert store.turned_away == asked
    store.down = False
    with pytest.raises(StoreUnavailable):
        await one.reserve("scope", WISH)
    one.outage._next_try = 0.0  # an hour later
    await one.reserve("another", WISH)
    await one.reserve("scope", WISH)
    await one.close()


DAY_S = 86_400.0


@pytest.mark.parametrize("jump_s", [DAY_S, 40 * DAY_S, -DAY_S, 400 * DAY_S])
@pytest.mark.parametrize("window", [Window.DAY, Window.MONTH])
async def test_a_clock_that_goes_wrong_and_comes_back_gives_nothing_twice(
    window: Window, jump_s: float
) -> None:
    """NATS's own clock is set wrong, used, and set right: the true period's limit is spent all the same."""
    limit = Limit(Metric.REQUESTS, 3, window)
    wish = Wish(limits=(limit,), amounts={Metric.REQUESTS: 1})
    store = ShakyStore()
    one, two = ledger(store), ledger(store)
    assert len((await ask(one, two, each=3, wish=wish))[0]) == 3
    for _ in range(3):
        store.clock.at = NOON + jump_s
        await ask(one, two, each=3, wish=wish)
        store.clock.at = NOON
        granted, refused = await ask(one, two, each=3, wish=wish)
        assert (len(granted), len(refused)) == (0, 6)
    await one.close()
    await two.close()


async def test_a_minute_is_not_closed_for_a_day_by_a_clock_that_was_a_day_ahead() -> None:
    """Neither what was counted in that wrong minute, nor its turns, nor what a provider said, holds now."""
    limit = Limit(Metric.REQUESTS, 3, Window.MINUTE)
    wish = Wish(
        limits=(limit,), amounts={Metric.REQUESTS: 1}, pace=Pace(every_s=1.0), patience_s=60.0, of="model"
    )
    store = ShakyStore()
    one = ledger(store)
    store.clock.at = NOON + DAY_S
    await ask(one, each=3, wish=wish)
    one.bench("scope", "model", Bench(one.now() + 60, "said 429", lasting=False, since=one.now()))
    await one.close()
    store.clock.at = NOON
    two = ledger(store)
    grants, refused = await ask(two, each=3, wish=wish)
    assert (len(grants), refused) == (3, [])
    assert max(grant.turn for grant in grants) <= NOON + 3
    await two.close()


async def test_days_that_are_over_do_not_pile_up() -> None:
    """A year's use of a day's limit leaves a handful of days in the document."""
    store = ShakyStore()
    one = ledger(store)
    for day in range(30):
        store.clock.at = NOON + day * DAY_S
        await ask(one, each=1)
    assert len(unpack_account(store.entries["scope"].value).cells[DAY.key]) <= PAST_PERIODS_KEPT + 1
    await one.close()


async def test_a_store_that_answers_reads_alone_is_away_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As NATS does whose disk is full: wishes do not wait for it for ever, whatever it lets be read."""
    store = ShakyStore([Mood.SILENT] * 1000)
    one = ledger(store)
    monkeypatch.setattr(outage, "PATIENCE_S", 0.02)
    with pytest.raises(StoreUnavailable, match="no answer"):
        await asyncio.wait_for(one.reserve("scope", WISH), 5.0)
    assert store.gets > 1
    await one.close()
