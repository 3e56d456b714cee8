"""The bus towards a server that asks who it is and limits what it may do, and towards service discovery."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from fakes.nats_server import NatsServer
from fakes.polling import until
from tierfall.bus import Bus, BusOptions, Message
from tierfall.errors import BusDown

if TYPE_CHECKING:
    from fakes.buses import Buses

WAIT_S = 10.0
USERS = """
authorization { users = [
  { user: "ingress", password: "p@ss/w:rd", permissions: {
      publish: ["work.>", "$SRV.>"], subscribe: ["_INBOX_ing.>"] } }
  { user: "worker", password: "other", permissions: {
      publish: ["_INBOX_ing.>"], subscribe: ["work.> workers"] } }
] }
"""


async def connected(servers: str, **options: Any) -> Bus:
    """A bus that gives up soon."""
    return await Bus.connect(BusOptions(servers=servers, name="t", connect_timeout_s=1.0, **options))


async def test_token() -> None:
    """A token is sent; without it, or with a wrong one, connect fails and says so."""
    async with NatsServer('authorization { token: "s3cret" }') as server:
        bus = await connected(server.url, token="s3cret")
        await bus.flush()
        await bus.close()
        for options in ({}, {"token": "wr0ng"}):
            with pytest.raises(BusDown, match="Authorization Violation") as caught:
                await connected(server.url, **options)
            assert "wr0ng" not in caught.value.message


async def test_user_in_the_url_and_permissions() -> None:
    """User and password of the URL are used (percent-decoded), and violations are only counted."""
    async with NatsServer(USERS) as server:
        ingress = await connected(
            f"nats://ingress:p%40ss%2Fw%3Ard@127.0.0.1:{server.port}", inbox_prefix="_INBOX_ing"
        )
        worker = await connected(f"nats://worker:other@127.0.0.1:{server.port}")
        await worker.subscribe("work.a", lambda m: worker.publish(m.reply, b"done"), queue="workers")
        assert (await ingress.request("work.a", b"", timeout_s=WAIT_S)).data == b"done"

        stolen: list[Message] = []
        await worker.subscribe("_INBOX_ing.>", stolen.append)
        worker.publish("work.a", b"not mine to send")
        await until(lambda: worker.counters.permission_violations == 2)
        assert (await ingress.request("work.a", b"", timeout_s=WAIT_S)).data == b"done"
        assert stolen == []
        assert worker.counters.reconnects == 0
        await worker.close()
        await ingress.close()


async def test_missing_creds_file_is_a_clear_error() -> None:
    """A creds file that is not there is named in the error."""
    async with NatsServer('authorization { token: "s3cret" }') as server:
        with pytest.raises(BusDown, match=r"nkeys|nowhere\.creds"):
            await connected(server.url, creds="nowhere.creds")


async def test_service_discovery(bus_factory: Buses) -> None:
    """PING, INFO and STATS of ADR-32 are answered on all three scopes, readable by nats-py's own types."""
    client, worker = await bus_factory(), await bus_factory()
    await worker.add_service(
        "tierfall-vllm",
        "1.2.3",
        "a worker",
        {"tier": "vllm"},
        lambda: {"num_requests": 7, "in_flight": 2},
        subject="work",
        queue="workers",
    )
    answer = await client.request("$SRV.PING", b"", timeout_s=WAIT_S)
    ping = ServicePing.from_dict(json.loads(answer.data))
    assert (ping.name, ping.version, ping.metadata) == ("tierfall-vllm", "1.2.3", {"tier": "vllm"})
    for scope in ("", ".tierfall-vllm", f".tierfall-vllm.{ping.id}"):
        raw = json.loads((await client.request(f"$SRV.INFO{scope}", b"", timeout_s=WAIT_S)).data)
        info = ServiceInfo.from_dict(raw)
        assert raw["type"] == "io.nats.micro.v1.info_response"
        assert (info.id, info.description, info.endpoints[0].subject) == (ping.id, "a worker", "work")
        raw = json.loads((await client.request(f"$SRV.STATS{scope}", b"", timeout_s=WAIT_S)).data)
        stats = ServiceStats.from_dict(raw)
        assert raw["type"] == "io.nats.micro.v1.stats_response"
        assert (stats.endpoints[0].num_requests, stats.endpoints[0].data) == (7, {"in_flight": 2})
    assert (await client.request("$SRV.PING.other", b"", timeout_s=WAIT_S)).no_responders


@pytest.mark.parametrize(("name", "version"), [("a b", "1.0.0"), ("", "1.0.0"), ("a", "1"), ("a", "")])
async def test_service_names_and_versions_are_checked(bus_factory: Buses, name: str, version: str) -> None:
    """What ADR-32 does not allow is refused before anything is subscribed."""
    bus = await bus_factory()
    with pytest.raises(ValueError, match=r"service name|semantic version"):
        await bus.add_service(name, version, "", {}, dict)
    assert not bus._routes


async def test_raising_stats_does_not_silence_the_service(bus_factory: Buses) -> None:
    """A ``stats`` that raises loses its own answer, not the service."""
    bus = await bus_factory()

    def broken() -> dict[str, int]:
        raise RuntimeError("no stats")

    await bus.add_service("a", "1.0.0", "", {}, broken)
    with pytest.raises(TimeoutError):
        await bus.request("$SRV.STATS.a", b"", timeout_s=0.1)
    assert not (await bus.request("$SRV.PING.a", b"", timeout_s=WAIT_S)).no_responders
    assert bus.counters.callback_errors == 1
