"""Servers of a cluster, as ``k8s/base`` configures them: a server without the password cannot join."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import pytest

from fakes.manifests import K8S, containers, workloads
from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.processes import free_port
from tierfall.bus import Bus, BusOptions
from tierfall.cli import nats_config

if TYPE_CHECKING:
    from pathlib import Path

    from tierfall.bus import Message

REFUSED: Final = "Authentication Failure"


def cluster_section() -> str:
    """The ``cluster`` block of the base's config, without TLS."""
    text = (K8S / "base" / "nats.conf").read_text()
    start = text.index("cluster {")
    return text[start : text.index('include "tls.conf"', start)].replace('include "cluster-tls.conf"', "")


class Peers:
    """Two servers of one cluster, with the variables that the pods get."""

    def __init__(self, folder: Path) -> None:
        nats_config.run(folder, None, 1, io.StringIO())
        self.password = (folder / "nats" / "route-password").read_text()
        self.ports = [free_port(), free_port()]

    def conf(self, number: int, monkeypatch: pytest.MonkeyPatch) -> str:
        """What the server of this number is told; variables stand in this process's environment."""
        (nats,) = containers(workloads()["nats"])
        values: dict[str, Any] = {"NATS_ROUTE_PASSWORD": self.password}
        for entry in nats["env"]:
            if "value" in entry:
                values[entry["name"]] = entry["value"].replace("$(NATS_ROUTE_PASSWORD)", self.password)
        for peer, port in enumerate([*self.ports, self.ports[0]]):
            name = f"NATS_ROUTE_{peer}"
            values[name] = values[name].replace(f"nats-{peer}.nats-peers:6222", f"127.0.0.1:{port}")
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        section = cluster_section().replace("port: 6222", f"host: 127.0.0.1, port: {self.ports[number]}")
        return f"server_name: nats-{number}\n{section}"


@pytest.mark.parametrize("credentials", ["", "tierfall:@", "tierfall:guessed@"])
async def test_a_rogue_server_cannot_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credentials: str
) -> None:
    """The two servers carry messages for each other; one without the password gets none and gives none."""
    peers = Peers(tmp_path)
    first, second = (NatsServer(peers.conf(number, monkeypatch)) for number in (0, 1))
    rogue = NatsServer(
        f"server_name: rogue\ncluster {{ name: tierfall, host: 127.0.0.1, port: {free_port()}, "
        f'routes: [ "nats-route://{credentials}127.0.0.1:{peers.ports[0]}" ] }}'
    )
    async with first, second, rogue:
        buses = [await Bus.connect(BusOptions(servers=one.url, name="t")) for one in (first, second, rogue)]
        here, there, outside = buses
        heard: list[Message] = []
        stolen: list[Message] = []
        await there.subscribe("prompts", heard.append)
        await outside.subscribe("prompts", stolen.append)
        await until(lambda: REFUSED in first.log)

        def ask() -> bool:
            here.publish("prompts", b"secret")
            return bool(heard)

        await until(ask)
        outside.publish("prompts", b"forged")
        await outside.flush()
        for bus in (here, there):
            await bus.flush()
        assert {message.data for message in heard} == {b"secret"}
        assert [message.data for message in stolen] == [b"forged"]
        for bus in buses:
            await bus.close()
