"""Each model: its ladder, and who would answer now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierfall.cli.doctor.finding import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from tierfall.config import Config


def examine(config: Config, usable: Container[str]) -> Iterator[Finding]:
    """One finding for each model.

    Args:
        config: The config.
        usable: Names of the tiers that answer.
    """
    for name in config.models:
        rungs = config.ladder(name)
        answering = [rung for rung in rungs if config.models[rung].tier in usable]
        ladder = " > ".join(rungs)
        if not answering:
            waits_for = ", ".join(dict.fromkeys(config.models[rung].tier for rung in rungs))
            text = f"nobody can answer it (ladder: {ladder})"
            yield Finding(Level.FAIL, f"model {name}", text, f"bring up one of its tiers: {waits_for}")
        elif answering[0] != name:
            text = f"{answering[0]} answers in its place (ladder: {ladder})"
            yield Finding(Level.WARN, f"model {name}", text)
        else:
            tier = config.models[name].tier
            behind = f", then {', '.join(answering[1:])}" if answering[1:] else ", and nobody behind it"
            yield Finding(Level.OK, f"model {name}", f"tier {tier} answers{behind}")
