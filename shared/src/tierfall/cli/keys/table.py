"""How a list of keys is printed."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.config.scalars import show_rate
from tierfall.keys import KeyRecord, pack_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

HEAD: Final = ("NAME", "KEY", "CREATED (UTC)", "MODELS", "LIMITS")


def as_text(keys: Mapping[str, KeyRecord], out: TextIO) -> None:
    """A table with one line for each key."""
    if not keys:
        print("no keys; make one: tierfall keys create --config FILE --name NAME", file=out)
        return
    rows = [HEAD, *(_row(name, record) for name, record in keys.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), file=out)


def as_json(keys: Mapping[str, KeyRecord], out: TextIO) -> None:
    """A list of objects, as they are stored, without the digest."""
    told = []
    for name, record in keys.items():
        fields = msgspec.json.decode(pack_record(record))
        del fields["digest"]
        told.append({"name": name, **fields})
    print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode(), file=out)


def _row(name: str, record: KeyRecord) -> tuple[str, ...]:
    created = dt.datetime.fromtimestamp(record.created_at, dt.UTC)
    limits = record.limits
    said = [
        f"{metric} {', '.join(show_rate(rate) for rate in rates)}"
        for metric, rates in (
            ("requests", limits.requests),
            ("tokens", limits.tokens),
            ("budget", limits.budget),
        )
        if rates
    ]
    if said and limits.timezone != "UTC":
        said.append(limits.timezone)
    models = "all" if record.models is None else ", ".join(record.models)
    return name, record.hint, f"{created:%Y-%m-%d %H:%M}", models, "; ".join(said) or "none"
