"""Messages with NATS headers, which JetStream speaks in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from nats.aio.client import Client

from fakes.polling import until
from tierfall.bus import headers
from tierfall.errors import PayloadTooLarge

if TYPE_CHECKING:
    from fakes.buses import Buses
    from fakes.nats_server import NatsServer
    from tierfall.bus import Message

WAIT_S = 10.0


async def test_headers_travel_both_ways(bus_factory: Buses, nats_server: NatsServer) -> None:
    """Names, values and payload arrive as sent, from us to nats-py and back; no headers stay none."""
    bus = await bus_factory()
    client = Client()
    await client.connect(nats_server.url)
    try:
        theirs = await client.subscribe("from.us")
        ours: list[Message] = []
        await bus.subscribe("from.them", ours.append)
        await client.flush()
        bus.publish("from.us", b"a\r\nb", reply="back", headers={"Nats-Msg-Id": "1", "X": "ä: b"})
        got = await theirs.next_msg(WAIT_S)
        assert (got.data, got.reply, got.headers) == (b"a\r\nb", "back", {"Nats-Msg-Id": "1", "X": "ä: b"})
        await client.publish("from.them", b"data", headers={"One": "1", "Two": "zwei: 2"})
        await client.publish("from.them", b"bare")
        await until(lambda: len(ours) == 2)
        assert ours[0].data == b"data"
        assert [headers.find(ours[0].headers, name) for name in ("One", "Two", "Three")] == [
            "1",
            "zwei: 2",
            "",
        ]
        assert (ours[1].headers, ours[0].no_responders, headers.status(ours[0].headers)) == (b"", False, 0)
        nobody = await bus.request("nobody", b"", timeout_s=WAIT_S, headers={"A": "b"})
        assert nobody.no_responders
        assert headers.status(nobody.headers) == 503
    finally:
        await client.close()


async def test_headers_count_towards_the_size(bus_factory: Buses) -> None:
    """A message that is too large with its headers is refused locally."""
    bus = await bus_factory()
    payload = bytes(bus.max_payload)
    bus.publish("a", payload)
    with pytest.raises(PayloadTooLarge):
        bus.publish("a", payload, headers={"A": "b"})
    await bus.flush()
    assert bus.counters.reconnects == 0


async def test_what_waits_for_a_reconnect_keeps_its_headers(bus_factory: Buses) -> None:
    """A message that could not be sent any more is sent over the next connection, with its headers."""
    bus, other = await bus_factory(), await bus_factory()
    got: list[Message] = []
    await other.subscribe("a", got.append)
    wire = bus._wire
    assert wire is not None
    bus.publish("a", b"1", headers={"A": "b"})
    wire.lose("on purpose")
    await until(lambda: got)
    assert (got[0].data, headers.find(got[0].headers, "A")) == (b"1", "b")


@pytest.mark.parametrize(
    "name_and_value", [("", "a"), ("a:b", "c"), ("a b", "c"), ("a", "b\r\nc"), ("a\r\n", "b")]
)
async def test_headers_that_would_break_the_block_are_refused(
    bus_factory: Buses, name_and_value: tuple[str, str]
) -> None:
    """Nothing in a name or a value can end the line."""
    bus = await bus_factory()
    with pytest.raises(ValueError, match="not a NATS header"):
        bus.publish("a", b"", headers=dict([name_and_value]))
