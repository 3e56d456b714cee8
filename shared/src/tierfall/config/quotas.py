"""What is wrong with a quota: windows, time zones, and models that it cannot be for."""

from __future__ import annotations

import zoneinfo
from typing import TYPE_CHECKING

from tierfall.config.problem import Problem, within
from tierfall.config.scalars import show_rate, shown
from tierfall.config.schema import CloudTier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tierfall.config.schema import Config, Model, Quota, Rate


def rates(path: str, found: tuple[Rate, ...]) -> Iterator[Problem]:
    """Two limits by the same window."""
    for index, rate in enumerate(found):
        if any(earlier.window == rate.window for earlier in found[:index]):
            yield Problem(within(path, index), f"is a second limit by {rate.window}")


def timezone(path: str, name: str) -> Iterator[Problem]:
    """One that does not exist."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        text = f"{shown(name)} is no time zone; write one such as UTC or Europe/Berlin"
        yield Problem(f"{path}.timezone", text)


def quota(path: str, found: Quota) -> Iterator[Problem]:
    """What is wrong with a quota by itself."""
    for metric in ("requests", "tokens"):
        yield from rates(f"{path}.{metric}", getattr(found, metric))
    if found.timezone:
        yield from timezone(path, found.timezone)
    if found.smooth is not None and found.smooth.window != "minute":
        text = f"is {shown(show_rate(found.smooth))}, must be so many a minute, such as 4/m"
        yield Problem(f"{path}.smooth", text)


def model_quota(name: str, model: Model, config: Config) -> Iterator[Problem]:
    """A model's quota: on a cloud tier only, and the same for all names of one provider's model."""
    path = f"{within('models', name)}.quota"
    yield from quota(path, model.quota)
    tier = config.tiers.get(model.tier)
    if tier is not None and not isinstance(tier, CloudTier):
        yield Problem(path, f"has no meaning on tier {shown(model.tier)}, which is no worker: cloud")
    elif tier is not None and tier.quota.smooth and model.quota.smooth:
        yield Problem(f"{path}.smooth", f"stands beside that of tier {shown(model.tier)}; keep one of them")
    for other, twin in config.models.items():
        if other == name:
            return
        same = (twin.tier, twin.backend_model) == (model.tier, model.backend_model)
        if same and twin.quota and twin.quota != model.quota:
            text = f"differs from that of {shown(other)}, which is the same model of the same tier"
            yield Problem(path, text)
