"""Three real nats-servers that keep JetStream together."""

from __future__ import annotations

from typing import Final, Self

from fakes.nats_server import NatsServer
from fakes.processes import free_port

SIZE: Final = 3


class NatsCluster:
    """Starts three servers with JetStream in a cluster; use as an async context manager."""

    def __init__(self) -> None:
        ports = [free_port() for _ in range(SIZE)]
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
        self.servers = {
            f"n{number}": NatsServer(
                f"server_name: n{number}\n"
                f"cluster {{ name: test, host: 127.0.0.1, port: {port}, routes: [{routes}] }}",
                jetstream=True,
            )
            for number, port in enumerate(ports)
        }

    @property
    def url(self) -> str:
        """All three, for ``servers`` of the bus's options."""
        return ",".join(server.url for server in self.servers.values())

    async def __aenter__(self) -> Self:
        """Starts them."""
        for server in self.servers.values():
            await server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends them."""
        for server in self.servers.values():
            await server.close()
