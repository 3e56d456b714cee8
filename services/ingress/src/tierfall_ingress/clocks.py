"""The clocks of one attempt. They fire by themselves, not when a chunk happens to come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tierfall.errors import FirstTokenDeadline, IdleDeadline, TotalDeadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierfall.config import Deadlines
    from tierfall_ingress.line import Line

LOADING: Final = "loading"
PAUSE_S: Final = 15.0
"""After so much silence in mid-stream the client gets a sign: proxies cut what is silent for 60 s."""
RELENT_S: Final = 1.0
"""How soon an attempt that was spared, because no other tier is alive, is looked at again."""


class Clocks:
    """Ends a line when it is too late: ``first_token`` (or ``load``), then ``idle``, and ``total`` over all.

    Args:
        line: The attempt's line.
        deadlines: The model's.
        since: Loop time from which ``first_token`` counts: the rung's beginning, so that a retry on the same
            tier does not get a new clock.
        may_cut: Whether there is a live tier to go to; the last one is not cut by ``first_token``.
        streaming: Whether the client reads events, and so can be sent a comment in a long pause.
    """

    def __init__(
        self,
        line: Line,
        deadlines: Deadlines,
        since: float,
        may_cut: Callable[[], bool],
        *,
        streaming: bool,
    ) -> None:
        self._loop = line.loop
        self._line = line
        self._deadlines = deadlines
        self._since = since
        self._may_cut = may_cut
        now = self._loop.time()
        self._ends_at = now + deadlines.total
        self._pause_at = now + PAUSE_S if streaming else float("inf")
        self._set(now, max(now, since + deadlines.first_token))

    def stop(self) -> None:
        """The attempt is over."""
        self._timer.cancel()

    def _set(self, now: float, due: float) -> None:
        """One timer for all: the next moment at which there may be something to do."""
        at = min(due, now + self._deadlines.idle, self._ends_at, self._pause_at)
        self._timer = self._loop.call_at(at, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        if now >= self._ends_at:
            self._line.fail(TotalDeadline(f"the attempt ran longer than {self._deadlines.total:g} s"))
            return
        if now >= self._pause_at:
            self._pause_at = self._after_pause(now)
        due = self._first_due(now) if self._line.output_at is None else self._idle_due(now)
        if due is not None:
            self._set(now, due)

    def _after_pause(self, now: float) -> float:
        """Lets the client hear something in a long pause; before the first output nothing may be sent."""
        line = self._line
        due = line.read_at + PAUSE_S
        if now < due:
            return due
        if line.output_at is not None:
            line.keep_alive()
        return now + PAUSE_S

    def _first_due(self, now: float) -> float | None:
        """When to look again before the first output; None when it is too late."""
        limit, load = self._deadlines.first_token, self._deadlines.load
        doing = self._line.doing
        if doing == LOADING and load is not None:
            limit = max(limit, load)
        if now < self._since + limit:
            return self._since + limit
        if not self._may_cut():
            return now + RELENT_S
        while_doing = f", while the worker was {doing}" if doing else ""
        self._line.fail(FirstTokenDeadline(f"no output within {limit:g} s{while_doing}"))
        return None

    def _idle_due(self, now: float) -> float | None:
        """When to look again between outputs; None when it is too late."""
        if self._line.readable:
            return now + self._deadlines.idle  # the client is slow, not the backend
        due = (self._line.output_at or now) + self._deadlines.idle
        if now < due:
            return due
        self._line.fail(IdleDeadline(f"no further output within {self._deadlines.idle:g} s"))
        return None
