"""How to connect, and what is counted once connected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import msgspec

if TYPE_CHECKING:
    from tierfall.config.schema import Nats, NatsTls


class BusOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the servers are and who connects.

    User and password may stand in the URLs (``nats://user:password@host``); the first URL's are used for
    all servers, also for those that the cluster makes known later.
    """

    servers: str
    """``nats://host:port`` or ``tls://host:port``, several separated by commas."""
    name: str
    """Shown in the server's list of connections."""
    token: str = ""
    token_file: str = ""
    """Path of a file with a token, read again at each connect; while there is none, none is shown."""
    creds: str = ""
    """Path of a credentials file (JWT and seed), read again at each connect."""
    nkey: str = ""
    """Path of a file with a user's nkey seed, read again at each connect."""
    tls: NatsTls | None = None
    """With it, as with a ``tls`` URL, a server without TLS is refused; files are read at each connect."""
    inbox_prefix: str = ""
    """When empty it follows from the nkey; without one it is ``_INBOX``."""
    connect_timeout_s: float = 10.0
    """How long the first connect may take in all; later ones are tried for ever."""

    @classmethod
    def of(cls, nats: Nats, name: str, connect_timeout_s: float) -> Self:
        """The options that the config's ``nats`` section asks for."""
        return cls(
            servers=nats.address,
            name=name,
            token=nats.token.value,
            token_file=nats.token_file,
            creds=nats.creds,
            nkey=nats.nkey,
            tls=nats.tls,
            inbox_prefix=nats.inbox_prefix,
            connect_timeout_s=connect_timeout_s,
        )


class BusCounters(msgspec.Struct):
    """Totals since the bus was made."""

    reconnects: int = 0
    """Connections made after the first, for whatever reason."""
    rebuilds: int = 0
    """Those of them that followed a connection which the server had ended with an error."""
    dropped: int = 0
    """Messages that were accepted by ``publish()`` and then given up before they were sent."""
    slow_consumer: int = 0
    """Connections that the server cut amid a backlog and went on running: this side read too slowly."""
    callback_errors: int = 0
    """Exceptions in callbacks and in state listeners."""
    permission_violations: int = 0
    """Publishes and subscriptions that the server refused to this user."""
    oversize_refused: int = 0
    """Payloads above ``max_payload``."""
