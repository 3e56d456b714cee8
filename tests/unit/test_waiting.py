"""The waiting room: bounded, fair, woken by free slots only."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from tierfall.errors import TierBusy
from tierfall_ingress import waiting
from tierfall_ingress.waiting import WaitingRoom


class Crowd:
    """Requests that stand in line and note the order in which they are called."""

    def __init__(self, room: WaitingRoom) -> None:
        self.room = room
        self.called: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def comes(self, *names: str) -> None:
        """One request per name; its first letter is its client's key."""
        for name in names:
            self.tasks.append(asyncio.create_task(self._wait(name)))
            await asyncio.sleep(0)

    async def _wait(self, name: str) -> None:
        with self.room.ticket(name[0]) as ticket:
            if await ticket.turn(10, self.room.wakes):
                self.called.append(name)
                ticket.served = True

    async def wake(self, free: int) -> list[str]:
        """The names called by so many free slots."""
        before = len(self.called)
        for _ in range(free):
            self.room.wake()
        for _ in range(5):
            await asyncio.sleep(0)
        return self.called[before:]

    async def leave(self) -> None:
        """Everybody goes home."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_first_come_first_served() -> None:
    """One client's requests are called in the order in which they came, one per free slot."""
    crowd = Crowd(WaitingRoom("t", 10))
    await crowd.comes("a1", "a2", "a3")
    assert await crowd.wake(1) == ["a1"]
    assert await crowd.wake(5) == ["a2", "a3"]
    await crowd.leave()


async def test_a_burst_does_not_shut_out_others() -> None:
    """Clients are served in turn, however many requests one of them has."""
    crowd = Crowd(WaitingRoom("t", 10))
    await crowd.comes("a1", "a2", "a3", "b1", "c1", "b2")
    assert await crowd.wake(6) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    await crowd.leave()


async def test_a_full_room_turns_away() -> None:
    """One more than the limit is refused at once, with a time to come back."""
    room = WaitingRoom("t", 2)
    crowd = Crowd(room)
    await crowd.comes("a1", "a2")
    with pytest.raises(TierBusy) as refused, room.ticket("a"):
        pass
    assert refused.value.retry_after
    await crowd.leave()
    assert len(room) == 0


async def test_a_free_slot_is_not_missed() -> None:
    """A slot that frees between a vain try and standing in line is noticed."""
    room = WaitingRoom("t", 2)
    seen = room.wakes
    room.wake()
    with room.ticket("a") as ticket:
        assert await ticket.turn(0.01, seen)


async def test_called_in_vain_stands_in_front() -> None:
    """A request whose slot was snatched away keeps its place."""
    room = WaitingRoom("t", 5)
    crowd = Crowd(room)
    order: list[str] = []

    async def unlucky() -> None:
        with room.ticket("a") as ticket:
            assert await ticket.turn(10, room.wakes)
            assert await ticket.turn(10, room.wakes)
            order.append("unlucky")
            ticket.served = True

    crowd.tasks.append(asyncio.create_task(unlucky()))
    await asyncio.sleep(0)
    await crowd.comes("a1", "b1")
    assert await crowd.wake(1) == []
    await crowd.wake(1)
    assert order == ["unlucky"]
    assert crowd.called == []
    await crowd.leave()


async def test_leaving_frees_the_place() -> None:
    """A request that gave up is not called in another's stead."""
    crowd = Crowd(WaitingRoom("t", 5))
    await crowd.comes("a1", "a2")
    crowd.tasks[0].cancel()
    await asyncio.gather(crowd.tasks[0], return_exceptions=True)
    assert await crowd.wake(1) == ["a2"]
    assert len(crowd.room) == 0


async def test_looking_around_does_not_cost_the_place() -> None:
    """A request that looks whether it still makes sense to wait stands where it stood."""
    room = WaitingRoom("t", 5)
    crowd = Crowd(room)
    with room.ticket("a") as ticket:
        assert not await ticket.turn(0.01, room.wakes)
        await crowd.comes("a1")
        assert not await ticket.turn(0.01, -1)
        assert await crowd.wake(1) == []
        assert await ticket.turn(10, -1), "it was called while it looked around"
        ticket.served = True
    assert await crowd.wake(1) == ["a1"]
    await crowd.leave()


async def test_an_unused_call_is_passed_on() -> None:
    """A request that leaves after it was called, and before it has a slot, gives the slot to the next."""
    room = WaitingRoom("t", 5)
    crowd = Crowd(room)
    with room.ticket("a") as ticket:
        assert not await ticket.turn(0.01, room.wakes)
        await crowd.comes("a1", "a2")
        assert await crowd.wake(1) == []
    await asyncio.gather(crowd.tasks[0])
    assert crowd.called == ["a1"]
    await crowd.leave()


async def test_a_worker_that_is_not_full_serves_the_whole_line() -> None:
    """Whoever gets a slot on such a word calls the next one, until one is called in vain."""
    room = WaitingRoom("t", 5)
    crowd = Crowd(room)
    await crowd.comes("a1", "a2")
    with room.ticket("a") as unlucky:
        assert not await unlucky.turn(0.01, room.wakes)
        await crowd.comes("a3")
        room.wake(each_the_next=True)
        assert await unlucky.turn(10, room.wakes)
        assert crowd.called == ["a1", "a2"]
        assert not await unlucky.turn(0.01, room.wakes), "in vain"
        assert crowd.called == ["a1", "a2"]
    await crowd.leave()


async def test_retry_after_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is turned away is told to come back when those in line have had their turn, at the present pace."""
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    room = WaitingRoom("t", 10)
    assert room.retry_after_s == waiting.UNKNOWN_PACE_S
    for _ in range(10):  # one slot each two seconds
        with room.ticket("a") as ticket:
            ticket.served = True
        now += 2.0
    assert room.retry_after_s == pytest.approx(2.0)
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(room.ticket("a"))
        assert room.retry_after_s == pytest.approx(20.0)
    now += 3600.0
    assert room.retry_after_s == waiting.UNKNOWN_PACE_S
