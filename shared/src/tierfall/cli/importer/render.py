"""The new file's text: YAML with the comments that a person wants beside it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from tierfall.cli.importer.clocks import FIRST_TOKEN_S, TOTAL_S
from tierfall.config.scalars import show_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tierfall.cli.importer.deployment import Backend
    from tierfall.cli.importer.plan import ModelPlan, TierPlan
    from tierfall.cli.importer.values import Key

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./+-]*(?::[A-Za-z0-9_./+-]+)*")
_NULLS: Final = frozenset({"null", "Null", "NULL"})
_FLOW_CHARACTERS: Final = 90


def text(value: str) -> str:
    """A text as YAML, in quotes where it has to be."""
    if _PLAIN.fullmatch(value) and value not in _NULLS:
        return value
    return json.dumps(value, ensure_ascii=False)


def secret(key: Key) -> str:
    """A secret as YAML."""
    return f"${{{key.variable}}}" if key.variable else json.dumps(key.literal, ensure_ascii=False)


def comment(line: str) -> str:
    """A line of a comment; what comes from a file stays on it."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in line)
    return f"# {shown}".rstrip()


def render(
    tiers: Iterable[TierPlan],
    models: Sequence[ModelPlan],
    *,
    source: str,
    master: Key,
    findings: Iterable[str],
    wildcards: Iterable[tuple[str, str]],
) -> str:
    """The whole file.

    Args:
        tiers: In their order.
        models: Likewise.
        source: What the comments call the file that it was made from.
        master: LiteLLM's ``master_key``; without one the new gateway listens on loopback alone.
        findings: Lines for the comment at the top.
        wildcards: LiteLLM's wildcard names that have a tier, each with that tier's name.
    """
    return "\n".join(
        [
            *_head(source, findings),
            *_server(master),
            *_tiers(tiers),
            *_models(models),
            *_wildcards(wildcards),
            "",
        ]
    )


def _head(source: str, findings: Iterable[str]) -> Iterator[str]:
    yield comment(f"Made by `tierfall import litellm {source}`. docs/config.md describes every key.")
    yield "#"
    yield "#   tierfall check FILE        says what it means"
    yield "#   tierfall up --config FILE  runs all of it on this machine"
    yield "#"
    lines = list(findings)
    while lines and not lines[-1]:
        lines.pop()
    yield from (comment(line) for line in lines)


def _server(master: Key) -> Iterator[str]:
    yield ""
    yield "server:"
    if master:
        yield "  host: 0.0.0.0"
        yield "  port: 4000"
        yield "  api_keys:"
        yield f"    - {{key: {secret(master)}, name: master}}"
    else:
        yield "  host: 127.0.0.1 # 0.0.0.0 needs api_keys"
        yield "  port: 4000"
    yield ""
    yield "nats:"
    yield "  url: embedded # `tierfall up` runs its own; with services on several machines: nats://HOST:4222"


def _tiers(tiers: Iterable[TierPlan]) -> Iterator[str]:
    yield ""
    yield "tiers:"
    for tier in tiers:
        yield f"  {text(tier.name)}:"
        yield from (f"    {line}" for line in _backend(tier.backend))
        if tier.max_in_flight is not None:
            yield f"    max_in_flight: {tier.max_in_flight}"


def _backend(backend: Backend) -> Iterator[str]:
    yield f"worker: {backend.worker}"
    if backend.provider:
        yield f"provider: {text(backend.provider)}"
    if backend.base_url:
        yield f"base_url: {text(backend.base_url)}"
    if backend.key:
        yield f"api_key: {secret(backend.key)}"
    if backend.keep_alive:
        yield f"keep_alive: {text(backend.keep_alive)}"
    if backend.num_ctx is not None:
        yield f"num_ctx: {backend.num_ctx}"


def _models(models: Iterable[ModelPlan]) -> Iterator[str]:
    yield ""
    yield "models:"
    for model in models:
        yield f"  {text(model.name)}: {comment(model.was)}"
        yield f"    tier: {text(model.tier)}"
        yield f"    backend_model: {text(model.backend_model)}"
        if model.context_window is not None:
            yield f"    context_window: {model.context_window}"
        if clocks := _deadlines(model):
            yield f"    deadlines: {{{clocks}}}"
        if model.rpm or model.tpm:
            yield f"    quota: {{{_quota(model)}}}"
        if model.prices:
            yield f"    price: {{prompt: {_money(model.prices[0])}, completion: {_money(model.prices[1])}}}"
        yield from _fallbacks(model.fallbacks)


def _quota(model: ModelPlan) -> str:
    counted = (("requests", model.rpm), ("tokens", model.tpm))
    return ", ".join(f"{metric}: [{amount}/m]" for metric, amount in counted if amount)


def _money(amount: float) -> str:
    return f"{amount:.6f}".rstrip("0").rstrip(".")


def _deadlines(model: ModelPlan) -> str:
    found = []
    if model.clocks.first_token != FIRST_TOKEN_S:
        found.append(f"first_token: {show_duration(model.clocks.first_token)}")
    if model.clocks.total != TOTAL_S:
        found.append(f"total: {show_duration(model.clocks.total)}")
    if model.budget is not None:
        found.append(f"budget: {show_duration(model.budget)}")
    return ", ".join(found)


def _fallbacks(names: Sequence[str]) -> Iterator[str]:
    if not names:
        return
    flow = ", ".join(text(name) for name in names)
    if len(flow) <= _FLOW_CHARACTERS:
        yield f"    fallbacks: [{flow}]"
        return
    yield "    fallbacks:"
    yield from (f"      - {text(name)}" for name in names)


def _wildcards(wildcards: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, tier in wildcards:
        yield ""
        yield f"  {comment(f'{name} was a wildcard. One entry for each model that is used:')}"
        yield f"  {comment(f'{name}: {{tier: {tier}, backend_model: NAME}}'.replace('*', 'NAME'))}"
