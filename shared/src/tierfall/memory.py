"""The garbage collector of a process that serves for a long time."""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 20_000
"""Objects after which the collector looks at the young ones; Python's own 700 are one busy moment's."""
GENERATIONS: Final = (20, 20)
"""How many of a generation's rounds make one of the next; the oldest is large, so that is seldom."""


def settle() -> None:
    """To be called once a process has started: what is there now is there for good.

    Without it the collector walks over every module, again and again, to find that nothing of it is garbage;
    that took more than a tenth of a busy ingress's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *GENERATIONS)
