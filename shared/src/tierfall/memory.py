"""The memory of a process that serves for a long time: its garbage collector and its allocator."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

YOUNG_OBJECTS: Final = 20_000
"""Objects after which the collector looks at the young ones; Python's own 700 are one busy moment's."""
GENERATIONS: Final = (20, 20)
"""How many of a generation's rounds make one of the next; the oldest is large, so that is seldom."""
MAPPED_BYTES: Final = 1024 * 1024
"""A block of this size or more goes back to the system as soon as it is free. Buffers that are read into are
smaller, and cheaper to use again."""
TRIMMED_BYTES: Final = 16 * 1024 * 1024
"""So much may stay free at the end of the heap."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def settle() -> None:
    """To be called once a process has started: what is there now is there for good.

    Without it the collector walks over every module, again and again, to find that nothing of it is garbage;
    that took more than a tenth of a busy ingress's time.
    """
    _give_back()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *GENERATIONS)


def _give_back() -> None:
    """Lets large bodies leave nothing behind once they are freed, where the allocator is glibc's.

    By itself it puts them on the heap after the first one, and a small block that lies behind them keeps all
    of it: after a burst of large bodies the process stayed as large as it had been then.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIMMED_BYTES)
