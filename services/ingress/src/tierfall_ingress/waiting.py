"""The waiting room: requests that stand in line for a slot of a full tier.

One line per client key, served in turn, so that one client's burst does not shut out the others; within a
key first come, first served. Nobody polls: a worker that was full says of each slot when it is free, and that
wakes one request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tierfall.errors import TierBusy

if TYPE_CHECKING:
    from collections.abc import Iterator

PACE_OF: Final = 64
"""How many of the last served requests tell the pace."""
PACE_WITHIN_S: Final = 60.0
"""What was longer ago does not."""
UNKNOWN_PACE_S: Final = 5.0
SHORTEST_S: Final = 1.0
LONGEST_S: Final = 60.0


class Ticket:
    """One request's place in line, which it keeps until it is called."""

    __slots__ = ("_called", "_calls_the_next", "_room", "_standing", "_turn", "key", "served", "tried")

    def __init__(self, room: WaitingRoom, key: str) -> None:
        self._room = room
        self._turn: asyncio.Future[None] | None = None
        self._standing = False
        self._called = False
        self._calls_the_next = False
        self.key = key
        self.tried = False
        """Whether it has been called before: in vain, if it stands in line again."""
        self.served = False
        """Set by its owner once it has a slot."""

    async def turn(self, timeout_s: float, since: int) -> bool:
        """Waits until a slot may be free for this request; called in vain, it stands in front next time.

        Args:
            timeout_s: How long to wait; a request that comes back later finds its place as it was.
            since: The room's ``wakes`` before the try that found the tier full: a slot that was announced
                between that and the request's standing in line is worth another try at once.

        Returns:
            Whether it is this request's turn; False when ``timeout_s`` went by.
        """
        if not self._standing and not self._called:
            if self._room.wakes != since:
                return True
            self._standing = True
            self._room.stand(self)
        if not self._called:
            self._turn = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait([self._turn], timeout=timeout_s)
            finally:
                self._turn = None
        called, self._called = self._called, False
        return called

    def call(self, *, calls_the_next: bool) -> None:
        """It is this request's turn; the room has taken it out of its line."""
        self._standing = False
        self._called = self.tried = True
        self._calls_the_next = calls_the_next
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def leave(self) -> None:
        """The request waits no longer; a call that it made no use of is the next one's."""
        if self._standing:
            self._standing = False
            self._room.remove(self)
        if self._calls_the_next or (self.tried and not self.served):
            self._room.wake(each_the_next=self._calls_the_next)


class WaitingRoom:
    """All requests of this ingress that wait for one tier.

    Args:
        tier: Its name, for messages.
        limit: How many may wait; one more is turned away.

    Attributes:
        wakes: How often free slots have been announced.
    """

    def __init__(self, tier: str, limit: int) -> None:
        self.tier = tier
        self.limit = limit
        self._lines: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._size = 0
        self._served_at: deque[float] = deque(maxlen=PACE_OF)
        self.wakes = 0

    def __len__(self) -> int:
        return self._size

    @property
    def has_line(self) -> bool:
        """Whether somebody stands in line now, so that a newcomer has to stand behind."""
        return bool(self._lines)

    @property
    def retry_after_s(self) -> float:
        """What a request that was turned away is told to wait: until those who wait now have had their turn.

        By the pace at which waiting requests got slots lately; where that is not known, a guess.
        """
        now = asyncio.get_running_loop().time()
        while self._served_at and self._served_at[0] < now - PACE_WITHIN_S:
            self._served_at.popleft()
        if not self._served_at:
            return UNKNOWN_PACE_S
        took_s = now - self._served_at[0]
        return min(max((self._size + 1) * took_s / len(self._served_at), SHORTEST_S), LONGEST_S)

    @contextmanager
    def ticket(self, key: str) -> Iterator[Ticket]:
        """A place in line for one request of client ``key``.

        Raises:
            TierBusy: The room is full.
        """
        if self._size >= self.limit:
            raise TierBusy(
                f"{self._size} requests wait for tier {self.tier!r} already", retry_after=self.retry_after_s
            )
        self._size += 1
        ticket = Ticket(self, key)
        try:
            yield ticket
        finally:
            self._size -= 1
            if ticket.served:
                self._served_at.append(asyncio.get_running_loop().time())
            ticket.leave()

    def wake(self, *, each_the_next: bool = False) -> None:
        """Calls one request, of the key whose turn it is.

        Args:
            each_the_next: Whether it calls the next one in turn when it has a slot. For a worker's word that
                it is not full, whatever the number: had an announcement of a slot been lost, all who wait
                would stand in front of slots that nobody tells them of.
        """
        self.wakes += 1
        if not self._lines:
            return
        key, line = next(iter(self._lines.items()))
        ticket = line.popleft()
        if line:
            self._lines.move_to_end(key)
        else:
            del self._lines[key]
        ticket.call(calls_the_next=each_the_next)

    def stand(self, ticket: Ticket) -> None:
        """Puts a ticket at its place: behind its key's others, or in front if it was called in vain."""
        line = self._lines.setdefault(ticket.key, deque())
        if ticket.tried:
            line.appendleft(ticket)
            self._lines.move_to_end(ticket.key, last=False)
        else:
            line.append(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Takes a ticket out, wherever it stands."""
        line = self._lines[ticket.key]
        line.remove(ticket)
        if not line:
            del self._lines[ticket.key]
