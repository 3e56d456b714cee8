"""How a list of keys is printed."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.config import Rate, Spend
from tierfall.config.scalars import MILLIONTHS, show_rate
from tierfall.keys import KeyRecord, ledger_limits, pack_record
from tierfall.ledger import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TextIO

    from tierfall.ledger import Account, Limit

HEAD: Final = ("NAME", "KEY", "CREATED (UTC)", "MODELS", "USED")
NAMES: Final = {Metric.REQUESTS: "requests", Metric.TOKENS: "tokens", Metric.COST: "budget"}
"""As the config calls them."""


def as_text(keys: Mapping[str, KeyRecord], accounts: Mapping[str, Account], at: float, out: TextIO) -> None:
    """A table with one line for each key.

    Args:
        keys: By name.
        accounts: What those with limits have used, by name.
        at: Unix seconds.
        out: Where to print.
    """
    if not keys:
        print("no keys; make one: tierfall keys create --config FILE --name NAME", file=out)
        return
    rows = [HEAD, *(_row(name, record, accounts.get(name), at) for name, record in keys.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), file=out)


def as_json(keys: Mapping[str, KeyRecord], accounts: Mapping[str, Account], at: float, out: TextIO) -> None:
    """A list of objects, as they are stored, with what was used and without the digest."""
    told = []
    for name, record in keys.items():
        fields = msgspec.json.decode(pack_record(record))
        del fields["digest"]
        used = [
            {"limit": NAMES[limit.metric], "of": written, "used": used}
            for limit, written, used in _uses(record, accounts.get(name), at)
        ]
        told.append({"name": name, **fields, "used": used})
    print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode(), file=out)


def _row(name: str, record: KeyRecord, account: Account | None, at: float) -> tuple[str, ...]:
    created = dt.datetime.fromtimestamp(record.created_at, dt.UTC)
    models = "all" if record.models is None else ", ".join(record.models)
    by_metric: dict[str, list[str]] = {}
    for limit, written, used in _uses(record, account, at):
        by_metric.setdefault(NAMES[limit.metric], []).append(f"{used:.15g} of {written}")
    said = [f"{metric} {', '.join(uses)}" for metric, uses in by_metric.items()]
    if said and record.limits.timezone != "UTC":
        said.append(record.limits.timezone)
    return name, record.hint, f"{created:%Y-%m-%d %H:%M}", models, "; ".join(said) or "no limits"


def _uses(record: KeyRecord, account: Account | None, at: float) -> Iterator[tuple[Limit, str, float]]:
    """Each limit, as the config writes it, and what counts towards it now; money in whole units."""
    for limit in ledger_limits(record.limits):
        used = 0 if account is None else account.used(limit, at)
        money = limit.metric is Metric.COST
        rate = (Spend if money else Rate)(limit.amount, limit.window.value)
        yield limit, show_rate(rate), used / MILLIONTHS if money else used
