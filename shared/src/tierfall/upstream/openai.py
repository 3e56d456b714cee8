"""One backend that speaks OpenAI's API: payloads, plain values and the error tree."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import (
    BackendDown,
    BackendFault,
    ConfigError,
    ProviderRefused,
    StreamBroken,
    TierfallError,
    UnsupportedOperation,
)
from tierfall.protocol.operation import Operation
from tierfall.upstream.completion import as_chunk
from tierfall.upstream.connection import ConnectFailed, ConnectionBroken
from tierfall.upstream.failure import Source, from_answer, from_event
from tierfall.upstream.http import HttpPool, Url
from tierfall.upstream.sse import DONE, MAX_EVENT_BYTES, SSEParser

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from tierfall.upstream.connection import Response

LOCAL_CONNECT_TIMEOUT_S: Final = 2.0
CLOUD_CONNECT_TIMEOUT_S: Final = 5.0
LOCAL_KEEPALIVE_S: Final = 4.0
"""Below the 5 s after which uvicorn, and so vLLM, closes an idle connection."""
CLOUD_KEEPALIVE_S: Final = 50.0
MAX_BODY_BYTES: Final = 128 * 1024 * 1024
"""A whole answer: OpenAI's largest batch, 2048 inputs of 3072 dimensions, as numbers in text."""
MAX_ERROR_BYTES: Final = 64 * 1024
ERROR_BODY_TIMEOUT_S: Final = 1.0
"""How long an error's body may lag behind its status, which says most of it."""
LINGER_S: Final = 1.0
"""How long the end of the body may lag behind ``[DONE]`` before the connection is given up."""

_OK: Final = 200
_NO_PATH: Final = frozenset({404, 405, 501})
"""What engines say to an endpoint that they lack; also to a model that they lack, but then they name it."""
_WRONG_MODEL: Final = re.compile(
    rb"does not support (the )?(chat|completions?|embeddings?)\b"  # vLLM
    rb"|not supported in the v1/|not allowed to (generate embeddings|sample) from this model",  # OpenAI
    re.IGNORECASE,
)
_JSON_BEGINS: Final = (b"{", b"[")
"""No line of an event stream begins like this: the answer is a whole JSON body."""
_NULL: Final = b"null"
_TOO_LARGE: Final = "the backend's answer has more than {} bytes"


