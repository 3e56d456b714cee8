"""Heads that cost more than they should, or carry on what nobody asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from fakes.gateway import Gateway, asking
from fakes.polling import until
from fakes.raw_client import RawClient, chat_request
from tierfall_ingress import connection as connection_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ACCEPTS = [
    "text/plain;version=x",
    "text/plain; version=1.x.0",
    "application/openmetrics-text;version=x",
    "application/openmetrics-text;version=1.0.0\u00e9;charset=x",
    "application/openmetrics-text;version=" + "9" * 5000,
    "text/plain;version",
    "text/plain;=;;=;version==",
    ";;;,,,",
    "*/*",
]


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway."""
    async with Gateway() as running:
        yield running


async def test_metrics_whatever_a_scraper_accepts(gateway: Gateway) -> None:
    """An odd version is no version; none of its words come back."""
    for accept in ACCEPTS:
        answer = await gateway.client.get("/metrics", headers={b"accept": accept.encode("latin-1")})
        assert answer.status_code == 200, accept
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for accept in (
        "application/openmetrics-text",
        "text/html, Application/OpenMetrics-Text; version=1.0.0; q=0.5",
    ):
        answer = await gateway.client.get("/metrics", headers={"accept": accept})
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert answer.text.endswith("# EOF\n")


async def test_a_traceparent_carries_nothing_on(gateway: Gateway) -> None:
    """Of a version that is not known, what stands behind the known fields stays here."""
    for given in (f"00-{TRACE}", f"cc-{TRACE}-{'x' * 60_000}", f"01-{TRACE}-\u00ff"):
        raw = chat_request(asking()).replace(
            b"\r\n\r\n", f"\r\ntraceparent: {given}\r\n\r\n".encode("latin-1"), 1
        )
        assert (await gateway.raw(raw)).status == 200
    assert [ask.traceparent for ask in gateway.one.asks] == [f"00-{TRACE}"] * 3


async def test_many_wishes_for_another_protocol_are_read_one_by_one(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of them in one packet are answered like others, however deep the stack may be."""
    count = 2000
    one = b"GET /health/liveliness HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"
    depth: list[int] = []
    ignore = connection_module.Connection._ignore_upgrade

    def counting(self: connection_module.Connection) -> None:
        frame, found = sys._getframe(), 0
        while frame.f_back is not None:
            frame, found = frame.f_back, found + 1
        depth.append(found)
        ignore(self)

    monkeypatch.setattr(connection_module.Connection, "_ignore_upgrade", counting)
    async with RawClient(gateway.url) as client:
        await client.send(one * count)
        for _ in range(count):
            assert (await client.answer()).status == 200
    assert len(depth) == count
    assert max(depth) - min(depth) < 20
    await until(lambda: not gateway.server.server_state.connections)
