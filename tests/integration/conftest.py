"""Fixtures that the integration tests share: a real nats-server and buses that are closed at the end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop

from fakes.buses import Buses
from fakes.nats_server import NatsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    """What meets broken sockets is tested on both loops: services run on uvloop, and the two differ there."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.path.name.startswith(("test_bus", "test_http_connection", "test_upstream", "test_worker")):
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    """A nats-server with its defaults, up and accepting."""
    async with NatsServer() as server:
        yield server


@pytest.fixture
async def bus_factory(nats_server: NatsServer) -> AsyncIterator[Buses]:
    """Makes connected buses when called and awaited."""
    buses = Buses(nats_server.url)
    yield buses
    await buses.close()