class _Peek(msgspec.Struct):
    """What makes an event an error."""

    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    object: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Reply(msgspec.Struct, frozen=True):
    """A whole answer to a side request such as a probe."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body; ``None`` when it is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


_peek: Final = msgspec.json.Decoder(_Peek)


class OpenAIUpstream:
    """One backend, reached over pooled connections.

    There is no limit on connections (the worker's slots are the limit) and no timeout on an answer: the
    ladder has the clocks.

    Args:
        source: How error messages name the backend.
        headers: Sent with every request: the tier's own authorization. Nothing of the caller's.
        connect_timeout_s: For opening a TCP connection.
        keepalive_s: How long an idle connection is kept for the next request.
    """

    def __init__(
        self,
        source: Source,
        *,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = LOCAL_CONNECT_TIMEOUT_S,
        keepalive_s: float = LOCAL_KEEPALIVE_S,
    ) -> None:
        self.source = source
        self.base_url = source.base_url.rstrip("/")
        # Compressed events come late and together, so none are asked for.
        every = {"accept-encoding": "identity", "user-agent": "tierfall", **(headers or {})}
        self._pool = HttpPool(every, connect_timeout_s=connect_timeout_s, keepalive_s=keepalive_s)
        self._urls = {each: _url(source, f"{self.base_url}{each.path}") for each in Operation}
        self._lingering: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Closes every connection."""
        for task in list(self._lingering):
            task.cancel()
        await asyncio.gather(*self._lingering, return_exceptions=True)
        await self._pool.close()

    async def answer(
        self,
        operation: Operation,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        on_head: Callable[[int, Mapping[str, str]], None] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Posts a request and yields what each event says, on one line, up to ``[DONE]``.

        That is the JSON text of a chunk, or garbage: whoever judges the answer has to read it anyway.
        Embeddings come in one piece, which is all that is yielded of them. A stream that ends in good order
        without ``[DONE]`` just ends here: whether the answer was complete is for the caller to judge by its
        ``finish_reason``. Closing the generator closes the connection, which is what makes an engine stop.

        Args:
            operation: Which endpoint is meant.
            body: The JSON body; must ask for a stream, except of embeddings.
            headers: Further headers for this request.
            on_head: Called with the answer's status and headers (names in lower case), whatever they are.

        Raises:
            BackendDown: No connection could be made.
            BackendFault: The connection broke before the answer's head, or the backend failed.
            StreamBroken: The connection broke, or what came are no events, in the middle of the answer.
            UnsupportedOperation: The backend has no such endpoint.
            TierfallError: What else the backend's error means; see :mod:`tierfall.upstream.failure`.
        """
        response = await self._open("POST", self._urls[operation], body, headers)
        complete = False
        try:
            if on_head is not None:
                on_head(response.status, response.headers)
            data = await self._first(response, operation)
            if operation is Operation.EMBEDDINGS or data[:1] in _JSON_BEGINS:
                yield await self._unstreamed(data, response, operation)
                complete = True
                return
            parser = SSEParser()
            while data:
                for payload in parser.feed(data):
                    if payload == DONE:
                        complete = True
                        return
                    if payload != _NULL:  # llama.cpp sends it between the answers to several prompts
                        yield self._told(payload)
                data = await response.read()
            last = parser.finish()
            if last is not None and last != DONE:
                yield self._told(last)
            complete = True
        except ConnectionBroken as error:
            raise self._broken(error) from error
        finally:
            if complete:
                self._release(response)
            else:
                response.close()

    async def ask(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        timeout_s: float,
        max_bytes: int = MAX_EVENT_BYTES,
    ) -> Reply:
        """A small side request: a probe, a model list, a token count.

        Args:
            method: ``GET`` or ``POST``.
            url: The whole URL.
            body: JSON, for ``POST``.
            timeout_s: For all of it, connecting included.
            max_bytes: Bound on the answer.

        Raises:
            TimeoutError: There was no whole answer in time.
            BackendDown: No connection could be made.
            BackendFault: The connection broke, or the answer passes ``max_bytes``.
        """
        async with asyncio.timeout(timeout_s):
            response = await self._open(method, _url(self.source, url), body, None)
            try:
                return Reply(response.status, await self._whole(response, max_bytes))
            finally:
                response.close()

    async def _open(
        self, method: str, url: Url, body: bytes | None, headers: Mapping[str, str] | None
    ) -> Response:
        sent = dict(headers or {})
        if body is not None:
            sent["content-type"] = "application/json"
        try:
            return await self._pool.request(method, url, headers=sent, body=body)
        except ConnectFailed as error:
            raise BackendDown(
                f"{self.source.name} cannot be reached: {error}",
                internal=f"{self.source.name} at {self.base_url} cannot be reached: {error}",
            ) from error
        except ConnectionBroken as error:
            raise BackendFault(f"{self.source.name} broke the connection unanswered: {error}") from error

    async def _first(self, response: Response, operation: Operation) -> bytes:
        """The first bytes that are not white space; empty at the end of an empty answer."""
        if response.status != _OK:
            raise await self._failure(response, operation)
        while data := await self._read(response):
            if data := data.lstrip():
                break
        if data.startswith(b"<"):
            raise ProviderRefused(
                f"{self.source.name} answered with a web page: check the tier's base_url",
                internal=f"{self.source.name} at {self.base_url} answered with a web page: "
                "check the tier's base_url",
            )
        return data

    async def _read(self, response: Response) -> bytes:
        try:
            return await response.read()
        except ConnectionBroken as error:
            raise self._broken(error) from error

    def _broken(self, error: ConnectionBroken) -> StreamBroken:
        return StreamBroken(f"{self.source.name} broke the connection in the middle of its answer: {error}")

    async def _unstreamed(self, begun: bytes, response: Response, operation: Operation) -> bytes:
        """The whole of a JSON body: embeddings, an error, or the answer of an engine that never streams."""
        if operation is Operation.EMBEDDINGS:
            return self._told(begun + await self._whole(response, MAX_BODY_BYTES))
        parts = [begun, await self._whole(response, MAX_EVENT_BYTES)]
        try:
            decoded = msgspec.json.decode(b"".join(parts))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise StreamBroken(
                f"{self.source.name} answered with JSON that is cut off or malformed"
            ) from None
        if (
            isinstance(decoded, dict)
            and isinstance(decoded.get("choices"), list)
            and not decoded.get("error")
        ):
            return as_chunk(decoded)
        raise from_event(self.source, decoded)

    def _told(self, payload: bytes) -> bytes:
        """What one event says, on one line, if that is no error."""
        if b'"error"' in payload:
            self._look_for_error(payload)
        return payload.replace(b"\n", b" ") if b"\n" in payload else payload

    def _look_for_error(self, payload: bytes) -> None:
        try:
            seen = _peek.decode(payload)
        except (msgspec.DecodeError, RecursionError):
            return  # no object at all: its judge will say so
        if (seen.error is not msgspec.UNSET and bytes(seen.error) != b"null") or (
            seen.object is not msgspec.UNSET and bytes(seen.object) == b'"error"'
        ):
            try:
                said = msgspec.json.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise StreamBroken(f"{self.source.name} sent an error that cannot be read") from None
            raise from_event(self.source, said)

    async def _failure(self, response: Response, operation: Operation) -> TierfallError:
        try:
            async with asyncio.timeout(ERROR_BODY_TIMEOUT_S):
                body = await self._whole(response, MAX_ERROR_BYTES)
        except (TimeoutError, BackendFault):
            body = b""  # the status says enough
        if _WRONG_MODEL.search(body):
            return UnsupportedOperation(f"{self.source.name}: this model is not one for /v1{operation.path}")
        if response.status in _NO_PATH and operation is not Operation.CHAT and b"model" not in body.lower():
            return UnsupportedOperation(f"{self.source.name} has no {operation.path}")
        return from_answer(self.source, response.status, response.headers, body)

    async def _whole(self, response: Response, max_bytes: int) -> bytes:
        parts, size = [], 0
        while data := await self._read(response):
            size += len(data)
            if size > max_bytes:
                raise BackendFault(_TOO_LARGE.format(max_bytes))
            parts.append(data)
        return b"".join(parts)

    def _release(self, response: Response) -> None:
        """Leaves the connection to the pool, once its body's end is there."""
        if response.whole:
            return
        task = asyncio.get_running_loop().create_task(self._linger(response))
        self._lingering.add(task)

        def done(_: object) -> None:
            self._lingering.discard(task)
            response.close()

        task.add_done_callback(done)

    async def _linger(self, response: Response) -> None:
        with contextlib.suppress(TimeoutError, StreamBroken):
            async with asyncio.timeout(LINGER_S):
                while await self._read(response):
                    pass


def _url(source: Source, text: str) -> Url:
    try:
        return Url(text)
    except ValueError as error:
        raise ConfigError(f"{source.name}: {error}") from None
