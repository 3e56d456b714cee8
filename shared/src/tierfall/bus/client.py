"""nats-py's client, without what it would load for WebSockets.

The bus speaks NATS over TCP and TLS alone. Where aiohttp is installed, nats-py loads it all the same, for its
WebSockets: 16 MB in each process. It takes its absence for an answer, so for that moment it is absent.
"""

from __future__ import annotations

import sys

_loaded = "aiohttp" in sys.modules
if not _loaded:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # what makes Python say that there is no such module
try:
    from nats.aio.client import Client
    from nats.errors import Error as NatsError
    from nats.errors import UnexpectedEOF
    from nats.protocol.parser import AWAITING_MSG_PAYLOAD, Parser
finally:
    if not _loaded:
        del sys.modules["aiohttp"]

__all__ = ["AWAITING_MSG_PAYLOAD", "Client", "NatsError", "Parser", "UnexpectedEOF"]
