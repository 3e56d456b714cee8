"""Whose clock is wrong: workers' times of day, as their beats tell them, against that of this process.

Nothing on a request's way depends on it. Logs and certificates do.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from tierfall.protocol.presence import CLOCK_SKEW_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall.protocol.presence import Beat

SAMPLES: Final = 5
"""Beats that are looked at. A late one makes its worker's clock seem behind, so the quickest counts."""

_log: Final = logging.getLogger("tierfall.ingress")


class Skews:
    """How far each worker's clock is ahead of this process's."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}
        self._told: set[str] = set()

    def note(self, beat: Beat) -> None:
        """A beat has just come; logs a clock that is wrong, and when it is right again."""
        if not beat.time:
            return
        samples = self._samples.get(beat.worker)
        if samples is None:
            samples = self._samples[beat.worker] = deque(maxlen=SAMPLES)
        samples.append(beat.time - time.time())
        ahead_s = self.ahead_s(beat.worker)
        if ahead_s is None or (abs(ahead_s) > CLOCK_SKEW_S) == (beat.worker in self._told):
            return
        if beat.worker in self._told:
            self._told.discard(beat.worker)
            _log.info("clock of worker %s agrees with this ingress again", beat.worker)
        else:
            self._told.add(beat.worker)
            _log.warning("clock of worker %s is %s this ingress", beat.worker, apart(ahead_s))

    def ahead_s(self, worker: str) -> float | None:
        """Seconds by which the worker's clock is ahead; negative: behind; None: not known yet."""
        samples = self._samples.get(worker, ())
        return max(samples) if len(samples) == SAMPLES else None

    def keep(self, workers: set[str]) -> None:
        """Forgets all others."""
        for worker in self._samples.keys() - workers:
            del self._samples[worker]
        self._told &= workers

    def largest(self, workers: Iterable[str]) -> float:
        """The skew of the one of them whose clock differs most; 0 if nothing is known."""
        known = (ahead_s for worker in workers if (ahead_s := self.ahead_s(worker)) is not None)
        return max(known, key=abs, default=0.0)


def apart(ahead_s: float) -> str:
    """``5.2 s ahead of``, or ``5.2 s behind``."""
    return f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'}"
