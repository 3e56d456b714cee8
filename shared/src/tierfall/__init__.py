"""Tierfall: an OpenAI-compatible gateway over NATS that moves a request to the next tier in time."""

__all__ = ["__version__"]

__version__ = "0.1.0"
