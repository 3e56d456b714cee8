"""One message as NATS delivered it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Message(msgspec.Struct, frozen=True, gc=False):
    """What a callback is given.

    NATS headers are kept as they came: no subject of the hot path has any, and parsing them costs more than
    the rest.
    """

    subject: str
    reply: str
    """Where an answer is awaited; empty if nobody waits."""
    data: bytes
    no_responders: bool = False
    """Whether this is the server's 503: nobody is subscribed to the subject that a request was sent to.

    A client may publish the same bytes. So it proves something only where no other user may publish: on a
    :meth:`tierfall.bus.Bus.inbox`, not on a :meth:`tierfall.bus.Bus.reply_inbox`.
    """
    headers: bytes = b""
    """The whole header block, for :mod:`tierfall.bus.headers` to read; empty in a message without."""


Callback = Callable[[Message], None]
"""Called for each message, synchronously, on the event loop, in the order of delivery over all subscriptions.

It has to be quick, as nothing else is read meanwhile. An exception in it is logged and counted, no more.
"""
