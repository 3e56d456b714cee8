"""The worker runtime: everything about serving a tier that is not a backend's quirk."""

from tierfall.worker.backend import PROGRESS_EVERY_S, Ask, Backend, Health, Prefill, Progress
from tierfall.worker.main import run_worker

__all__ = ["PROGRESS_EVERY_S", "Ask", "Backend", "Health", "Prefill", "Progress", "run_worker"]
