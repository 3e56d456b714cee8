"""The command ``tierfall-worker-vllm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierfall.config import VllmTier
from tierfall.errors import ConfigError
from tierfall.worker import run_worker
from tierfall_worker_vllm.backend import VllmBackend

if TYPE_CHECKING:
    from tierfall.bus import Bus
    from tierfall.config import Config, Tier


def build(name: str, tier: Tier, config: Config, *_: Bus) -> VllmBackend:
    """The backend of one tier, which knows the models that the config expects there.

    Raises:
        ConfigError: The tier is not one of this worker's kind.
    """
    if not isinstance(tier, VllmTier):
        raise ConfigError(f"tiers.{name}: worker: {tier.kind} is not served by tierfall-worker-vllm")
    expected = {model.backend_model for model in config.models.values() if model.tier == name}
    return VllmBackend(name, tier, frozenset(expected))


def main() -> None:
    """Serves the config's tiers with ``worker: vllm``."""
    run_worker("vllm", build)
