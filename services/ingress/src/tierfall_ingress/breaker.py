"""The circuit of one tier: what answers its health check but never a chat is left alone for a while."""

from __future__ import annotations

from typing import Final

from tierfall.errors import (
    BackendFault,
    FirstTokenDeadline,
    TierfallError,
    TotalDeadline,
    Undelivered,
    WorkerLost,
)

MISSES: Final = 3
"""Attempts in a row without output after which a tier is benched."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 5.0
"""A tier that recovers is noticed within this and one request."""
TOGETHER_S: Final = 1.0
"""A worker's requests are lost together: further ones within this time are the same miss."""
_COUNTED: Final = (BackendFault, FirstTokenDeadline, TotalDeadline, WorkerLost)


class Breaker:
    """Counts one tier's misses.

    Closed, it lets everything through. After :data:`MISSES` in a row it is open: the tier is passed by, but
    for one request at a time after a pause that doubles with each miss; the first output closes it.
    """

    def __init__(self) -> None:
        self._misses = 0
        self._pause_s = FIRST_PAUSE_S
        self._probe_at = 0.0
        self._probing = False
        self._lost_at = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether the tier is benched."""
        return self._misses >= MISSES

    def try_probe(self, now: float) -> bool:
        """Whether an open circuit lets this request through, as its one probe.

        Args:
            now: Loop time in seconds.
        """
        if self._probing or now < self._probe_at:
            return False
        self._probing = True
        return True

    def answered(self) -> None:
        """An attempt had output."""
        self._misses = 0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, error: TierfallError, now: float) -> None:
        """An attempt ended without output; what is no fault of the backend is not counted."""
        if isinstance(error, WorkerLost):
            if isinstance(error, Undelivered) or now - self._lost_at < TOGETHER_S:
                return
            self._lost_at = now
        if isinstance(error, _COUNTED):
            self._misses += 1
            if self.is_open:
                self._probe_at = now + self._pause_s
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def probed(self) -> None:
        """The one probe is over, however it ended: the next one may follow."""
        self._probing = False
