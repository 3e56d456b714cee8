"""The chat format: judging, mending and assembling completion chunks."""

from tierfall.chat.assemble import Assembly
from tierfall.chat.chunk import ChunkStream
from tierfall.chat.continuation import Continuation

__all__ = ["Assembly", "ChunkStream", "Continuation"]
