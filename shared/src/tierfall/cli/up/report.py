"""What a newcomer sees once everything runs: the tiers, the ladders, and a request to paste."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tierfall.config.schema import Config, Server, Tier

WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}

KEY_VARIABLE: Final = "TIERFALL_KEY"

NO_WORKERS: Final = "no_workers"


def base_url(server: Server) -> str:
    """Where a client on this machine reaches the ingress, without a path: ``http://127.0.0.1:4000``."""
    host = WILDCARDS.get(server.host, server.host)
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


def health_key(server: Server) -> str:
    """The key of the config to which ``GET /health`` shows most; empty when there is none."""
    if server.admin_keys:
        return server.admin_keys[0].value
    everywhere = [key for key in server.api_keys if key.models is None]
    return next((key.key.value for key in [*everywhere, *server.api_keys]), "")


def summary(config: Config, health: Mapping[str, Any]) -> str:
    """Returns the table of tiers and the ladders as text.

    Args:
        config: The config that is running.
        health: The ingress's answer to ``GET /health``.
    """
    tiers: Mapping[str, Any] = health.get("tiers", {})
    rows = [("TIER", "WORKER", "BACKEND", "STATE")]
    rows += [
        (name, tier.kind, _backend(tier), _state(tiers.get(name, {}))) for name, tier in config.tiers.items()
    ]
    ladders = [("MODEL", "LADDER", "ANSWERS NOW")]
    for name in config.models:
        rungs = config.ladder(name)
        live = [rung for rung in rungs if tiers.get(config.models[rung].tier, {}).get("state") == "up"]
        ladders.append((name, " > ".join(rungs), live[0] if live else "nobody"))
    return f"{_table(rows)}\n\n{_table(ladders)}"


def curl(config: Config) -> str:
    """Returns a command to paste that asks for the first model. Names the key's variable, never the key."""
    model = next(iter(config.models))
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Say hello."}]})
    lines = [f"curl {base_url(config.server)}/v1/chat/completions"]
    if config.server.api_keys:
        variable = config.server.api_keys[0].key.source or KEY_VARIABLE
        lines.append(f'-H "Authorization: Bearer ${variable}"')
    lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(body)}"]
    return " \\\n  ".join(lines)


def _backend(tier: Tier) -> str:
    where: str = tier.base_url
    return where or str(getattr(tier, "provider", ""))


def _state(tier: Mapping[str, Any]) -> str:
    if not tier:
        return "not shown to this key"
    state, reason = str(tier.get("state", NO_WORKERS)), str(tier.get("reason") or "")
    if state == NO_WORKERS:
        return "no workers"
    return f"{state}: {reason}" if reason and state != "up" else state


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
