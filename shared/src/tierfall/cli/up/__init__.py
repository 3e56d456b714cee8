"""``tierfall up``: the whole of a config on one machine."""

from tierfall.cli.up.run import run

__all__ = ["run"]
