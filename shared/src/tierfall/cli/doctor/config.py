"""The config file and the secrets that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierfall.cli.doctor.finding import Finding, Level
from tierfall.config import load, notes, warnings
from tierfall.config.advice import secrets
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tierfall.config import Config


def examine(path: Path, environ: Mapping[str, str]) -> tuple[Config | None, list[Finding]]:
    """Reads the file, and says everything that is wrong with it.

    A file that only lacks the client keys in this environment can still be looked into further.

    Returns:
        The config, ``None`` if nothing can be made of the file; and what was found.
    """
    try:
        config = load(path, environ)
    except ConfigError as error:
        found = [_problem(line, path) for line in error.message.splitlines()]
        try:
            return load(path, environ, for_worker=True), found
        except ConfigError:
            return None, found
    size = f"{_count(len(config.tiers), 'tier')}, {_count(len(config.models), 'model')}"
    return config, [Finding(Level.OK, "config", f"{path} can be used: {size}"), *_rest(config)]


def _problem(line: str, path: Path) -> Finding:
    name = next((word for word in line.split() if f"{word} is not set" in line and word.isidentifier()), "")
    return Finding(Level.FAIL, "config", line, f"export {name}=..." if name else f"tierfall check {path}")


def _rest(config: Config) -> Iterator[Finding]:
    told = set()
    for path, secret in secrets(config):
        if secret and secret.source:
            yield Finding(Level.OK, "secret", f"{path}: {secret.source} is set")
        elif not secret:
            told.add(path)
            text = f"{path}: {secret.source} is not set in this shell"
            yield Finding(Level.WARN, "secret", text, f"export {secret.source}=...")
    for note in (*warnings(config), *notes(config)):
        if note.partition(": ")[0] not in told:
            yield Finding(Level.WARN, "config", note)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
