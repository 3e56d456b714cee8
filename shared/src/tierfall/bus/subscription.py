"""One subscription, which can leave its queue group and come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tierfall.errors import BusDown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NAME_BYTES: Final = 2048
"""Longest subject and queue group together; the server's ``max_control_line`` is 4096 by default."""


class Subscription:
    """Made by :meth:`tierfall.bus.Bus.subscribe`.

    Its state outlives connections: after a reconnect, one that is joined is joined again, and one that has
    left stays away.

    Args:
        sid: The subscription's id towards the server.
        subject: What it listens to; wildcards as NATS has them.
        queue: The queue group, or empty to get every message.
        send: Queues a protocol line behind everything published so far.
        flush: Returns when the server has handled what was queued, and its deliveries have been handled here.
        forget: Ends delivery to the callback.
    """

    def __init__(
        self,
        *,
        sid: int,
        subject: str,
        queue: str,
        send: Callable[[bytes], None],
        flush: Callable[[], Awaitable[None]],
        forget: Callable[[int], None],
    ) -> None:
        self.subject = subject
        self.queue = queue
        self.joined = False
        """Whether the server sends messages here, or will once connected."""
        self.sid = sid
        self._send = send
        self._flush = flush
        self._forget = forget
        self._closed = False

    @property
    def sub_line(self) -> bytes:
        """The protocol line that makes the server deliver here."""
        return f"SUB {self.subject} {self.queue} {self.sid}\r\n".encode()

    def leave(self) -> None:
        """Asks for no more messages, in order with what is published.

        What the server has sent by then still reaches the callback; :meth:`tierfall.bus.Bus.flush` returns
        after the last of it.
        """
        if self.joined:
            self.joined = False
            self._send(f"UNSUB {self.sid}\r\n".encode())

    def join(self) -> None:
        """Comes back; a message published after this reaches the server later than this does.

        Does nothing once the subscription is closed.
        """
        if not self.joined and not self._closed:
            self.joined = True
            self._send(self.sub_line)

    def ask_again(self) -> None:
        """Asks the server for what it refused before; does nothing while this has left."""
        if self.joined:
            self._send(self.sub_line)

    async def close(self) -> None:
        """Leaves, lets what was delivered be handled, and is gone. Again, it does nothing."""
        if self._closed:
            return
        self._closed = True
        self.leave()
        try:
            await self._flush()
        except BusDown:
            # The connection is gone, and with it whatever the server had still to deliver on it.
            pass
        finally:
            self._forget(self.sid)


def check_subscription(subject: str, queue: str) -> None:
    """Refuses what the server would answer with an error that names no subscription.

    Raises:
        ValueError: An empty token, a misplaced wildcard, white space, or too long.
    """
    tokens = subject.split(".")
    if (
        not all(tokens)
        or " " in subject + queue
        or not (subject + queue).isprintable()
        or ">" in tokens[:-1]
        or len(subject) + len(queue) > NAME_BYTES
    ):
        raise ValueError(f"not a NATS subject to subscribe to: {subject!r}, queue group {queue!r}")
