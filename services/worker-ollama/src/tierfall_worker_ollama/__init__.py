"""Tierfall's worker for Ollama's native API."""

from tierfall_worker_ollama.backend import OllamaBackend

__all__ = ["OllamaBackend"]
