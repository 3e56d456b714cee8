"""The gateway behind a nats-server with a user per service, as ``tierfall nats-config`` writes it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Self

from fakes.nats_server import NatsServer
from fakes.scripted import ScriptedBackend
from fakes.stack import Stack
from tierfall.bus import Bus, BusOptions
from tierfall.cli import nats_config
from tierfall.config import parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TIERS = """
tiers:
  one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1', max_in_flight: 4}
  two: {worker: ollama, base_url: 'http://127.0.0.1:1'}
  paid: {worker: cloud, provider: groq, base_url: 'http://127.0.0.1:1/v1', api_key: secret}
models:
  first: {tier: one, backend_model: engine/first, fallbacks: [second]}
  second: {tier: two, backend_model: qwen2.5:3b}
  third: {tier: paid, backend_model: llama}
"""


def write_users(folder: Path, *, ingresses: int = 1, machines: Sequence[str] = ()) -> str:
    """Runs the command for these tiers; returns what nats-server has to be told."""
    nats_config.run(folder, parse(TIERS, {}, "tiers.yaml"), ingresses, io.StringIO(), machines=machines)
    return (folder / "nats" / "users.conf").read_text()


class Guarded(Stack):
    """Scripted tiers of each kind, ``one``, ``two`` and ``paid``; each process connects with its own seed.

    Args:
        folder: Where the seeds are written.
        machines: Users of machines that there are too.
        here: The machine whose users the workers have; the users of their kind when it is empty.
        server: More of the config.
    """

    def __init__(
        self, folder: Path, machines: Sequence[str] = (), here: str = "", *, server: str = ""
    ) -> None:
        self._folder = folder
        self._at = f"@{here}" if here else ""
        self.one, self.two, self.paid = ScriptedBackend(), ScriptedBackend(), ScriptedBackend()
        self._others: list[Bus] = []
        nats = NatsServer(write_users(folder, machines=machines), jetstream=True)
        backends = {"one": self.one, "two": self.two, "paid": self.paid}
        super().__init__(TIERS + server, backends, nats=nats)

    async def __aenter__(self) -> Self:
        """Starts NATS too."""
        await self.nats.start()
        return await super().__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        """Stops it too."""
        for bus in self._others:
            await bus.close()
        await super().__aexit__(*exc_info)
        await self.nats.close()

    async def user(self, name: str, **options: Any) -> Bus:
        """One more connection of this user."""
        bus = await Bus.connect(
            BusOptions(
                servers=self.nats.url,
                name=name,
                nkey=str(self._folder / name / nats_config.SEED_NAME),
                **options,
            )
        )
        self._others.append(bus)
        return bus

    @property
    def violations(self) -> int:
        """What the server has refused to the gateway's own processes."""
        buses = [self._bus, *self._buses.values()]
        return sum(bus.counters.permission_violations for bus in buses)

    async def _connect(self, name: str) -> Bus:
        tier = name.partition("-")[0]
        user = name if name == "ingress" else f"worker-{self.config.tiers[tier].kind}{self._at}"
        path = self._folder / user / nats_config.SEED_NAME
        return await Bus.connect(BusOptions(servers=self.nats.url, name=name, nkey=str(path)))
