"""A LiteLLM proxy config into a Tierfall one: reads, plans, writes, and has the result checked."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.cli.importer import ladder, settings, source, values
from tierfall.cli.importer.deployment import Deployment, Reader
from tierfall.cli.importer.findings import Findings
from tierfall.cli.importer.plan import Limits, Planner, name_tiers
from tierfall.cli.importer.render import render
from tierfall.cli.importer.wildcard import matching
from tierfall.config import parse
from tierfall.config.advice import secrets
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tierfall.cli.importer.source import Source
    from tierfall.cli.importer.values import Key

NO_CHAT_MODEL: Final = (
    "{path}: no model of it can be carried over, and a config needs one. Models behind a wildcard have to be"
    " named: --model NAME\n\n{why}"
)


class Converted(msgspec.Struct, frozen=True):
    """What an import made.

    Attributes:
        text: The new file.
        findings: What its operator has to know, as lines.
        holds_secrets: Whether a key stands in the text itself.
    """

    text: str
    findings: tuple[str, ...]
    holds_secrets: bool


def convert(path: Path, environ: Mapping[str, str], wanted: Iterable[str] = ()) -> Converted:
    """Turns the file into one that ``tierfall check`` takes.

    Args:
        path: LiteLLM's ``config.yaml``.
        environ: For addresses and time limits that the file takes from the environment; secrets stay names.
        wanted: Models that clients use through a wildcard name.

    Raises:
        ConfigError: The file cannot be read, or holds no model that Tierfall can serve.
    """
    findings = Findings()
    given = source.read(path, findings)
    fallbacks = ladder.read(given, findings)
    aliases = ladder.aliases(given, findings)
    reader = Reader(environ, findings)
    groups, wildcards = _deployments(given, [*wanted, *fallbacks.names(), *aliases.values()], reader)
    for name in wanted:
        if name not in groups and name not in aliases:
            findings.lost(f"--model {name}", "no entry of the file matches it, or none that can be served")
    tiers = name_tiers([*(one for group in groups.values() for one in group), *wildcards])
    planner = Planner(tiers, fallbacks, _limits(given, environ, findings), findings)
    models = planner.models(groups, aliases)
    settings.tell(given, findings)
    master = values.key(given.general.get("master_key"))
    _tell_secrets(master, [tier.backend.key for tier in tiers.values()], findings)
    for one in wildcards:
        findings.lost(
            f"wildcard {one.name}",
            "only models named with --model, or in fallbacks, come over: one for each that is used",
        )
    if not models:
        raise ConfigError(NO_CHAT_MODEL.format(path=path, why="\n".join(findings.lines())).rstrip())
    text = render(
        tiers.values(),
        models,
        source=path.name,
        master=master,
        findings=findings.lines(),
        wildcards=[(one.name, tiers[one.backend].name) for one in wildcards],
    )
    return Converted(text, tuple(findings.lines()), _checked(text))


def _deployments(
    given: Source, wanted: Iterable[str], reader: Reader
) -> tuple[dict[str, list[Deployment]], list[Deployment]]:
    """By name; and those of the wildcards, whose tiers are kept for models to come."""
    fixed = [entry for entry in given.entries if not entry.is_wildcard]
    wild = [entry for entry in given.entries if entry.is_wildcard]
    names = {entry.name for entry in fixed}
    for name in dict.fromkeys(wanted):
        if name not in names and "*" not in name:
            fixed += matching(name, wild)
    groups: defaultdict[str, list[Deployment]] = defaultdict(list)
    for entry in fixed:
        if (one := reader.read(entry)) is not None:
            groups[entry.name].append(one)
    return dict(groups), [one for entry in wild if (one := reader.read(entry)) is not None]


def _limits(given: Source, environ: Mapping[str, str], findings: Findings) -> Limits:
    found = []
    for key, places in (
        ("timeout", ((given.router, "timeout"), (given.litellm, "request_timeout"))),
        ("stream_timeout", ((given.router, "stream_timeout"), (given.litellm, "stream_timeout"))),
    ):
        written = [section[name] for section, name in places if section.get(name) is not None]
        limits = [values.seconds(value, environ) for value in written]
        if any(limit is None for limit in limits):
            findings.lost(f"the proxy's {key}", "is no positive number of seconds that is known now")
        found.append(next((limit for limit in limits if limit is not None), None))
    return Limits(*found)


def _tell_secrets(master: Key, keys: Iterable[Key], findings: Findings) -> None:
    if master.variable:
        findings.todo(f"export {master.variable} for the ingress", "clients show it, as they did to LiteLLM")
    if not master:
        advice = "without one Tierfall listens on loopback alone. Write server.api_keys to open it"
        findings.changed("no master_key", advice)
    for name in dict.fromkeys(key.variable for key in keys if key.variable):
        findings.todo(f"export {name} for the workers", "the file holds its name alone")
    if master.literal or any(key.literal for key in keys):
        advice = "they stand in it as they stood in LiteLLM's. Write ${NAME} instead and export the variable"
        findings.todo("take the keys out of the new file", advice)


def _checked(text: str) -> bool:
    """Whether the text holds a secret of its own.

    Raises:
        ConfigError: The text is no good config, which is a defect of this package.
    """
    try:
        config = parse(text, _AnySecret(), "the new file")
    except ConfigError as error:
        raise ConfigError(
            f"the import made a file that cannot be used; please report it.\n{error.message}"
        ) from error
    return any(not secret.source for _, secret in secrets(config))


class _AnySecret(dict[str, str]):
    """An environment in which every variable is set, each to something else."""

    def get(self, key: str, default: object = None) -> str:
        del default
        return f"value of {key}"
