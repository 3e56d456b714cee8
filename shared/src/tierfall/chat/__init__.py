"""The formats of generated text, chat and completions: judging, mending and assembling chunks."""

from tierfall.chat.assemble import Assembly, TextAssembly
from tierfall.chat.chunk import ChunkStream
from tierfall.chat.continuation import Continuation
from tierfall.chat.generated import Generated
from tierfall.chat.text import TextStream, legacy_logprobs

__all__ = [
    "Assembly",
    "ChunkStream",
    "Continuation",
    "Generated",
    "TextAssembly",
    "TextStream",
    "legacy_logprobs",
]
