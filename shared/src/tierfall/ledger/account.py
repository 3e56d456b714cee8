"""The document of one scope: what has been used in it, by whom, and what is still open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.errors import StoreUnreadable
from tierfall.ledger.limit import Limit, Window

if TYPE_CHECKING:
    from collections.abc import Iterable

WRITERS_KEPT_S: Final = 3600.0
"""How long a writer's last stamp is kept; a write whose outcome is unknown is looked into within seconds."""

MAX_AHEAD_S: Final = 60.0
"""A replica's clock that is further ahead of another's is taken for wrong."""

FAR_AHEAD_S: Final = 900.0
"""No request waits so long for its turn: what is said to happen later was written while a clock was wrong."""

PAST_PERIODS_KEPT: Final = 4
"""Days or months that are over and stay in the document: when the clock that said so was wrong, it goes back
to one of them, and what was used in it counts again."""


class Cell(msgspec.Struct, array_like=True):
    """What was used from ``start`` (Unix seconds) until the next cell begins."""

    start: int
    used: int


class Release(msgspec.Struct, array_like=True, frozen=True):
    """What of a reservation is given back to one cell when its owner stays silent."""

    key: str
    start: int
    amount: int


class Open(msgspec.Struct, array_like=True, frozen=True):
    """A reservation that is to be settled until ``expires_at``, in Unix seconds."""

    expires_at: float
    releases: tuple[Release, ...]


class Bench(msgspec.Struct, array_like=True, frozen=True):
    """The provider wants to hear nothing until then, in Unix seconds."""

    until: float
    why: str
    lasting: bool
    """Whether its quota is spent, rather than its rate too high."""
    since: float = 0.0
    """When it said so, in Unix seconds: what was said in the future was said by a wrong clock."""

    def holds(self, at: float) -> bool:
        """Whether it is to be left alone at ``at``."""
        return self.until > at and self.since <= at + MAX_AHEAD_S


class Stamp(msgspec.Struct, array_like=True, frozen=True):
    """A writer's last write: its number and when it was."""

    number: int
    at: float


class Account(msgspec.Struct, omit_defaults=True):
    """One scope's document.

    Attributes:
        cells: By :attr:`tierfall.ledger.limit.Limit.key`, what was used when. A reservation counts as used.
        open: Reservations that may be too high, by id.
        turns: By pace, when the next request may go, in Unix seconds.
        benched: By ``of`` (empty for the whole scope), who has said until when to leave it alone.
        writers: By writer, its last write: so it can tell whether a write without an answer was made.
    """

    cells: dict[str, list[Cell]] = {}
    open: dict[str, Open] = {}
    turns: dict[str, float] = {}
    benched: dict[str, Bench] = {}
    writers: dict[str, Stamp] = {}

    def clock(self, now: float) -> float:
        """The time that counts for a change of this document: it never goes back.

        A replica whose clock is behind could otherwise open again a day that another has closed. A clock that
        is far ahead of all others is wrong, and is not followed.
        """
        latest = max((stamp.at for stamp in self.writers.values()), default=now)
        return latest if now < latest <= now + MAX_AHEAD_S else now

    def used(self, limit: Limit, at: float) -> int:
        """How much counts towards ``limit`` at ``at``."""
        return sum(cell.used for cell in self.counting(limit, at))

    def counting(self, limit: Limit, at: float) -> Iterable[Cell]:
        """The cells that count towards ``limit`` at ``at``.

        Requests that wait for their turn are counted at the time of it. They count towards every minute that
        could hold them; towards a day or month only when it has come.
        """
        latest = at + FAR_AHEAD_S if limit.window is Window.MINUTE else at
        earliest = at - limit.lasts_s  # most cells are of days long over: they need no look at the calendar
        for cell in self.cells.get(limit.key, ()):
            if earliest < cell.start <= latest and limit.counts_until(cell.start) > at:
                yield cell

    def free_at(self, limit: Limit, at: float, need: int) -> float | None:
        """When ``need`` fits into ``limit`` if nothing else is used until then; None: never."""
        over = self.used(limit, at) + need - limit.amount
        if over <= 0:
            return at
        if need > limit.amount:
            return None
        for cell in sorted(self.counting(limit, at), key=lambda cell: cell.start):
            over -= cell.used
            if over <= 0:
                until = limit.counts_until(cell.start)
                return until if until < float("inf") else None
        return None

    def add(self, key: str, start: int, amount: int) -> None:
        """Counts ``amount`` more (or less) in a cell; one that is gone by now counts nothing."""
        cells = self.cells.setdefault(key, [])
        for cell in cells:
            if cell.start == start:
                cell.used = max(0, cell.used + amount)
                return
        if amount > 0:
            cells.append(Cell(start, amount))

    def correct(self, key: str, start: int, amount: int) -> None:
        """As :meth:`add`, but a cell that is gone does not come back."""
        if any(cell.start == start for cell in self.cells.get(key, ())):
            self.add(key, start, amount)

    def drop_gone(self, limit: Limit, at: float) -> None:
        """Forgets the limit's cells that no longer count; of days and months the last few are kept."""
        cells = self.cells.get(limit.key)
        if not cells:
            return
        kept_from = float("inf")
        if limit.window is not Window.MINUTE:
            if len(cells) <= PAST_PERIODS_KEPT:
                return
            over = sorted(cell.start for cell in cells if limit.counts_until(cell.start) <= at)
            if len(over) <= PAST_PERIODS_KEPT:
                return
            kept_from = over[-PAST_PERIODS_KEPT]
        self.cells[limit.key] = [
            cell for cell in cells if cell.start >= kept_from or limit.counts_until(cell.start) > at
        ]

    def tidy(self, at: float) -> None:
        """Gives back what silent owners reserved too much, and forgets what is over."""
        for key in [key for key, held in self.open.items() if held.expires_at <= at]:
            for release in self.open.pop(key).releases:
                self.correct(release.key, release.start, -release.amount)
        self.turns = {of: turn for of, turn in self.turns.items() if at < turn <= at + FAR_AHEAD_S}
        self.benched = {of: bench for of, bench in self.benched.items() if bench.holds(at)}
        self.writers = {
            writer: stamp for writer, stamp in self.writers.items() if stamp.at > at - WRITERS_KEPT_S
        }


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Account)


def pack_account(account: Account) -> bytes:
    """The document as JSON."""
    return _encoder.encode(account)


def unpack_account(document: bytes, scope: str = "?") -> Account:
    """The reverse of :func:`pack_account`; ``scope`` names it in the message.

    Raises:
        StoreUnreadable: The bytes are no such document: another program wrote into the bucket.
    """
    try:
        return _decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreUnreadable(f"the ledger's account {scope} cannot be read: {error}") from None
