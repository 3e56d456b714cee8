"""A transport that lets the client read the last answer before the connection goes.

Closing a socket that still has unread bytes makes the kernel send a reset, and a reset can overtake an answer
that the client has not read yet: a 413 sent while the body still comes would often be lost. So the sending
side is closed first, and what still comes is thrown away for a while (RFC 9112, section 9.6).

It also lets an answer's head leave together with what follows: uvicorn writes it by itself, and a packet of
its own is the most expensive part of a short answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD: Final = b"HTTP/1."
"""How a head begins, and no body that uvicorn writes by itself: a chunk begins with its length."""
LINGER_S: Final = 5.0
"""How long a client may go on sending after it was refused."""


class LingeringTransport(asyncio.Transport):
    """Passes everything on; only :meth:`write` and :meth:`close` differ.

    Args:
        transport: The real one.
        unread: Asked when the connection is to be closed: whether the client may still be sending.

    Attributes:
        lingering: Whether the answer is out and what comes is to be thrown away.
    """

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], bool]) -> None:
        super().__init__()
        self._transport = transport
        self._unread = unread
        self._timer: asyncio.TimerHandle | None = None
        self._head = b""
        self.lingering = False

    def close(self) -> None:
        """Closes at once when everything was read; otherwise says so and listens on, for a limited time."""
        if self.is_closing():
            return
        self._send_head()
        if not self._unread():
            self._transport.close()
            return
        self.lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)

    def is_closing(self) -> bool:
        """True from the first :meth:`close` on."""
        return self.lingering or self._transport.is_closing()

    def lost(self) -> None:
        """To be called when the connection is gone: also lets go of who was asked, who holds this."""
        self._unread = _nothing
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """At once, whatever is unsent."""
        self._transport.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As the real one, but for a head: that waits for the next write, at most to the loop's next turn."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(b"".join((head, data)))
        elif data[: len(_HEAD)] == _HEAD:
            self._head = bytes(data)
            asyncio.get_running_loop().call_soon(self._send_head)
        else:
            self._transport.write(data)

    def _send_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def pause_reading(self) -> None:
        """As the real one."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """As the real one."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the real one."""
        return self._transport.get_extra_info(name, default)


def _nothing() -> bool:
    return False
