"""The format of embeddings: judging and mending a backend's answer."""

from tierfall.embeddings.answer import EmbeddingsAnswer

__all__ = ["EmbeddingsAnswer"]
