"""A TCP relay whose connections can go silent without an end, as when a machine sleeps or a link is cut."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

READ_BYTES = 64 * 1024


class Relay:
    """Forwards connections to a port of 127.0.0.1; use as an async context manager.

    Args:
        port: Where to.

    Attributes:
        accepted: How many connections it has taken so far.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._passing = asyncio.Event()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._is_down = False
        self.accepted = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """For ``nats.url``."""
        return f"nats://127.0.0.1:{self.port}"

    def cut(self, *, new_ones: bool = False) -> None:
        """From now on nothing passes on the connections that there are, in either direction; none is closed.

        Args:
            new_ones: Whether the same happens to new connections, until :meth:`end_clients`.
        """
        self._passing = asyncio.Event()
        self._is_down = new_ones

    def end_clients(self) -> None:
        """The clients find out that their connections are dead, the server does not; new ones pass."""
        self._is_down = False
        for writer in self._clients:
            writer.transport.abort()
        self._clients.clear()

    async def __aenter__(self) -> Self:
        """Listens."""
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes everything."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._clients.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self._passing
        if self._is_down:
            await asyncio.Event().wait()
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(
                self._forward(reader, there_writer, cut), self._forward(there_reader, writer, cut)
            )
        finally:
            writer.transport.abort()
            there_writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, of: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if of is not self._passing:
                    break
                writer.write(data)
                await writer.drain()
        if of is not self._passing:
            await asyncio.Event().wait()  # neither bytes nor an end come through
        writer.close()
