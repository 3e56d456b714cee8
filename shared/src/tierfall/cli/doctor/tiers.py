"""Each tier: its workers, its backend, its slots."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from tierfall.cli.doctor.finding import Finding, Level
from tierfall.config import CloudTier, OllamaTier
from tierfall.engines import advice

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tierfall.config import Config, Tier
    from tierfall.protocol.presence import Beat

OLLAMA_DEFAULT_TAG: Final = ":latest"
SHOWN_MODELS: Final = 4


def live(beats: Mapping[str, Sequence[Beat]]) -> set[str]:
    """The tiers that have a worker whose backend is up."""
    return {tier for tier, of_tier in beats.items() if any(beat.backend == "up" for beat in of_tier)}


def indispensable(config: Config, usable: Container[str]) -> set[str]:
    """The tiers without which some model has nobody at all: those of a ladder of which none is usable."""
    found: set[str] = set()
    for name in config.models:
        rungs = [config.models[rung].tier for rung in config.ladder(name)]
        if not any(tier in usable for tier in rungs):
            found.update(rungs)
    return found


def examine(config: Config, beats: Mapping[str, Sequence[Beat]], path: Path) -> Iterator[Finding]:
    """One finding for each tier, and for workers that serve something else."""
    needed = indispensable(config, live(beats))
    for name, tier in config.tiers.items():
        bad = Level.FAIL if name in needed else Level.WARN
        yield _tier(name, tier, beats.get(name, ()), path, bad)
        yield from _missing_models(name, config, beats.get(name, ()))
        yield from engines(name, (beat.engine for beat in beats.get(name, ())))
    for name in sorted(beats.keys() - config.tiers.keys()):
        for beat in beats[name]:
            text = f"{beat.worker} serves it, and this config has no such tier: it runs on another file"
            yield Finding(Level.WARN, f"tier {name}", text)


def _tier(name: str, tier: Tier, beats: Sequence[Beat], path: Path, bad: Level) -> Finding:
    subject = f"tier {name}"
    worker = f"tierfall-worker-{tier.kind} --config {shlex.quote(str(path))} --tier {name}"
    if not beats:
        return Finding(bad, subject, "no worker serves it", worker)
    up = [beat for beat in beats if beat.backend == "up"]
    if not up:
        beat = next((beat for beat in beats if beat.backend == "loading"), beats[0])
        text = (
            f"{beat.worker} is there, its backend is {beat.backend}: {beat.reason or 'it does not say why'}"
        )
        return Finding(bad, subject, text, _look_at(tier))
    slots, taken = sum(beat.slots for beat in up), sum(beat.in_flight for beat in up)
    text = f"{_workers(up)} up, {taken} of {slots} slots taken"
    if taken >= slots:
        return Finding(Level.WARN, subject, f"{text}: requests wait or go to the next tier", worker)
    lame = [f"{beat.worker}: {beat.reason}" for beat in beats if beat.backend != "up"]
    if lame:
        return Finding(Level.WARN, subject, f"{text}; not up: {'; '.join(lame)}", _look_at(tier))
    return Finding(Level.OK, subject, text)


def _missing_models(name: str, config: Config, beats: Sequence[Beat]) -> Iterator[Finding]:
    """Models that the config asks the backend for and that the backend does not list."""
    tier = config.tiers[name]
    for beat in beats:
        if beat.backend != "up" or not beat.models:
            continue
        for model in config.models.values():
            if model.tier == name and not _lists(model.backend_model, beat.models):
                listed = ", ".join(beat.models[:SHOWN_MODELS])
                more = " and more" if len(beat.models) > SHOWN_MODELS else ""
                text = f"{beat.worker}'s backend does not list {model.backend_model}; it has {listed}{more}"
                command = (
                    f"ollama pull {model.backend_model}" if isinstance(tier, OllamaTier) else _look_at(tier)
                )
                yield Finding(Level.WARN, f"tier {name}", text, command)


def engines(tier: str, found: Iterable[str]) -> Iterator[Finding]:
    """One finding for each version of an engine that lacks something."""
    for engine in dict.fromkeys(found):
        if said := advice(engine):
            yield Finding(Level.WARN, f"tier {tier}", said)


def _lists(model: str, listed: Sequence[str]) -> bool:
    return model in listed or f"{model}{OLLAMA_DEFAULT_TAG}" in listed


def _look_at(tier: Tier) -> str:
    """How to see for oneself what the backend does; run where the worker runs."""
    match tier:
        case OllamaTier():
            return f"curl {shlex.quote(tier.base_url)}/api/tags"
        case CloudTier():
            variable = tier.api_key.source or "KEY"
            if not tier.base_url:
                return f"export {variable}=... where the worker runs, and restart it"
            return f'curl -H "Authorization: Bearer ${variable}" {shlex.quote(tier.base_url)}/models'
        case _:
            return f"curl {shlex.quote(tier.base_url)}/models"


def _workers(beats: Sequence[Beat]) -> str:
    return f"{len(beats)} worker{'s' if len(beats) > 1 else ''} ({', '.join(beat.worker for beat in beats)})"
