"""The worker for providers on the internet: keys, parameters and chunks as each of them wants them."""

from tierfall_worker_cloud.backend import CloudBackend
from tierfall_worker_cloud.main import main
from tierfall_worker_cloud.providers import PROVIDERS, Provider

__all__ = ["PROVIDERS", "CloudBackend", "Provider", "main"]
