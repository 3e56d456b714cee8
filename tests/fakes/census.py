"""Counting what a process holds: what must be again as it was once all requests are over."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fakes.stack import Stack

MIB: Final = 1024 * 1024
STEADY_BYTES: Final = 4 * MIB
"""By how much Python's own memory may grow: caches and metrics of labels that were not seen before."""
RSS_BYTES: Final = 64 * MIB
"""By how much the process may grow, with what the allocator keeps and the traces themselves."""
_libc = ctypes.CDLL(None)


class Census(NamedTuple):
    """One count."""

    tasks: int
    lines: int
    jobs: int
    waiting: int
    sockets: int
    subscriptions: int

    def excess(self, before: Census) -> list[str]:
        """What there is more of than there was."""
        pairs = zip(self._fields, before, self, strict=True)
        return [f"{name}: {old} before, {new} now" for name, old, new in pairs if new > old]


def census(stack: Stack) -> Census:
    """What this process and its gateway hold right now."""
    buses = [stack.services.bus, *stack._buses.values()]
    return Census(
        tasks=len(asyncio.all_tasks()),
        lines=stack.services.switchboard.open_lines,
        jobs=sum(len(process._jobs) for process in stack.workers.values()),
        waiting=sum(map(len, stack.services.rooms.values())),
        sockets=_sockets(),
        subscriptions=sum(len(bus._subscriptions) + len(bus._routes) for bus in buses),
    )


class Memory(NamedTuple):
    """What the process takes, in bytes."""

    traced: int
    rss: int
    snapshot: tracemalloc.Snapshot

    def growth(self, before: Memory) -> list[str]:
        """Where more memory is held than may be; empty when it is within the limits."""
        traced, rss = self.traced - before.traced, self.rss - before.rss
        if traced <= STEADY_BYTES and rss <= RSS_BYTES:
            return []
        found: Iterable[object] = self.snapshot.compare_to(before.snapshot, "lineno")[:5]
        return [f"memory: traced +{traced / MIB:.1f} MiB, RSS +{rss / MIB:.1f} MiB", *map(str, found)]


def memory() -> Memory:
    """What it takes now, after a collection; ``tracemalloc`` must have been started."""
    gc.collect()
    _libc.malloc_trim(0)
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])  # noqa: FBT003 - the standard library's signature
    traced, _ = tracemalloc.get_traced_memory()
    return Memory(traced, _rss(), snapshot)


def _sockets() -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += entry.readlink().name.startswith("socket:")
        except OSError:
            continue  # closed while we looked
    return count


def _rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
