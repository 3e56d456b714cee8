"""LiteLLM's wildcard names: Tierfall has none, so each model that is really used is written out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tierfall.cli.importer.source import Entry


def matching(name: str, wildcards: Sequence[Entry]) -> list[Entry]:
    """The entries that LiteLLM would send ``name`` to, made concrete: those of the longest pattern."""
    found: list[tuple[str, Entry]] = []
    for entry in wildcards:
        pattern = "(.*)".join(re.escape(part) for part in entry.name.split("*"))
        if (match := re.fullmatch(pattern, name)) is not None:
            found.append((entry.name, _concrete(entry, name, match.groups())))
    longest = max((len(pattern) for pattern, _ in found), default=0)
    return [entry for pattern, entry in found if len(pattern) == longest]


def _concrete(entry: Entry, name: str, parts: Iterable[str]) -> Entry:
    model = str(entry.params["model"])
    for part in parts:
        model = model.replace("*", part, 1)
    return msgspec.structs.replace(entry, name=name, params={**entry.params, "model": model})
