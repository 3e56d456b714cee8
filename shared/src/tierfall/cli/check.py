"""``tierfall check FILE``: is the config good, and what does it say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tierfall.config import EMBEDDED, CloudTier, load, notes, warnings
from tierfall.config.advice import secrets
from tierfall.config.scalars import show_duration
from tierfall.errors import ConfigError
from tierfall.quota import plans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import TextIO

    from tierfall.config import Config, Secret, Tier


def run(path: str, out: TextIO, environ: Mapping[str, str] | None = None) -> int:
    """Checks a config file and prints what it says: ladders, tiers, which secrets are set, notes.

    Args:
        path: The file.
        out: Where to print; no secret is ever printed.
        environ: Where secrets are looked up; this process's environment when left out.

    Returns:
        The exit status: 0 when the file can be used, 1 when not, after printing each problem.
    """
    try:
        config = load(path, os.environ if environ is None else environ)
    except ConfigError as error:
        count = len(error.message.splitlines())
        print(error.message, file=out)
        print(f"\n{count} {'problem' if count == 1 else 'problems'}; the file cannot be used", file=out)
        return 1
    for line in _report(config):
        print(line, file=out)
    print(f"\n{path} is good", file=out)
    return 0


def _report(config: Config) -> Iterator[str]:
    server = config.server
    yield f"http  {server.host}:{server.port}"
    yield f"nats  {config.nats.address}{' (embedded)' if config.nats.url == EMBEDDED else ''}"
    ladders = [
        [name, " > ".join(_rung(config, rung) for rung in config.ladder(name))] for name in config.models
    ]
    yield from _table(["MODEL", "LADDER: TIER (FIRST TOKEN)"], ladders)
    tiers = [
        [name, tier.kind, _backend(tier), str(tier.max_in_flight)] for name, tier in config.tiers.items()
    ]
    yield from _table(["TIER", "WORKER", "BACKEND", "SLOTS"], tiers)
    yield from _table(["QUOTA OF", "AT MOST", "WITH EACH OF", "DAYS OF"], _quotas(config))
    named = [[path, secret.source or "in the file", _state(secret)] for path, secret in secrets(config)]
    yield from _table(["SECRET", "FROM", "STATE"], named)
    if not server.api_keys:
        yield ""
        yield "no client keys: whoever can reach this machine's loopback may ask"
    for title, said in (("warnings", warnings(config)), ("notes", notes(config))):
        if said:
            yield ""
            yield title
            yield from (f"  {line}" for line in said)


def _quotas(config: Config) -> Iterator[list[str]]:
    """One row a limit; what holds for all models of a tier together stands once."""
    rows: dict[tuple[str, ...], None] = {}
    for name, plan in plans(config).items():
        limits = [(limit.of, limit.text) for limit in plan.limits]
        if plan.pace is not None:
            limits.append((plan.pace.of, f"one each {show_duration(plan.pace.every_s)}"))
        for of, text in limits:
            rows[name if of else f"all of tier {plan.tier}", text, ", ".join(plan.keys), plan.zone] = None
    yield from map(list, rows)


def _rung(config: Config, name: str) -> str:
    model = config.models[name]
    return f"{model.tier} ({show_duration(model.deadlines.first_token)})"


def _backend(tier: Tier) -> str:
    if isinstance(tier, CloudTier):
        return f"{tier.provider} at {tier.base_url}" if tier.base_url else tier.provider
    return tier.base_url


def _state(secret: Secret) -> str:
    return "set" if secret else "not set"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Left-aligned columns under a blank line; nothing at all without rows."""
    table = [head, *rows]
    if len(table) == 1:
        return
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    yield ""
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
