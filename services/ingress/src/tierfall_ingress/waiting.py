"""The waiting room: requests that stand in line for a slot of a full tier.

One line per client key, served in turn, so that one client's burst does not shut out the others; within a
key first come, first served. Nobody polls: a worker that frees a slot says so, and that wakes one request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tierfall.errors import TierBusy

if TYPE_CHECKING:
    from collections.abc import Iterator

RETRY_AFTER_S: Final = 2.0


class Ticket:
    """One request's place in line."""

    __slots__ = ("_room", "_turn", "called", "key")

    def __init__(self, room: WaitingRoom, key: str) -> None:
        self._room = room
        self._turn: asyncio.Future[None] | None = None
        self.key = key
        self.called = False

    async def turn(self, timeout_s: float, since: int) -> bool:
        """Waits until a slot may be free for this request; called in vain, it stands in front next time.

        Args:
            timeout_s: How long to wait.
            since: The room's ``wakes`` before the try that found the tier full: a slot that was announced
                meanwhile is worth another try at once.

        Returns:
            Whether it is this request's turn; False when ``timeout_s`` went by.
        """
        if self._room.wakes != since:
            return True
        self._turn = asyncio.get_running_loop().create_future()
        self._room.stand(self)
        try:
            async with asyncio.timeout(timeout_s):
                await self._turn
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._room.leave(self)
            self._turn = None

    def call(self) -> bool:
        """Wakes the request; False if it does not wait."""
        if self._turn is None or self._turn.done():
            return False
        self.called = True
        self._turn.set_result(None)
        return True


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
        self.wakes = 0

    def __len__(self) -> int:
        return self._size

    @property
    def retry_after_s(self) -> float:
        """What a request that was turned away is told to wait."""
        return RETRY_AFTER_S

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
        try:
            yield Ticket(self, key)
        finally:
            self._size -= 1

    def wake(self, free: int) -> None:
        """Calls as many requests as there are free slots, one key after the other."""
        self.wakes += 1
        while free > 0 and self._lines:
            key, line = next(iter(self._lines.items()))
            ticket = line.popleft()
            if line:
                self._lines.move_to_end(key)
            else:
                del self._lines[key]
            free -= ticket.call()

    def stand(self, ticket: Ticket) -> None:
        """Puts a ticket at its place: behind its key's others, or in front if it was called in vain."""
        line = self._lines.setdefault(ticket.key, deque())
        if ticket.called:
            line.appendleft(ticket)
            self._lines.move_to_end(ticket.key, last=False)
        else:
            line.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Takes a ticket out, wherever it stands."""
        line = self._lines.get(ticket.key)
        if line is not None and ticket in line:
            line.remove(ticket)
            if not line:
                del self._lines[ticket.key]
