"""Which systems get which load, for how long and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from bench.load import Load
from bench.peers import BEHIND, KEY, Place, System, Tierfall, direct, ferro, litellm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

LARGE_BYTES: Final = 1_000_000
SOAK_TOKENS: Final = 1_000_000
SOAK_STREAMS: Final = 300


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Systems that run side by side and take the same loads in turn.

    Attributes:
        name: What it is called in the results.
        starts: By name, what starts each system.
        loads: By case; ``ports`` are filled in when a system has started.
        rounds: How often each system gets each load.
    """

    name: str
    starts: Mapping[str, Callable[[Place], AbstractContextManager[System]]]
    loads: dict[str, Load]
    rounds: int


TIERFALL: Final = Tierfall()
TRACED: Final = Tierfall(name="tierfall-traced", sampled=0.1)
SCALED: Final = (
    TIERFALL,
    Tierfall(name="tierfall-2-workers", workers=2),
    Tierfall(name="tierfall-4-workers", workers=4),
    Tierfall(name="tierfall-2-ingresses", workers=2, ingresses=2),
)
WARM_UP: Final = (
    Load(kind="unary", ports=(), size=32, seconds=1, key=KEY),
    Load(kind="stream", ports=(), size=10, seconds=2, key=KEY),
)


def _unary(size: int, seconds: float) -> Load:
    return Load(kind="unary", ports=(), size=size, seconds=seconds, key=KEY)


def _stream(size: int, seconds: float) -> Load:
    return Load(kind="stream", ports=(), size=size, seconds=seconds, key=KEY)


def _large(seconds: float) -> Load:
    return Load(kind="unary", ports=(), size=1, seconds=seconds, key=KEY, prompt_bytes=LARGE_BYTES)


def _behind(seconds: float) -> dict[str, Load]:
    """One connection asks the healthy tier, then each model whose first tier is at fault."""
    plain = {"healthy": _unary(1, seconds)}
    return plain | {
        fault: Load(kind="unary", ports=(), size=1, seconds=seconds, key=KEY, model=f"behind-{fault}")
        for fault in BEHIND
    }


def full() -> list[Group]:
    """Everything, in about 20 minutes."""
    unary = {f"unary {size}": _unary(size, 3) for size in (1, 32, 128)}
    streams = {f"stream {size}": _stream(size, 6) for size in (20, 100, 300, 1000)}
    soak_s = SOAK_TOKENS / SOAK_STREAMS / 50
    alone = {TIERFALL.name: TIERFALL.start}
    return [
        Group(
            name="systems",
            starts={"direct": direct, "ferro": ferro, "litellm": litellm} | alone,
            loads=unary | {"1 MB": _large(3)} | streams,
            rounds=3,
        ),
        Group(name="faults", starts=alone, loads=_behind(10), rounds=1),
        Group(
            name="tracing",
            starts=alone | {TRACED.name: TRACED.start},
            loads={"unary 32": _unary(32, 3), "stream 300": _stream(300, 6)},
            rounds=3,
        ),
        Group(
            name="scaling",
            starts={each.name: each.start for each in SCALED},
            loads={"unary 128": _unary(128, 3)},
            rounds=3,
        ),
        Group(
            name="soak",
            starts=alone,
            loads={
                "as many streams before": _stream(
                    SOAK_STREAMS, 6
                ),  # what that many need at a time is no leak
                "a million chunks": _stream(SOAK_STREAMS, soak_s),
            },
            rounds=1,
        ),
    ]


def quick() -> list[Group]:
    """What changes most often, in under 3 minutes."""
    unary = {f"unary {size}": _unary(size, 2) for size in (1, 32, 128)}
    streams = {f"stream {size}": _stream(size, 3) for size in (300, 1000)}
    alone = {TIERFALL.name: TIERFALL.start}
    return [
        Group(
            name="systems",
            starts={"direct": direct, "ferro": ferro} | alone,
            loads=unary | {"1 MB": _large(1)} | streams,
            rounds=2,
        ),
        Group(name="faults", starts=alone, loads=_behind(2), rounds=1),
    ]
