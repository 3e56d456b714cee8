"""``tierfall import``: another gateway's config into one of ours."""

from tierfall.cli.importer.convert import Converted, convert
from tierfall.cli.importer.run import run

__all__ = ["Converted", "convert", "run"]
