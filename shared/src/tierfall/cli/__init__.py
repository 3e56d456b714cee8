"""The ``tierfall`` command."""

from tierfall.cli.main import main

__all__ = ["main"]
