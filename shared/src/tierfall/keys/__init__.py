"""Client keys that NATS keeps: made and revoked with ``tierfall keys``, followed by every ingress."""

from tierfall.keys.limits import ledger_limits
from tierfall.keys.record import KeyRecord, config_scope, pack_record, unpack_record
from tierfall.keys.secret import digest, hint, new_key
from tierfall.keys.store import KeyStore

__all__ = [
    "KeyRecord",
    "KeyStore",
    "config_scope",
    "digest",
    "hint",
    "ledger_limits",
    "new_key",
    "pack_record",
    "unpack_record",
]
