"""What must last, in JetStream: documents under keys, changed by compare-and-set; see :class:`Bucket`."""

from tierfall.store.bucket import Bucket
from tierfall.store.clock import StoreClock
from tierfall.store.entry import Entry
from tierfall.store.names import CLIENTS, KEYS, PROVIDERS, QUOTA
from tierfall.store.watch import Watch

__all__ = ["CLIENTS", "KEYS", "PROVIDERS", "QUOTA", "Bucket", "Entry", "StoreClock", "Watch"]
