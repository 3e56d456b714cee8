"""LiteLLM's two time limits as Tierfall's clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.config import Deadlines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall.cli.importer.findings import Findings

SHORT_S: Final = 120.0
"""A limit up to here on a whole answer was set to get past a silent model, not to bound long answers."""
LONGEST_S: Final = 86400.0

FIRST_TOKEN_S: Final = float(Deadlines().first_token)
TOTAL_S: Final = float(Deadlines().total)
BUDGET_S: Final = float(Deadlines().budget)


class Clocks(msgspec.Struct, frozen=True):
    """What differs from Tierfall's defaults; all in seconds."""

    first_token: float = FIRST_TOKEN_S
    total: float = TOTAL_S


def clocks(timeout_s: float | None, stream_timeout_s: float | None, findings: Findings, name: str) -> Clocks:
    """One model's clocks.

    LiteLLM's ``stream_timeout`` is the wait for the first chunk, its ``timeout`` the limit of a whole call.
    Alone, a short ``timeout`` becomes the first-token deadline: it was there to fall over soon.
    """
    first, total = FIRST_TOKEN_S, TOTAL_S
    if stream_timeout_s is not None:
        first = stream_timeout_s
        total = timeout_s if timeout_s is not None else max(TOTAL_S, first)
    elif timeout_s is not None and timeout_s <= SHORT_S:
        first = timeout_s
        advice = (
            "is the time to the first token now, and a long answer that flows is not cut. To cut it all the"
            " same, set deadlines.total"
        )
        findings.changed("timeout", advice, name)
    elif timeout_s is not None:
        total = timeout_s
        advice = "the first token is waited for at most 30 s now; deadlines.first_token changes that"
        findings.changed("timeout", advice, name)
    if max(first, total) > LONGEST_S:
        findings.changed("timeout", "is a day now, which is as good as none", name)
    first, total = min(first, LONGEST_S), min(total, LONGEST_S)
    return Clocks(min(first, total), total)


def budget(rungs: Iterable[Clocks]) -> float:
    """Seconds for the whole ladder: every rung may use up its first-token deadline, the last one all."""
    clocks_of = list(rungs)
    needed = sum(rung.first_token for rung in clocks_of[:-1]) + max(rung.total for rung in clocks_of)
    return max(BUDGET_S, needed)
