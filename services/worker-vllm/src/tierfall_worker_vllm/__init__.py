"""The worker for vLLM and every engine that speaks OpenAI's API."""

from tierfall_worker_vllm.backend import VllmBackend
from tierfall_worker_vllm.main import main

__all__ = ["VllmBackend", "main"]
