"""The command ``tierfall-worker-cloud``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierfall.config import CloudTier
from tierfall.errors import ConfigError
from tierfall.worker import run_worker
from tierfall_worker_cloud.backend import CloudBackend
from tierfall_worker_cloud.providers import provider_for

if TYPE_CHECKING:
    from tierfall.config import Config, Tier


def build(name: str, tier: Tier, config: Config) -> CloudBackend:
    """The backend of one tier.

    Raises:
        ConfigError: The tier is not one of this worker's kind, or names an unknown provider without saying
            where it is.
    """
    del config
    if not isinstance(tier, CloudTier):
        raise ConfigError(f"tiers.{name}: worker: {tier.kind} is not served by tierfall-worker-cloud")
    return CloudBackend(name, tier, provider_for(name, tier))


def main() -> None:
    """Serves the config's tiers with ``worker: cloud``."""
    run_worker("cloud", build)
