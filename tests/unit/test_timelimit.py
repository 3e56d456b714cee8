"""The time limit: asyncio.timeout()'s rules."""

from __future__ import annotations

import asyncio

import pytest

from tierfall.timelimit import TimeLimit


async def test_what_takes_too_long_is_ended() -> None:
    """A wait that outlasts the limit raises TimeoutError, and the task goes on as if never cancelled."""
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError), TimeLimit(loop, 0.01):
        await loop.create_future()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_what_is_in_time_is_left_alone() -> None:
    """Neither its result nor its own error is touched, and no timer is left to fire."""
    loop = asyncio.get_running_loop()
    with TimeLimit(loop, 0.01):
        await asyncio.sleep(0)
    with pytest.raises(KeyError), TimeLimit(loop, 0.01):
        raise KeyError
    later = loop.create_future()
    loop.call_later(0.03, later.set_result, None)
    await later


async def test_it_can_be_ended_early() -> None:
    """``end`` is the time being over now, however often it is called."""
    loop = asyncio.get_running_loop()

    def end_twice() -> None:
        limit.end()
        limit.end()

    limit = TimeLimit(loop, 60)
    loop.call_soon(end_twice)
    with pytest.raises(TimeoutError), limit:
        await loop.create_future()


@pytest.mark.parametrize("ended", [False, True])
async def test_a_cancellation_from_elsewhere_stays_one(ended: bool) -> None:
    """A task that somebody cancels is cancelled, even if its time is over in the same moment."""
    loop = asyncio.get_running_loop()
    entered = asyncio.Event()
    limits: list[TimeLimit] = []

    async def wait() -> None:
        with TimeLimit(loop, 60) as limit:
            limits.append(limit)
            entered.set()
            await loop.create_future()

    task = asyncio.create_task(wait())
    await entered.wait()
    if ended:
        limits[0].end()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_inner_of_two_ends_only_itself() -> None:
    """Nested limits do not take each other's end for their own."""
    loop = asyncio.get_running_loop()
    with TimeLimit(loop, 60):
        with pytest.raises(TimeoutError), TimeLimit(loop, 0.01):
            await loop.create_future()
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), TimeLimit(loop, 0.01), TimeLimit(loop, 60):
        await loop.create_future()
