"""What the config allows one model with each of its tier's keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.config import CloudTier
from tierfall.ledger import Limit, Metric, Pace, Window
from tierfall.store import PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tierfall.config import Config, Model, Quota

ZONES: Final = {"gemini": "America/Los_Angeles"}
"""Where a provider's days begin; UTC for all others."""
UTC: Final = "UTC"
MINUTE_S: Final = 60.0
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The quota of one model on a cloud tier.

    Attributes:
        tier: The tier's name.
        model: The model's configured name.
        of: The name that the provider knows the model by: what its own limits are named after.
        zone: Time zone of the provider's days.
        keys: The labels of the tier's keys.
        scopes: The account in the ledger that belongs to each of them.
        limits: All that apply: the key's own and those of the model.
        pace: The spacing of requests, if any.
    """

    tier: str
    model: str
    of: str
    zone: str
    keys: tuple[str, ...]
    scopes: tuple[str, ...]
    limits: tuple[Limit, ...]
    pace: Pace | None


def plans(config: Config) -> dict[str, Plan]:
    """The plan of each model that has a quota, by the model's configured name."""
    found = ((name, plan_of(config, name)) for name in config.models)
    return {name: plan for name, plan in found if plan is not None}


def plan_of(config: Config, name: str) -> Plan | None:
    """The plan of one model; None when neither it nor its tier has a quota.

    A model under two names has one quota, whichever of them it is written at.
    """
    model = config.models[name]
    tier = config.tiers[model.tier]
    if not isinstance(tier, CloudTier):
        return None
    quota = _quota_of(config, model)
    if not quota and not tier.quota:
        return None
    usual = ZONES.get(tier.provider, UTC)
    smooth = quota.smooth or tier.quota.smooth
    of = model.backend_model if quota.smooth else ""
    return Plan(
        tier=model.tier,
        model=name,
        of=model.backend_model,
        zone=quota.timezone or tier.quota.timezone or usual,
        keys=tuple(key_label(tier, index) for index in range(len(tier.keys))),
        scopes=tuple(scope_of(model.tier, tier, index) for index in range(len(tier.keys))),
        limits=(
            *_limits(tier.quota, "", tier.quota.timezone or usual),
            *_limits(quota, model.backend_model, quota.timezone or tier.quota.timezone or usual),
        ),
        pace=Pace(MINUTE_S / smooth.amount, of) if smooth is not None else None,
    )


def key_label(tier: CloudTier, index: int) -> str:
    """What a key is called where it is counted and logged: its variable's name, else its place: ``key-1``."""
    return tier.keys[index].source or f"key-{index + 1}"


def scope_of(name: str, tier: CloudTier, index: int) -> str:
    """The ledger's account of one of a tier's keys.

    A key from the environment is one account at its provider, whichever tiers use it. Nothing of the key's
    value goes in: an ingress, which does not have it, finds the account too.
    """
    source = tier.keys[index].source
    owner = tier.provider if source else name
    return f"{PROVIDERS}.{_UNSAFE.sub('_', owner)}.{key_label(tier, index)}"


def _quota_of(config: Config, model: Model) -> Quota:
    for other in config.models.values():
        if other.quota and (other.tier, other.backend_model) == (model.tier, model.backend_model):
            return other.quota
    return model.quota


def _limits(quota: Quota, of: str, zone: str) -> Iterator[Limit]:
    for metric, rates in ((Metric.REQUESTS, quota.requests), (Metric.TOKENS, quota.tokens)):
        for rate in rates:
            yield Limit(metric, rate.amount, Window(rate.window), zone, of)
