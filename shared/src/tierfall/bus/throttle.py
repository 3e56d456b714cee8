"""A brake for log lines that could come ten thousand times a second."""

from __future__ import annotations

import time
from typing import Final

QUIET_S: Final = 10.0
KEYS_LIMIT: Final = 256


class Throttle:
    """Lets the first line of a kind through, and then one every ``quiet_s`` seconds."""

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        self._quiet_s = quiet_s
        self._kinds: dict[str, tuple[float, int]] = {}

    def pass_(self, kind: str) -> int | None:
        """How many lines of this kind were held back since the last; ``None`` to hold this one back too."""
        now = time.monotonic()
        last, held = self._kinds.get(kind, (0.0, -1))
        if held >= 0 and now - last < self._quiet_s:
            self._kinds[kind] = (last, held + 1)
            return None
        if len(self._kinds) >= KEYS_LIMIT:
            self._kinds.clear()
        self._kinds[kind] = (now, 0)
        return max(held, 0)
