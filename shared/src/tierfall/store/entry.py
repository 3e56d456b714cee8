"""One key's state in a bucket."""

from __future__ import annotations

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """What stands under a key, or that nothing stands there any more."""

    key: str
    value: bytes
    """Empty in a deletion."""
    revision: int
    """The bucket's own count of changes: each change has a higher one than all before."""
    deleted: bool = False
    """Only a watch says so: a ``get()`` of a deleted key finds nothing."""
