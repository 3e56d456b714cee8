"""The command ``tierfall-worker-cloud``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierfall.config import CloudTier
from tierfall.errors import ConfigError
from tierfall.ledger import Ledger
from tierfall.quota import plans
from tierfall.store import QUOTA, Bucket
from tierfall.worker import run_worker
from tierfall_worker_cloud.backend import CloudBackend
from tierfall_worker_cloud.desk import Book
from tierfall_worker_cloud.providers import provider_for

if TYPE_CHECKING:
    from tierfall.bus import Bus
    from tierfall.config import Config, Tier


def build(name: str, tier: Tier, config: Config, bus: Bus) -> CloudBackend:
    """The backend of one tier.

    Raises:
        ConfigError: The tier is not one of this worker's kind, or names an unknown provider without saying
            where it is.
    """
    if not isinstance(tier, CloudTier):
        raise ConfigError(f"tiers.{name}: worker: {tier.kind} is not served by tierfall-worker-cloud")
    return CloudBackend(name, tier, provider_for(name, tier), _book(name, config, bus))


def _book(name: str, config: Config, bus: Bus) -> Book | None:
    """The tier's quotas; a tier without any does not come near the ledger."""
    models = {key: model for key, model in config.models.items() if model.tier == name}
    found = {models[key].backend_model: plan for key, plan in plans(config).items() if key in models}
    if not found:
        return None
    return Book(
        Ledger(Bucket(bus, QUOTA)),
        found,
        frozenset(model.backend_model for model in models.values()),
        {key: model.deadlines.first_token for key, model in models.items()},
    )


def main() -> None:
    """Serves the config's tiers with ``worker: cloud``."""
    run_worker("cloud", build)
