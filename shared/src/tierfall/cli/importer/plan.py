"""The new file before it is text: its tiers, and its models with their ladders."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.cli.importer.clocks import Clocks, budget, clocks
from tierfall.cli.importer.ladder import expand

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tierfall.cli.importer.deployment import Backend, Deployment
    from tierfall.cli.importer.findings import Findings
    from tierfall.cli.importer.ladder import Fallbacks

TIER_NAME_CHARACTERS: Final = 50


class Limits(msgspec.Struct, frozen=True):
    """``timeout`` and ``stream_timeout`` of the whole proxy, in seconds."""

    timeout_s: float | None = None
    stream_timeout_s: float | None = None


class TierPlan(msgspec.Struct, frozen=True):
    """One tier of the new file."""

    name: str
    backend: Backend
    max_in_flight: int | None


class ModelPlan(msgspec.Struct, kw_only=True):
    """One model of the new file."""

    name: str
    was: str
    tier: str
    backend_model: str
    clocks: Clocks
    context_window: int | None
    fallbacks: list[str] = []
    budget: float | None = None
    """Seconds; ``None`` for Tierfall's default."""
    rpm: int | None = None
    tpm: int | None = None
    prices: tuple[float, float] | None = None
    """Of a million tokens of prompt and of answer."""


def name_tiers(deployments: Iterable[Deployment]) -> dict[Backend, TierPlan]:
    """A tier for each backend that differs from the others, named for its provider or kind."""
    of: dict[Backend, list[Deployment]] = {}
    for deployment in deployments:
        of.setdefault(deployment.backend, []).append(deployment)
    taken: set[str] = set()
    tiers: dict[Backend, TierPlan] = {}
    for backend, its in of.items():
        wanted = re.sub(r"[^a-z0-9_-]+", "-", (backend.provider or backend.worker).lower()).strip("-_")
        name = _free(wanted[:TIER_NAME_CHARACTERS] or "tier", taken)
        limits = [one.parallel for one in its if one.parallel is not None]
        tiers[backend] = TierPlan(name, backend, sum(limits) if len(limits) == len(its) else None)
    return tiers


class Planner:
    """Makes models of deployments.

    Args:
        tiers: By backend.
        fallbacks: LiteLLM's.
        limits: The proxy's own time limits, for deployments without.
        findings: Told where a ladder is not what LiteLLM did.
    """

    def __init__(
        self, tiers: Mapping[Backend, TierPlan], fallbacks: Fallbacks, limits: Limits, findings: Findings
    ) -> None:
        self._tiers = tiers
        self._fallbacks = fallbacks
        self._limits = limits
        self._findings = findings
        self._taken: set[str] = set()
        self._quotas: dict[tuple[str, str], tuple[int | None, int | None]] = {}

    def models(
        self, groups: Mapping[str, Sequence[Deployment]], aliases: Mapping[str, str]
    ) -> list[ModelPlan]:
        """Every model, in the order of the names in ``groups``, aliases last."""
        self._taken = {*groups, *aliases}
        made = {name: self._group(name, deployments) for name, deployments in groups.items()}
        for alias, target in aliases.items():
            if target not in made:
                self._findings.lost(f"alias {alias}", f"stands for {target}, which did not come over")
            elif alias not in made:
                first, *others = made[target]
                made[alias] = [msgspec.structs.replace(first, name=alias, was=f"alias of {target}"), *others]
        self._ladders(made, aliases)
        unique = {id(model): model for models in made.values() for model in models}
        return list(unique.values())

    def _group(self, name: str, deployments: Sequence[Deployment]) -> list[ModelPlan]:
        ordered = sorted(deployments, key=lambda one: one.order)
        unique: dict[tuple[Backend, str], Deployment] = {}
        for one in ordered:
            unique.setdefault((one.backend, one.model), one)
        different = list(unique.values())
        if len(different) < len(ordered):
            advice = "one and the same here: start as many workers for its tier as it should have"
            self._findings.changed("deployments with the same address, key and model", advice, name)
        if len(different) > 1:
            advice = (
                "LiteLLM spreads requests over them; here the first is asked until it is full or fails, then"
                " the next. Where they are copies of one engine, one tier spreads them: run a worker beside"
                " each, for the same tier, each with its own base_url in its copy of the file"
            )
            self._findings.changed(f"{len(different)} deployments", advice, name)
        plans = []
        for place, one in enumerate(different):
            plans.append(
                ModelPlan(
                    name=name if place == 0 else _free(f"{name}-{place + 1}", self._taken, start=place + 2),
                    was=one.was,
                    tier=self._tiers[one.backend].name,
                    backend_model=one.model,
                    clocks=self._clocks(one),
                    context_window=one.context_window,
                    prices=one.prices,
                )
            )
            self._give_quota(plans[-1], one)
        return plans

    def _give_quota(self, plan: ModelPlan, one: Deployment) -> None:
        """What a provider's model may be asked is one number, under however many names it stands."""
        own = (one.rpm, one.tpm)
        if own == (None, None):
            return
        plan.rpm, plan.tpm = self._quotas.setdefault((plan.tier, plan.backend_model), own)
        if (plan.rpm, plan.tpm) != own:
            advice = f"{plan.backend_model} has another one under another name, and one quota is for both"
            self._findings.changed("rpm and tpm", advice, plan.name)

    def _clocks(self, one: Deployment) -> Clocks:
        own = one.timeout_s is not None or one.stream_timeout_s is not None
        timeout_s = one.timeout_s if own else self._limits.timeout_s
        stream_timeout_s = one.stream_timeout_s if own else self._limits.stream_timeout_s
        return clocks(timeout_s, stream_timeout_s, self._findings, one.name)

    def _ladders(self, made: Mapping[str, list[ModelPlan]], aliases: Mapping[str, str]) -> None:
        known = {name: [model.name for model in models] for name, models in made.items()}
        by_name = {model.name: model for models in made.values() for model in models}
        for name, models in made.items():
            plan = models[0]
            general = name if name in self._fallbacks.general else aliases.get(name, name)
            larger = self._fallbacks.context.get(name) or self._fallbacks.context.get(aliases.get(name, ""))
            rungs = [*known[name][1:]]
            for walked in (self._fallbacks.walk(general), larger or ()):
                more = expand(walked, known, self._findings, name)
                rungs += [rung for rung in more if rung not in rungs and rung != name]
            plan.fallbacks = rungs
            if larger:
                self._tell_larger(name, [by_name[rung] for rung in (name, *rungs)])
            limit = budget(by_name[rung].clocks for rung in (name, *rungs))
            plan.budget = limit if limit > budget([Clocks()]) else None

    def _tell_larger(self, name: str, ladder: Sequence[ModelPlan]) -> None:
        advice = "stand in the ladder now, so they are also tried after other failures"
        self._findings.changed("context_window_fallbacks", advice, name)
        for model in ladder:
            if model.context_window is None:
                advice = "the file does not say it, and without it a prompt that is too long is not sent on"
                self._findings.todo("give the model a context_window (tokens)", advice, model.name)


def _free(wanted: str, taken: set[str], start: int = 2) -> str:
    """The name, or the first with a number behind that is not taken; taken from now on."""
    name, number = wanted, start
    while name in taken:
        name = f"{wanted}-{number}"
        number += 1
    taken.add(name)
    return name
