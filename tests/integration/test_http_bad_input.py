"""Whatever arrives as a chat request: the error object, and a gateway that goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.gateway import MAX_BODY_BYTES, Gateway, asking
from fakes.polling import until
from fakes.raw_client import RawClient, chat_request
from tierfall_ingress import body as body_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.raw_client import RawAnswer
    from tierfall.worker import Ask, Progress

DEEP = b"[" * 100_000 + b"]" * 100_000
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway; whatever a test did to it, it still answers afterwards and has nothing left open."""
    async with Gateway() as running:
        yield running
        assert (await running.chat()).status_code == 200
        await until(lambda: running.idle)
        assert running.one.cancelled == 0


def refused(answer: RawAnswer, status: int) -> dict[str, Any]:
    """The error object, whole."""
    assert answer.status == status, answer.body
    assert answer.header("content-type") == "application/json"
    assert answer.header("x-request-id")
    error: dict[str, Any] = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", None),
        (b"not json", None),
        (b"[1]", None),
        (b"null", None),
        (b'{"model":"first","messages":[{"role":"user","content":NaN}]}', None),
        (b'{"model":"first","messages":[{"role":"user","content":"\xff"}]}', None),
        (b'{"model":"first","messages":[{"role":"user","content":"\\ud800"}]}', None),
        (b'\xef\xbb\xbf{"model":"first","messages":[{}]}', None),
        (b'{"model":"first","messages":[{"content":' + DEEP + b"}]}", None),
        (b'{"model":"first","messages":[{}],"unknown":' + DEEP + b"}", None),
        (b'{"model":"first","messages":[]}', "messages"),
        (b'{"model":"first","messages":"x"}', "messages"),
        (b'{"model":["first"],"messages":[{}]}', "model"),
        (b'{"model":"first","messages":[{}],"stream":"yes"}', "stream"),
        (b'{"model":"first","messages":[{}],"n":' + b"9" * 5000 + b"}", "n"),
    ],
    ids=range(15),
)
async def test_a_bad_body_is_a_400_and_the_connection_goes_on(
    gateway: Gateway, raw: bytes, param: str | None
) -> None:
    """Rule 16: refused before any tier hears of it; the next request on the same connection is answered."""
    async with RawClient(gateway.url) as client:
        await client.chat(raw)
        assert refused(await client.answer(), 400)["param"] == param
        assert gateway.one.asks == []
        await client.chat(asking())
        assert (await client.answer()).status == 200


async def test_nesting_at_the_edge_never_crashes(gateway: Gateway) -> None:
    """Rule 16: what the ingress lets just pass and a worker cannot read is a 400 too, never a 5xx."""
    raw = b'{"model":"alone","messages":[{"role":"user","content":"x"}],"deep":'
    for depth in (200, 900, *range(940, 1001, 4)):
        answer = await gateway.raw(chat_request(raw + b"[" * depth + b"]" * depth + b"}"))
        assert answer.status in {200, 400}, (depth, answer.body)


async def test_nesting_that_only_a_backend_trips_over_is_a_400(gateway: Gateway) -> None:
    """Rule 16: a backend that puts the request into another form may be the first that cannot read it."""
    plain = gateway.one.chat

    async def chat(ask: Ask) -> AsyncIterator[bytes | Progress]:
        msgspec.json.decode(b"[" * 300 + bytes(ask.body["deep"]) + b"]" * 300)
        async for item in plain(ask):
            yield item

    raw = b'{"model":"alone","messages":[{"role":"user","content":"x"}],"deep":' + b"[" * 800 + b"]" * 800
    gateway.one.chat = chat  # type: ignore[method-assign]  # the same with one step before it
    answer = await gateway.raw(chat_request(raw + b"}"))
    gateway.one.chat = plain  # type: ignore[method-assign]  # as it was
    assert "nested" in refused(answer, 400)["message"]


async def test_a_repeated_member_is_the_same_for_all(gateway: Gateway) -> None:
    """Rule 16: of two ``model`` members the last one is routed by, and the only one a backend sees."""
    raw = b'{"model":"nope","messages":[{"role":"user","content":"x"}],"model":"first"}'
    assert (await gateway.raw(chat_request(raw))).json["model"] == "first"
    assert bytes(gateway.one.asks[0].body["model"]) == b'"first"'


