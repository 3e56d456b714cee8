"""A web page and the gateway: what a browser can be made to send, on raw bytes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from fakes.gateway import KEYS, SERVER, Gateway, asking
from fakes.raw_client import RawAnswer, chat_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TYPES = ["", "Content-Type:", "Content-Type: ;charset=utf-8", "Content-Type: text/plain"]
FOREIGN = [
    "evil.example",
    "evil.example:4000",
    "10.0.0.1",
    "0.0.0.0:4000",
    "[::2]",
    "localhost.evil.example",
    "",
    ":80",
]
FOREIGN += ["notlocalhost", "127.0.0.1.evil.example", "LOCALHOST.evil", "[::ffff:10.0.0.1]", "2130706433"]
LOOPBACK = [
    "localhost",
    "LocalHost:4000",
    "localhost.",
    "a.localhost:1",
    "127.0.0.1",
    "127.8.9.1:80",
    "[::1]:4000",
]
FOREIGN_PAGES = [
    ["Origin: https://evil.example"],
    ["Origin: null"],
    ["Origin: http://localhost:3000"],
    ["Origin: http://localhost.evil.example"],
    ["Origin: app://localhost"],
    ["Origin: https://evil.example", "Sec-Fetch-Site: same-origin"],
    ["Sec-Fetch-Site: cross-site"],
]
OWN_PAGES = [
    "Origin: http://localhost",
    "Origin: HTTP://LOCALHOST",
    "Sec-Fetch-Site: same-origin",
    "Sec-Fetch-Site: same-site",
    "Sec-Fetch-Site: none",
]
PATHS = [
    "/v1/models",
    "/v1/quotas",
    "/health",
    "/health/liveliness",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/nope",
]
KEY = "Authorization: Bearer sk-all-1234567890"


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A gateway that asks for no key."""
    async with Gateway() as running:
        yield running


def request(method: str, path: str, *headers: str, version: str = "1.1") -> bytes:
    """The bytes of a request without a body, whose ``Host`` is up to the caller."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", *headers]).encode() + b"\r\n\r\n"


HOSTLESS = [
    request("GET", "/v1/models"),
    request("GET", "/v1/models", "Host: localhost", "Host: localhost"),
    request("GET", "/v1/models", "Host: localhost", "Host: evil.example", version="1.0"),
    request("GET", "/v1/models", "Host: user@localhost"),
    request("GET", "/v1/models", "Host: localhost, evil.example"),
    request("GET", "/v1/models", "Host: localhost/x"),
    request("GET", "/v1/models", "Host: ::1"),
    request("GET", "/v1/models", f"Host: {'a' * 1000}"),
    request("GET", "/v1/models", "Host: localhost:80x"),
    request("GET", "http://evil.example/v1/models", "Host: localhost"),
    request("GET", "http://localhost:1/v1/models", "Host: localhost:2"),
    request("GET", "http://x@localhost/v1/models", "Host: localhost"),
    request("GET", "/v1/models", "Upgrade: h2c", "Connection: upgrade"),
    request("GET", "/v1/models", "Host: évil.example"),
]


def refused(answer: RawAnswer, code: str) -> bool:
    """Whether that is a 403 in the contract's form that says what to change."""
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "server.api_keys" in error["message"]
    assert answer.header("x-request-id")
    return answer.status == 403 and error["code"] == code


async def test_a_body_needs_a_type_that_a_browser_would_ask_for(gateway: Gateway) -> None:
    """Rule 19: a Blob without a type, a form or a text need no preflight, so none is let through."""
    body = chat_request(asking()).partition(b"\r\n\r\n")[2]
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/chat/completions")
    for path, kind in itertools.product(paths, TYPES):
        lines = ["Host: localhost", f"Content-Length: {len(body)}", *([kind] if kind else [])]
        answer = await gateway.raw(request("POST", path, *lines) + body)
        assert answer.status == 415
        assert "application/json" in answer.json["error"]["message"]
    assert not gateway.one.asks


async def test_a_foreign_name_is_refused(gateway: Gateway) -> None:
    """A page whose name was made to mean 127.0.0.1 sends that name: on every route, with every method."""
    for host, path, method in itertools.product(FOREIGN, PATHS, ("GET", "OPTIONS")):
        answer = await gateway.raw(request(method, path, f"Host: {host}"))
        assert refused(answer, "host_not_allowed"), (host, path)
    for host in FOREIGN:
        raw = chat_request(asking()).replace(b"Host: localhost", b"Host: " + host.encode())
        assert refused(await gateway.raw(raw), "host_not_allowed"), host
    assert not gateway.one.asks


