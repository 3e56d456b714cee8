"""HTTP to one Ollama: plain GETs, and POSTs whose answer is a stream of JSON lines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from tierfall.errors import BackendDown, BackendError, BackendFault, StreamBroken

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

CONNECT_TIMEOUT_S: Final = 2.0
ASK_TIMEOUT_S: Final = 1.0
LINE_LIMIT_BYTES: Final = 16 * 1024 * 1024
ERROR_LIMIT_BYTES: Final = 64 * 1024
OK: Final = 200


class StatusRefusal(Exception):
    """Ollama answered with another status than 200; ``text`` is its body."""

    def __init__(self, status: int, text: str, retry_after: str = "") -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.text = text
        self.retry_after = retry_after


class OllamaClient:
    """One session. Every request has a connection of its own: closing it is what stops Ollama's work.

    That also rules out the race of writing to a kept connection that Ollama is just closing.

    Args:
        base_url: Without a path.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Opens the session; nothing is sent."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            # A proxy in between that compresses would also hold tokens back.
            headers={"Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        )

    async def close(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """A short question, answered within :data:`ASK_TIMEOUT_S`.

        Raises:
            BackendDown: Nobody listens.
            BackendFault: No answer in time, or a broken one.
            StatusRefusal: Any status but 200.
        """
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        try:
            async with self._request(method, path, json=body, timeout=timeout) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failure(error) from error
        if response.status != OK:
            raise StatusRefusal(response.status, text.decode(errors="replace"))
        return text

    async def lines(
        self,
        path: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        silence_s: float | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Posts JSON and yields the answer's lines as they come. Closing the generator closes the connection.

        Args:
            path: ``/api/...``.
            payload: The JSON body.
            headers: Further request headers.
            silence_s: How long the answer may stall; for ever by default.

        Raises:
            BackendDown: Nobody listens.
            BackendFault: The connection broke before the answer began.
            StreamBroken: It broke, or stalled, within the answer.
            StatusRefusal: Any status but 200.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)
        every = {"Content-Type": "application/json", **(headers or {})}
        begun = False
        try:
            async with self._request("POST", path, data=payload, headers=every, timeout=timeout) as response:
                begun = True
                try:
                    if response.status != OK:
                        raise await _refusal(response)
                    async for line in _split(response.content):
                        yield line
                finally:
                    response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if begun:
                raise StreamBroken("the connection to Ollama broke in the middle of its answer") from error
            raise _failure(error) from error

    def _request(self, method: str, path: str, **options: Any) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            raise RuntimeError("start() comes first")
        return self._session.request(method, self._base_url + path, allow_redirects=False, **options)


def _failure(error: Exception) -> BackendError:
    if isinstance(error, aiohttp.InvalidURL):
        return BackendDown("the tier's base_url is not a URL")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        number = getattr(error, "errno", None)
        reason = os.strerror(number).lower() if number and number > 0 else "no connection"
        return BackendDown(f"Ollama does not answer: {reason}; is `ollama serve` running?")
    if isinstance(error, TimeoutError):
        return BackendFault("Ollama did not answer in time")
    return BackendFault("Ollama closed the connection without an answer")


async def _refusal(response: aiohttp.ClientResponse) -> StatusRefusal:
    text = bytearray()
    async for data in response.content.iter_any():
        text += data
        if len(text) > ERROR_LIMIT_BYTES:
            break
    return StatusRefusal(
        response.status, text.decode(errors="replace"), response.headers.get("Retry-After", "")
    )


async def _split(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for data in content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > LINE_LIMIT_BYTES:
            raise StreamBroken("a line of Ollama's answer has no end")
        for line in whole:
            if line:
                yield line
    if rest:
        # The decoder judges whether this is a whole line that lacks its end, or a piece.
        yield rest
