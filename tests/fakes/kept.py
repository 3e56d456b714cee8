"""What requests leave in memory while the garbage collector is off; reference cycles would stay."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from typing import TYPE_CHECKING, Final

from fakes.polling import until
from tierfall.worker.job import Job
from tierfall_ingress.exchange import Exchange
from tierfall_ingress.ladder import Ladder
from tierfall_ingress.line import Line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PADDING: Final = "x" * 512 * 1024
"""Makes a body so large that one that is kept shows in the memory of the process."""
MOST_KEPT_BYTES: Final = len(PADDING) * 3 / 2
"""The client of a test may hold its request once."""
FRAMES_SHOWN: Final = 3
REQUEST_PARTS: Final = (Exchange, Ladder, Line, Job)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Keeps the garbage collector off."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.asynccontextmanager
async def nothing_kept() -> AsyncIterator[None]:
    """Holds the block, which sends requests with :data:`PADDING`, to leave nothing of them behind.

    Raises:
        AssertionError: A part of a request is alive, or its body is; the message says where it was made.
    """
    before = len(alive())
    tracemalloc.start(FRAMES_SHOWN)
    try:
        yield
        await until(lambda: len(alive()) <= before and tracemalloc.get_traced_memory()[0] < MOST_KEPT_BYTES)
    except TimeoutError:
        largest = tracemalloc.take_snapshot().statistics("traceback")[0]
        raise AssertionError("\n".join([*alive(), str(largest), *largest.traceback.format()])) from None
    finally:
        tracemalloc.stop()


def alive() -> list[str]:
    """The parts of requests that are in memory."""
    return [f"a {type(each).__name__}" for each in gc.get_objects() if isinstance(each, REQUEST_PARTS)]
