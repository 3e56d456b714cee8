"""The providers' quotas: whether they can be counted, and which are spent or soon will be."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from tierfall.cli.doctor.finding import Finding, Level
from tierfall.cli.quota import look
from tierfall.errors import BusError
from tierfall.ledger import Window
from tierfall.quota import plans, standing_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tierfall.bus import Bus
    from tierfall.config import Config
    from tierfall.quota import Standing

NEARLY: Final = 0.9
"""The share of a day or month from which it is worth a word."""


async def examine(config: Config, bus: Bus, path: Path) -> list[Finding]:
    """One finding for each model with a quota; one for all of them when they cannot be counted."""
    found = plans(config)
    if not found:
        return []
    try:
        accounts, now = await look(bus, found.values())
    except BusError as error:
        names = ", ".join(found)
        text = f"cannot be counted, so nothing is sent to {names}: {error.message}"
        return [Finding(Level.FAIL, "quotas", text, "nats stream report")]
    return list(_judge([standing_of(plan, accounts, now) for plan in found.values()], path))


def _judge(standings: list[Standing], path: Path) -> Iterator[Finding]:
    command = f"tierfall quota --config {shlex.quote(str(path))}"
    for standing in standings:
        subject = f"quota {standing.model}"
        nearly = [
            f"{window.used} of {window.limit} {window.metric} a {window.window} of {key.key} are used"
            for key in standing.keys
            for window in key.windows
            if window.window is not Window.MINUTE and window.used > NEARLY * window.limit
        ]
        lasting = [f"{key.key}: {key.spent}" for key in standing.keys if key.spent and key.lasting]
        if len(lasting) == len(standing.keys):
            yield Finding(Level.WARN, subject, f"is spent. {'; '.join(lasting)}", command)
        elif lasting or nearly:
            yield Finding(Level.WARN, subject, "; ".join(lasting or nearly), command)
        else:
            yield Finding(Level.OK, subject, "has some left")
