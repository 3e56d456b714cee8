"""How late a request reached a worker, found without comparing two machines' clocks.

Each envelope carries its ingress's own clock. A worker subtracts that from its own clock: the difference is
the unknown distance of the two clocks and the time on the way. The smallest difference of one ingress is that
of its quickest request, so a request whose difference is larger has lain somewhere for so long.

A clock that jumps, or drifts for hours, makes requests look late that are not. So a late request is refused
and not dropped: an ingress that still waits for it marks it as fresh and sends it again, and its difference
replaces the smallest one.
"""

from __future__ import annotations

import time
from typing import Final

LATE_S: Final = 0.5
"""A request that was longer on its way is refused: its ingress has probably sent it elsewhere by then."""
KNOWN_INGRESSES: Final = 1024

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds since some moment; goes on while the machine sleeps (on Linux), and is never set."""
    return time.clock_gettime(_CLOCK)


class Ages:
    """The smallest difference of each ingress that has sent a request lately."""

    def __init__(self) -> None:
        self._smallest: dict[str, float] = {}

    def age(self, ingress: str, sent_at: float, *, fresh: bool = False) -> float:
        """How many seconds longer this request was on its way than the quickest one; 0 for the first one.

        Args:
            ingress: Any name that is this ingress's alone.
            sent_at: As in the envelope.
            fresh: Whether the ingress says that it has sent it just now: then it is not late.
        """
        difference = clock() - sent_at
        smallest = self._smallest.get(ingress)
        if smallest is None:
            if len(self._smallest) >= KNOWN_INGRESSES:
                del self._smallest[next(iter(self._smallest))]
        elif not fresh and difference >= smallest:
            return difference - smallest
        self._smallest[ingress] = difference
        return 0.0
