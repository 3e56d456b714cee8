"""The two kinds of clients of the load generator, on bare connections: the others need the CPU time."""

from __future__ import annotations

import array
import asyncio
import time
from typing import TYPE_CHECKING, Final

import httptools

from bench.backend import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

OK: Final = 200


def request_bytes(host: str, key: str, body: bytes) -> bytes:
    """One chat request as it goes over the wire."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """One connection: sends a request when told, and collects what comes back.

    Attributes:
        done: Resolves once nothing more will come, to nothing when all went well, else to what went wrong.
    """

    def __init__(self, request: bytes) -> None:
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.sent = 0.0
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of the protocol."""
        self._transport = transport  # type: ignore[assignment]  # TCP has no other

    def data_received(self, data: bytes) -> None:
        """Part of the protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.end(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of the protocol."""
        self.end(f"connection lost: {exc}")

    def send(self) -> None:
        """Sends the request."""
        self.sent = time.perf_counter()
        self._transport.write(self._request)

    def end(self, problem: str = "") -> None:
        """Closes the connection; what comes later does not count."""
        if not self.done.done():
            self.done.set_result(problem)
            self._transport.close()


class Asker(Client):
    """Asks again as soon as it is answered.

    Attributes:
        latencies: Seconds of each answer.
        refusals: Answers with another status than 200.
    """

    def __init__(self, request: bytes, goes_on: Callable[[], bool]) -> None:
        super().__init__(request)
        self.latencies = array.array("d")
        self.refusals = 0
        self._goes_on = goes_on

    def on_message_complete(self) -> None:
        """Part of the parser's callbacks."""
        if self._parser.get_status_code() == OK:
            self.latencies.append(time.perf_counter() - self.sent)
        else:
            self.refusals += 1
        if not self._goes_on():
            self.end()
        elif self._parser.should_keep_alive():
            self.send()
        else:
            self.end("the server closes its connections")


class Reader(Client):
    """Reads one stream.

    Attributes:
        arrivals: When each token came (``time.perf_counter``); those of one read have the same time.
    """

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        self.arrivals = array.array("d")
        self._now = 0.0
        self._rest = b""
        self._is_whole = False

    def data_received(self, data: bytes) -> None:
        """Part of the protocol."""
        self._now = time.perf_counter()
        super().data_received(data)

    def on_body(self, data: bytes) -> None:
        """Counts tokens, also one that is split between two reads."""
        text = self._rest + data
        for _ in range(text.count(TOKEN)):
            self.arrivals.append(self._now)
        self._rest = text[-(len(TOKEN) - 1) :]
        self._is_whole = self._is_whole or b"[DONE]" in text

    def on_message_complete(self) -> None:
        """Part of the parser's callbacks."""
        status = self._parser.get_status_code()
        if status != OK:
            self.end(f"status {status}")
        else:
            self.end("" if self._is_whole else "no [DONE]")
