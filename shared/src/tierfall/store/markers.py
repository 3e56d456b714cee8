"""How an entry says that its key is gone (ADR-8 and ADR-43 of NATS's architecture decisions)."""

from __future__ import annotations

from typing import Final

from tierfall.bus import headers as header_block

OPERATION: Final = "KV-Operation"
"""``DEL`` or ``PURGE``; an entry with a value has none."""
DELETION: Final = "DEL"
REASON: Final = "Nats-Marker-Reason"
"""In what the server itself leaves where a key was removed."""


def is_deletion(block: bytes) -> bool:
    """Whether these are the headers of a key's end."""
    return any(header_block.find(block, name) for name in (OPERATION, REASON)) if block else False
