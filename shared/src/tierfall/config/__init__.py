"""The config file: its shape, how it is read, what is checked, how a change of it is noticed."""

from tierfall.config.check import notes, problems
from tierfall.config.load import load, parse
from tierfall.config.schema import (
    EMBEDDED,
    ApiKey,
    CloudTier,
    Config,
    Deadlines,
    Duration,
    Model,
    Nats,
    OllamaTier,
    Secret,
    Server,
    Size,
    Tier,
    VllmTier,
    Wait,
)
from tierfall.config.watch import Watcher

__all__ = [
    "EMBEDDED",
    "ApiKey",
    "CloudTier",
    "Config",
    "Deadlines",
    "Duration",
    "Model",
    "Nats",
    "OllamaTier",
    "Secret",
    "Server",
    "Size",
    "Tier",
    "VllmTier",
    "Wait",
    "Watcher",
    "load",
    "notes",
    "parse",
    "problems",
]
