"""``tierfall quota``: what is left of the providers' quotas, read from NATS itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.bus import Bus, BusOptions
from tierfall.config import load
from tierfall.ledger import Ledger, Window, show_wait, zone_of
from tierfall.quota import plans, report, standing_of
from tierfall.store import QUOTA, Bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import TextIO

    from tierfall.config import Config
    from tierfall.ledger import Account
    from tierfall.quota import Plan, Standing, WindowStanding

CONNECT_S: Final = 5.0
COLUMNS: Final = ("MODEL", "KEY", "WINDOW", "USED", "LEFT", "RESET")
ALL_MODELS: Final = "(all of the key)"


def run(
    config: Path, environ: Mapping[str, str], out: TextIO, *, nkey: str = "", as_json: bool = False
) -> int:
    """Prints how every quota of the config stands.

    Args:
        config: The config file.
        environ: Where secrets are looked up; a provider's key need not be there.
        out: Where the table goes.
        nkey: Path of a seed to show to NATS instead of the config's.
        as_json: As ``GET /v1/quotas`` has it, instead of a table.

    Raises:
        ConfigError: The file cannot be used.
        BusError: NATS cannot be asked, or has no JetStream.
    """
    logging.getLogger("tierfall").addHandler(logging.NullHandler())  # what goes wrong is told by the error
    loaded = load(config, environ, for_worker=True)
    found = plans(loaded)
    accounts, now = asyncio.run(_accounts(loaded, found.values(), nkey)) if found else ({}, 0.0)
    standings = [(plan, standing_of(plan, accounts, now)) for plan in found.values()]
    if as_json:
        listed = {"object": "list", "data": [report(standing) for _, standing in standings]}
        print(json.dumps(listed, indent=2), file=out)
    elif standings:
        _print([COLUMNS, *_rows(standings, now)], out)
        for _, standing in standings:
            for key in standing.keys:
                if key.spent:
                    print(f"{standing.model} cannot be used with {key.key}: {key.spent}", file=out)
    else:
        print(f"{config} has no quota: see docs/quotas.md", file=out)
    return 0


async def _accounts(config: Config, found: Iterable[Plan], nkey: str) -> tuple[dict[str, Account], float]:
    nats = msgspec.structs.replace(config.nats, nkey=nkey, creds="") if nkey else config.nats
    bus = await Bus.connect(BusOptions.of(nats, "tierfall-quota", CONNECT_S))
    try:
        return await look(bus, found)
    finally:
        await bus.close()


async def look(bus: Bus, found: Iterable[Plan]) -> tuple[dict[str, Account], float]:
    """The accounts of these plans, by scope, and the Unix time that they go by.

    Raises:
        BusError: NATS cannot be asked, or has no JetStream.
    """
    ledger = Ledger(Bucket(bus, QUOTA))
    scopes = dict.fromkeys(scope for plan in found for scope in plan.scopes)
    accounts = {scope: await ledger.look(scope) for scope in scopes}
    return accounts, ledger.now()


def _rows(standings: Iterable[tuple[Plan, Standing]], now: float) -> Iterator[tuple[str, ...]]:
    told: set[tuple[str, ...]] = set()
    for plan, standing in standings:
        for key in standing.keys:
            for window in key.windows:
                # What all models of a key use together is told once.
                name = standing.model if window.of else ALL_MODELS
                row = (name, key.key, f"{window.metric}/{window.window}")
                if (standing.tier, *row) not in told:
                    told.add((standing.tier, *row))
                    used = f"{window.used} of {window.limit}"
                    yield *row, used, str(window.left), _reset(window, plan.zone, now)


def _reset(window: WindowStanding, zone: str, now: float) -> str:
    if window.resets_at is None:
        return ""
    if window.window is Window.MINUTE:
        return f"in {show_wait(window.resets_at - now)}"
    return f"{dt.datetime.fromtimestamp(window.resets_at, zone_of(zone)):%Y-%m-%d %H:%M} {zone}"


def _print(rows: list[tuple[str, ...]], out: TextIO) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip(), file=out)