async def test_thousands_of_messages(gateway: Gateway) -> None:
    """Rule 16: a long conversation within the limit is served."""
    messages = asking()["messages"] * 20_000
    answer = await gateway.raw(chat_request(asking(messages=messages)))
    assert answer.status == 200
    assert len(json.loads(bytes(gateway.one.asks[0].body["messages"]))) == 20_000


@pytest.mark.parametrize("declared", [MAX_BODY_BYTES + 1, 10**15])
async def test_too_large_by_its_length(gateway: Gateway, declared: int) -> None:
    """Rule 16: a 413 before any of the body came, without ``100 Continue``."""
    head = HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % declared
    assert refused(await gateway.raw(head), 413)["code"] == "request_too_large"


async def test_too_large_while_reading(gateway: Gateway) -> None:
    """Rule 16: without a length, a 413 as soon as it is known; a client that still sends can read it."""
    piece = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    async with RawClient(gateway.url) as client:
        await client.send(CHUNKED)
        for _ in range(3 * MAX_BODY_BYTES // 65536):
            await client.send(piece)
        await client.send(b"0\r\n\r\n")
        assert refused(await client.answer(), 413)["code"] == "request_too_large"
        assert await client.closed() == b""


async def test_a_client_library_reads_its_413(gateway: Gateway) -> None:
    """Rule 16: the same with a client that sends all before it reads."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(400):
            yield b"a" * 65536

    headers = {"content-type": "application/json"}
    answer = await gateway.client.post("/v1/chat/completions", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


async def test_a_chunked_body_is_as_good(gateway: Gateway) -> None:
    """A body without a length, in pieces, with a trailer, is read."""
    raw = json.dumps(asking()).encode()
    pieces = b"".join(b"1\r\n" + raw[at : at + 1] + b"\r\n" for at in range(len(raw)))
    answer = await gateway.raw(CHUNKED, pieces[:60], pieces[60:], b"0\r\nX-Trailer: 1\r\n\r\n")
    assert answer.status == 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", ""])
async def test_another_content_type_is_a_415(gateway: Gateway, kind: str) -> None:
    """Rule 19: what is not JSON by its own word is not read."""
    raw = json.dumps(asking()).encode()
    request = chat_request(raw).replace(b"application/json", kind.encode())
    assert refused(await gateway.raw(request), 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"]
)
async def test_json_by_another_name_is_read(gateway: Gateway, kind: str) -> None:
    """Parameters, case and suffix do not matter."""
    request = chat_request(asking()).replace(b"application/json", kind.encode())
    assert (await gateway.raw(request)).status == 200


async def test_a_compressed_body_is_a_415(gateway: Gateway) -> None:
    """Rule 19: nothing is unpacked, so there are no bombs."""
    error = refused(await gateway.raw(chat_request(b"\x1f\x8b", "Content-Encoding: gzip")), 415)
    assert "compressed" in error["message"]


async def test_a_body_that_stops_is_a_408(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 19: a client that goes silent in the middle of its body is told so and let go."""
    monkeypatch.setattr(body_module, "BODY_STALL_S", 0.1)
    async with RawClient(gateway.url) as client:
        await client.send(chat_request(asking())[:-5])
        assert refused(await client.answer(), 408)["code"] == "body_timeout"
        client.writer.write_eof()
        assert await client.closed() == b""


async def test_a_body_that_drips_is_a_408(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 19: a byte now and then keeps nobody busy for ever."""
    monkeypatch.setattr(body_module, "BODY_STALL_S", 0.3)
    async with RawClient(gateway.url) as client:
        await client.send(chat_request(asking())[:-60])

        async def drip() -> None:
            while True:
                await client.send(b" ")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        try:
            assert refused(await client.answer(), 408)["code"] == "body_timeout"
        finally:
            dripping.cancel()


async def test_hanging_up_in_the_body_leaves_nothing(gateway: Gateway) -> None:
    """Rule 25: a client that leaves before it has said all is forgotten."""
    async with RawClient(gateway.url) as client:
        await client.send(chat_request(asking())[:-5])
        await until(lambda: gateway.services.meters.in_flight == 1)
    await until(lambda: gateway.services.meters.in_flight == 0)
    assert gateway.one.asks == []
