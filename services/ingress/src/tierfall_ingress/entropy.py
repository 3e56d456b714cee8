"""Random bytes for ids, taken from the system a block at a time: a system call costs more than an id."""

from __future__ import annotations

import os
from typing import Final

BLOCK_BYTES: Final = 4096


class Entropy:
    """As unpredictable as :func:`os.urandom`, whose bytes they are; each is given out once."""

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """``size`` bytes, at most :data:`BLOCK_BYTES`, that nobody else has been given."""
        end = self._at + size
        if end > len(self._block):
            self._block = os.urandom(BLOCK_BYTES)
            self._at, end = 0, size
        taken = self._block[self._at : end]
        self._at = end
        return taken


entropy: Final = Entropy()
"""The process's."""