async def test_loopback_names_are_answered(gateway: Gateway) -> None:
    """Whatever the port: it may be a forwarded one."""
    for host in LOOPBACK:
        for target in ("/v1/models", f"http://{host}/v1/models"):
            assert (await gateway.raw(request("GET", target, f"Host: {host}"))).status == 200, host


async def test_other_names_can_be_allowed() -> None:
    """One name, or all names below one; the config may change while it runs."""
    async with Gateway(
        SERVER.replace("}", ", allowed_hosts: [gw.lan, '*.example.org', '[fd00::1]']}")
    ) as gateway:
        for host in ("gw.lan", "GW.lan:8080", "a.b.example.org", "[fd00::1]:1"):
            assert (await gateway.raw(request("GET", "/v1/models", f"Host: {host}"))).status == 200
        for host in ("gw.lan.evil.example", "example.org", "evilexample.org"):
            assert refused(
                await gateway.raw(request("GET", "/v1/models", f"Host: {host}")), "host_not_allowed"
            )
        gateway.services.apply(gateway.parse(gateway.text.replace("gw.lan, ", "")))
        assert refused(await gateway.raw(request("GET", "/v1/models", "Host: gw.lan")), "host_not_allowed")


async def test_a_foreign_page_is_refused(gateway: Gateway) -> None:
    """On every route and method, preflights too."""
    asked = ["Host: localhost", "Access-Control-Request-Method: POST"]
    for headers, path in itertools.product(FOREIGN_PAGES, PATHS):
        for method in ("GET", "OPTIONS"):
            answer = await gateway.raw(request(method, path, *asked, *headers))
            assert refused(answer, "origin_not_allowed"), (headers, path)
        head = await gateway.client.head(path, headers=dict(header.split(": ") for header in headers))
        assert head.status_code == 403
    for headers in FOREIGN_PAGES:
        assert refused(await gateway.raw(chat_request(asking(), *headers)), "origin_not_allowed")
    assert not gateway.one.asks


async def test_the_own_pages_are_answered(gateway: Gateway) -> None:
    """``/docs`` asks the server that it came from; an address that was typed in comes from no page."""
    for header in OWN_PAGES:
        assert (await gateway.raw(chat_request(asking(), header))).status == 200, header


async def test_configured_origins_are_answered() -> None:
    """As Open WebUI's page does it, of another site; a desktop program has a scheme of its own."""
    origins = ["https://chat.example.org", "app://obsidian.md"]
    async with Gateway(SERVER.replace("}", f", cors_origins: {origins}}}")) as gateway:
        for origin in origins:
            for headers in ([f"Origin: {origin}"], [f"Origin: {origin}", "Sec-Fetch-Site: cross-site"]):
                answer = await gateway.raw(chat_request(asking(), *headers))
                assert answer.status == 200
                assert answer.header("access-control-allow-origin") == origin
        answer = await gateway.raw(chat_request(asking(), "Origin: https://evil.example"))
        assert refused(answer, "origin_not_allowed")
    async with Gateway(SERVER.replace("}", ", cors_origins: ['*']}")) as gateway:
        for header in ("Origin: https://any.example", "Sec-Fetch-Site: cross-site"):
            assert (await gateway.raw(chat_request(asking(), header))).status == 200
        foreign = request("GET", "/v1/models", "Host: evil.example", "Origin: http://evil.example")
        assert refused(await gateway.raw(foreign), "host_not_allowed")


async def test_with_keys_the_key_decides() -> None:
    """A page has no key, and clients behind proxies and in other origins are to work."""
    async with Gateway(KEYS) as gateway:
        foreign = ["Host: gw.example.org", "Origin: https://a.example", "Sec-Fetch-Site: cross-site"]
        assert (await gateway.raw(request("GET", "/v1/models", *foreign))).status == 401
        assert (await gateway.raw(request("GET", "/v1/models", *foreign, KEY))).status == 200
        assert (await gateway.raw(request("GET", "/health/readiness", *foreign))).status == 200
        gateway.services.apply(gateway.parse(gateway.text.replace(KEYS, SERVER)))  # the keys are taken out
        assert refused(await gateway.raw(request("GET", "/v1/models", *foreign)), "host_not_allowed")


@pytest.mark.parametrize("server", [SERVER, KEYS], ids=["keyless", "keys"])
async def test_a_request_names_one_host(server: str) -> None:
    """RFC 9112, 3.2: anything else is a 400 and the end of the connection, with keys too."""
    async with Gateway(server) as gateway:
        for raw in HOSTLESS:
            answer = await gateway.raw(raw)
            assert answer.status == 400, raw
            assert "ost" in answer.json["error"]["message"]
            assert answer.header("connection") == "close"
        assert (await gateway.raw(request("GET", "/health/liveliness", version="1.0"))).status == 200
