"""The chat format: judging, mending and assembling completion chunks."""

from tierfall.chat.assemble import Assembly
from tierfall.chat.chunk import ChunkStream

__all__ = ["Assembly", "ChunkStream"]
