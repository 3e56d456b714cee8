"""``tierfall keys``: client keys that NATS keeps, made, listed and revoked while everything runs."""

from tierfall.cli.keys.run import Create, Place, create, list_, revoke

__all__ = ["Create", "Place", "create", "list_", "revoke"]
