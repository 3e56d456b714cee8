"""HTTP to one Ollama: plain GETs, and POSTs whose answer is a stream of JSON lines."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import BackendDown, BackendFault, ConfigError, StreamBroken
from tierfall.upstream.connection import ConnectFailed, ConnectionBroken
from tierfall.upstream.http import HttpPool, Url

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from tierfall.upstream.connection import Response

CONNECT_TIMEOUT_S: Final = 2.0
ASK_TIMEOUT_S: Final = 1.0
LINE_LIMIT_BYTES: Final = 16 * 1024 * 1024
BODY_LIMIT_BYTES: Final = 128 * 1024 * 1024
"""Thousands of vectors, as numbers in text."""
ERROR_LIMIT_BYTES: Final = 64 * 1024
OK: Final = 200

_encoder: Final = msgspec.json.Encoder()


class StatusRefusal(Exception):
    """Ollama answered with another status than 200; ``text`` is its body."""

    def __init__(self, status: int, text: str, retry_after: str = "") -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.text = text
        self.retry_after = retry_after


class OllamaClient:
    """HTTP to one Ollama. Closing a request's connection is what stops Ollama's work.

    Every request has a connection of its own, so none is written to that Ollama is just closing.

    Args:
        base_url: Without a path.

    Attributes:
        base_url: The same, without a slash at its end.

    Raises:
        ConfigError: ``base_url`` is no URL.
    """

    def __init__(self, base_url: str) -> None:
        try:
            Url(base_url)
        except ValueError as error:
            raise ConfigError(f"Ollama's base_url: {error}") from None
        self.base_url = base_url.rstrip("/")
        # A proxy in between that compresses would also hold tokens back.
        every = {"accept-encoding": "identity", "user-agent": "tierfall"}
        self._pool = HttpPool(every, connect_timeout_s=CONNECT_TIMEOUT_S, keepalive_s=0)

    async def close(self) -> None:
        """Closes every connection."""
        await self._pool.close()

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """A short question, answered within :data:`ASK_TIMEOUT_S`.

        Raises:
            BackendDown: Nobody listens.
            BackendFault: No answer in time, or a broken one.
            StatusRefusal: Any status but 200.
        """
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                response = await self._open(method, path, None if body is None else _encoder.encode(body))
                try:
                    text = await _whole(response)
                finally:
                    response.close()
        except TimeoutError:
            raise BackendFault("Ollama did not answer in time") from None
        except ConnectionBroken as error:
            raise BackendFault("Ollama closed the connection without an answer") from error
        if response.status != OK:
            raise StatusRefusal(response.status, text.decode(errors="replace"))
        return text

    async def post(self, path: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        """Posts JSON, and returns the whole answer whenever it is there. Cancelling closes the connection.

        Raises:
            BackendDown: Nobody listens.
            BackendFault: The connection broke, or the answer is too long.
            StatusRefusal: Any status but 200.
        """
        try:
            response = await self._open("POST", path, payload, headers)
            try:
                if response.status != OK:
                    raise await _refusal(response)
                return await _whole(response, BODY_LIMIT_BYTES)
            finally:
                response.close()
        except ConnectionBroken as error:
            raise BackendFault("the connection to Ollama broke before its answer was whole") from error

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
        try:
            response = await self._open("POST", path, payload, headers)
        except ConnectionBroken as error:
            raise BackendFault("Ollama closed the connection without an answer") from error
        try:
            if response.status != OK:
                raise await _refusal(response)
            async with aclosing(_split(response, silence_s)) as lines:
                async for line in lines:
                    yield line
        except (ConnectionBroken, TimeoutError) as error:
            raise StreamBroken("the connection to Ollama broke in the middle of its answer") from error
        finally:
            response.close()

    async def _open(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None
    ) -> Response:
        sent = {"content-type": "application/json", **(headers or {})} if body is not None else headers
        try:
            return await self._pool.request(method, Url(self.base_url + path), headers=sent, body=body)
        except ConnectFailed as error:
            raise BackendDown(f"Ollama does not answer: {error}; is `ollama serve` running?") from error


async def _whole(response: Response, limit: int = LINE_LIMIT_BYTES) -> bytes:
    text = bytearray()
    while data := await response.read():
        text += data
        if len(text) > limit:
            raise BackendFault("Ollama's answer has no end")
    return bytes(text)


async def _refusal(response: Response) -> StatusRefusal:
    text = bytearray()
    while len(text) <= ERROR_LIMIT_BYTES and (data := await response.read()):
        text += data
    return StatusRefusal(
        response.status, text.decode(errors="replace"), response.headers.get("retry-after", "")
    )


async def _split(response: Response, silence_s: float | None) -> AsyncGenerator[bytes, None]:
    rest = b""
    while data := await _read(response, silence_s):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > LINE_LIMIT_BYTES:
            raise StreamBroken("a line of Ollama's answer has no end")
        for line in whole:
            if line:
                yield line
    if rest:
        # The decoder judges whether this is a whole line that lacks its end, or a piece.
        yield rest


async def _read(response: Response, silence_s: float | None) -> bytes:
    async with asyncio.timeout(silence_s):
        return await response.read()
