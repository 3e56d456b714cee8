"""LiteLLM's fallbacks as ladders: theirs follow the fallbacks of fallbacks, ours are written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tierfall.cli.importer.findings import Findings
    from tierfall.cli.importer.source import Source

ANY: Final = "*"


class Fallbacks(msgspec.Struct, frozen=True):
    """By model name; ``general`` under ``*`` is for names without an entry of their own."""

    general: dict[str, tuple[str, ...]]
    context: dict[str, tuple[str, ...]]

    def of(self, name: str) -> tuple[str, ...]:
        """What LiteLLM goes to after ``name``, without the fallbacks of those."""
        return self.general.get(name, self.general.get(ANY, ()))

    def names(self) -> Iterator[str]:
        """Every model name that occurs."""
        for table in (self.general, self.context):
            for name, targets in table.items():
                if name != ANY:
                    yield name
                yield from targets

    def walk(self, name: str) -> list[str]:
        """``name``'s ladder without itself: each fallback with its own ones behind it, nothing twice."""
        seen = [name]
        self._visit(name, seen)
        return seen[1:]

    def _visit(self, name: str, seen: list[str]) -> None:
        for target in self.of(name):
            if target not in seen:
                seen.append(target)
                self._visit(target, seen)


def read(source: Source, findings: Findings) -> Fallbacks:
    """The fallbacks that count: those of ``router_settings`` before those of ``litellm_settings``."""
    general = _table(_chosen("fallbacks", source, findings), "fallbacks", findings)
    default = _chosen("default_fallbacks", source, findings)
    if default:
        general.setdefault(ANY, tuple(_names(default, "default_fallbacks", findings)))
    context = _table(
        _chosen("context_window_fallbacks", source, findings), "context_window_fallbacks", findings
    )
    if _chosen("content_policy_fallbacks", source, findings):
        findings.lost(
            "content_policy_fallbacks",
            "what a provider's filter refuses is refused: no other model is asked to say it",
        )
    return Fallbacks(general, context)


def aliases(source: Source, findings: Findings) -> dict[str, str]:
    """``model_group_alias``: the alias and the model that it stands for."""
    found: dict[str, str] = {}
    given = source.router.get("model_group_alias") or source.litellm.get("model_group_alias")
    for alias, target in given.items() if isinstance(given, dict) else ():
        if isinstance(target, dict):
            if target.get("hidden"):
                findings.changed("hidden alias", "is listed in /v1/models like any model", str(alias))
            target = target.get("model")  # noqa: PLW2901 - the two forms of one value
        if isinstance(target, str) and str(alias).strip() == str(alias) != "" and str(alias).isprintable():
            found[str(alias)] = target
        else:
            findings.lost("model_group_alias", "is not the name of a model, or names none", str(alias))
    return found


def _chosen(key: str, source: Source, findings: Findings) -> Any:
    ours, theirs = source.router.get(key), source.litellm.get(key)
    if ours and theirs and ours != theirs:
        findings.lost(f"litellm_settings.{key}", "LiteLLM too lets router_settings win")
    return ours or theirs


def _table(given: object, what: str, findings: Findings) -> dict[str, tuple[str, ...]]:
    """``[{a: [b, c]}, ...]``, or one mapping."""
    items: Iterable[object] = given if isinstance(given, list) else [given] if given else []
    table: dict[str, tuple[str, ...]] = {}
    for item in items:
        if not isinstance(item, dict):
            findings.lost(what, "has an entry that is no mapping from a model to a list")
            continue
        for name, targets in item.items():
            table.setdefault(str(name), tuple(_names(targets, what, findings)))
    return table


def _names(given: object, what: str, findings: Findings) -> Iterator[str]:
    for target in given if isinstance(given, list) else [given]:
        if isinstance(target, str):
            yield target
        elif isinstance(target, dict) and isinstance(target.get("model"), str):
            if len(target) > 1:
                findings.lost(f"{what} with parameters", "a rung of a ladder is a model's name alone")
            yield target["model"]
        else:
            findings.lost(what, "has a target that is no model's name")


def expand(
    walked: Iterable[str], known: Mapping[str, list[str]], findings: Findings, where: str
) -> list[str]:
    """A ladder of LiteLLM's names as one of ours, where a name may have become several models."""
    ladder: list[str] = []
    for name in walked:
        if name not in known:
            findings.lost(f"fallback {name}", "is no model of the new file", where)
        ladder += [model for model in known.get(name, ()) if model not in ladder]
    return ladder
