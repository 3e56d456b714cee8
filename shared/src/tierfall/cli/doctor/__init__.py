"""``tierfall doctor``: what works, what does not, and what to type about it."""

from tierfall.cli.doctor.run import Request, run

__all__ = ["Request", "run"]
