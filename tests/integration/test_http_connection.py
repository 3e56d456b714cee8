"""Connections at byte level: heads, pipelines, what is no HTTP, and how connections end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fakes.gateway import Gateway, asking
from fakes.polling import until
from fakes.raw_client import RawClient, chat_request, get_request
from fakes.scripted import chunk
from tierfall_ingress import connection as connection_module
from tierfall_ingress import linger as linger_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway that must have let go of every connection at the end."""
    async with Gateway() as running:
        yield running
        await running.client.aclose()
        await until(lambda: not running.server.server_state.connections)
        await until(lambda: running.idle)


def code(body: Any) -> str | None:
    """The error's code, after a look at its form."""
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: str | None = body["error"]["code"]
    return found


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"Content-Length: abc\r\n\r\n{}",
        HEAD + b"Content-Length: -1\r\n\r\n{}",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["tls", "http2", "path", "header", "connect", "text", "negative", "huge", "two", "smuggled"],
)
async def test_what_is_no_http_is_a_400(gateway: Gateway, raw: bytes) -> None:
    """Rules 18 and 22: the error object and a request id, then the connection is closed."""
    async with RawClient(gateway.url) as client:
        await client.send(raw)
        answer = await client.answer()
        assert answer.status == 400
        assert answer.header("connection") == "close"
        assert answer.header("x-request-id")
        assert code(answer.json) is None
        assert await client.closed() == b""


@pytest.mark.parametrize(
    "bomb",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 30_000,
        b"GET /" + b"a" * 200_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 400_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 400_000,
    ],
    ids=["value", "count", "path", "extension", "trailer"],
)
async def test_a_header_bomb_is_a_431(gateway: Gateway, bomb: bytes) -> None:
    """Rule 16: refused while it comes; whether it is a head or hides in a body that is none."""
    async with RawClient(gateway.url) as client:
        for at in range(0, len(bomb), 16384):
            await client.send(bomb[at : at + 16384])
            await asyncio.sleep(0)
        answer = await client.answer()
    assert answer.status == 431
    assert code(answer.json) == "headers_too_large"


async def test_a_large_head_within_the_limit_is_read(gateway: Gateway) -> None:
    """60 KB of headers, in two pieces, cut in the middle of its end."""
    request = get_request("/v1/models", "X: " + "a" * 60_000)
    async with RawClient(gateway.url) as client:
        await client.send(request[:-2])
        await client.send(request[-2:])
        assert (await client.answer()).status == 200


async def test_a_head_that_does_not_come_is_a_408(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 19: a client that begins a request and does not go on is let go, a second request's head too."""
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", 0.2)
    for before in (b"", get_request("/v1/models")):
        async with RawClient(gateway.url) as client:
            if before:
                await client.send(before)
                assert (await client.answer()).status == 200
            await client.send(b"GET /v1/mod")
            answer = await client.answer()
            assert answer.status == 408
            assert code(answer.json) == "head_timeout"


async def test_a_connection_without_a_word_is_closed(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was asked, so nothing is answered: a 408 there could be taken for a later request's."""
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", 0.1)
    async with RawClient(gateway.url) as client:
        assert await client.closed() == b""


@pytest.mark.parametrize(
    "junk", [b"\r\n", b"\r\n\r\n", b"GET /v1/mod", b"\x00garbage\r\n\r\n", b"X" * 100_000]
)
async def test_what_follows_a_request_never_spoils_its_answer(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    """Rule 5: a stream under way goes on to its end, whatever its client sends behind its request."""
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", 0.1)
    gate = asyncio.Event()
    gateway.one.scripts.append([chunk("a"), gate, chunk("b"), chunk(finish="stop")])
    async with RawClient(gateway.url) as client:
        await client.chat(asking(stream=True))
        assert (await client.head())[0] == 200
        await client.piece()
        await client.send(junk)
        (server,) = gateway.server.server_state.connections
        assert isinstance(server, connection_module.Connection)
        await until(lambda: server._refused)
        gate.set()
        rest = b"".join([piece async for piece in client.pieces()])
        assert rest.endswith(b"data: [DONE]\n\n")
        assert b"error" not in rest
        assert await client.closed() == b""


async def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    """Several requests in one packet, chat and not, are answered one after the other."""
    requests = [
        chat_request(asking()),
        get_request("/v1/models/first"),
        chat_request(asking(stream=True)),
        chat_request(b"nonsense"),
        get_request("/nope"),
    ]
    async with RawClient(gateway.url) as client:
        await client.send(b"".join(requests))
        answers = [await client.answer() for _ in requests]
    assert [answer.status for answer in answers] == [200, 200, 200, 400, 404]
    assert answers[1].json["id"] == "first"
    assert answers[2].events[-1] == "data: [DONE]"


async def test_many_pipelined_requests_are_all_answered(gateway: Gateway) -> None:
    """More than are read ahead: none is lost."""
    count = 4 * connection_module.MAX_PIPELINED
    async with RawClient(gateway.url) as client:
        for _ in range(count):
            await client.send(chat_request(asking()))
        answers = [await client.answer() for _ in range(count)]
    assert [answer.status for answer in answers] == [200] * count


async def test_a_wish_for_another_protocol_is_ignored(gateway: Gateway) -> None:
    """Java's HTTP client asks for HTTP/2 with its first request: it is answered in HTTP/1.1, body and all."""
    wish = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    async with RawClient(gateway.url) as client:
        whole = chat_request(asking(), *wish)
        for at in range(0, len(whole), 97):
            await client.send(whole[at : at + 97])
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        await client.chat(asking(stream=True))
        assert (await client.answer()).events[-1] == "data: [DONE]"
        await client.send(get_request("/v1/models/first", "Connection: Upgrade", "Upgrade: websocket"))
        assert (await client.answer()).json["id"] == "first"


async def test_http_1_0(gateway: Gateway) -> None:
    """An old client gets its answer and the end of the connection."""
    async with RawClient(gateway.url) as client:
        await client.send(chat_request(asking()).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await client.answer()).status == 200
        assert await client.closed() == b""


async def test_a_body_nobody_reads_does_no_harm(gateway: Gateway) -> None:
    """A GET or a wrong path with a large body is answered, and so is the next request behind that body."""
    body = b"x" * 300_000
    head = b"POST /nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with RawClient(gateway.url) as client:
        await client.send(head + body + get_request("/v1/models/first"))
        assert (await client.answer()).status == 404
        assert (await client.answer()).json["id"] == "first"


async def test_a_refused_client_that_goes_on_sending_is_cut(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a moment to read its refusal, and no longer."""
    monkeypatch.setattr(linger_module, "LINGER_S", 0.2)
    async with RawClient(gateway.url) as client:
        await client.send(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        assert (await client.answer()).status == 413
        (server,) = gateway.server.server_state.connections

        async def send_on() -> None:
            while True:
                await client.send(b"x" * 65536)
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await send_on()
        assert server not in gateway.server.server_state.connections
