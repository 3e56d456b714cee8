"""The ingress process: config, bus, HTTP server, and an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn
import uvloop
from uvicorn.server import ServerState

from tierfall import files, logs, memory, state
from tierfall.bus import Bus, BusOptions
from tierfall.config import EMBEDDED, Watcher, load
from tierfall.errors import BusDown, ConfigError
from tierfall.telemetry import tracer_from
from tierfall_ingress.app import build_app
from tierfall_ingress.connection import Connection
from tierfall_ingress.meters import Meters
from tierfall_ingress.operators import ADMIN
from tierfall_ingress.room import Room
from tierfall_ingress.services import Services
from tierfall_ingress.store import StoreMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tierfall.config import Config

BUS_WAIT_S: Final = 30.0
"""How long the ingress waits for NATS at its start before it gives up and says so."""
DRAIN_S: Final = 60
"""How long an ingress that was told to stop lets its requests finish."""
CUT_S: Final = 1.0
"""How long the errors that end the requests may take to reach their clients."""
FLUSH_S: Final = 3.0
"""How long the last spans may take to reach their collector."""
ACCEPT_TURNS: Final = 3
"""Turns of the loop in which all that has been accepted reaches its protocol."""
KEEP_ALIVE_S: Final = 75
"""Longer than common load balancers keep an idle connection, so that they close it and not we."""

_log: Final = logging.getLogger("tierfall.ingress")


def main() -> None:
    """``tierfall-ingress --config FILE``."""
    parser = argparse.ArgumentParser(prog="tierfall-ingress", description="Tierfall's HTTP side.")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the config file of all services"
    )
    path = parser.parse_args().config
    logs.configure("ingress")
    files.raise_limit()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        uvloop.run(serve(path, load(path, os.environ)))
    except (ConfigError, BusDown) as error:
        sys.exit(f"tierfall-ingress: {error.message}")


async def serve(path: Path, config: Config) -> None:
    """Serves until SIGTERM or Ctrl-C, then lets the requests in flight finish."""
    bus = await Bus.connect(BusOptions.of(config.nats, "tierfall-ingress", BUS_WAIT_S))
    tracer = tracer_from(os.environ, "tierfall-ingress", f"{socket.gethostname()}:{config.server.port}")
    services = Services(bus, config, Meters(), tracer, _store_memory(path, config))
    await services.start()
    services.expect_beats()
    server = Server(services)
    memory.settle()
    loop = asyncio.get_running_loop()
    watcher = Watcher(
        path,
        on_change=lambda changed: _apply(services, changed),
        on_refused=_refused,
        environ=os.environ,
        current=config,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    loop.add_signal_handler(signal.SIGHUP, watcher.reload_now)
    try:
        async with watcher:
            await server.serve()
    finally:
        await services.close()
        await bus.close()
        await asyncio.to_thread(tracer.close, FLUSH_S)


class State(ServerState):
    """What all connections share."""

    def __init__(self, room: Room) -> None:
        super().__init__()
        self.room = room


class Server(uvicorn.Server):
    """uvicorn, stopped by us: first not ready, then no new connections, then the requests in flight end."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._cut = False
        address, room = services.config.server, Room(files.limit())
        super().__init__(
            uvicorn.Config(
                build_app(services),
                host=address.host,
                port=address.port,
                interface="asgi3",
                http=Connection,
                ws="none",
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=room.backlog,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=DRAIN_S,
            )
        )
        self.server_state = State(room)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; on the port of ``server.admin`` too, if there is one.

        Raises:
            ConfigError: That port cannot be had.
        """
        await super().startup(sockets)
        admin = self._services.config.server.admin
        if admin is None:
            return
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: Connection(self.config, self.server_state, {ADMIN: True}, loop),
                admin.host,
                admin.port,
                backlog=self.config.backlog,
            )
        except OSError as error:
            said = error.strerror or str(error)
            raise ConfigError(
                f"server.admin: cannot listen on {admin.host} port {admin.port}: {said}"
            ) from None
        self.servers.append(server)
        for listening in server.sockets:
            _log.info("operators' pages are on port %d of %s", listening.getsockname()[1], admin.host)

    def stop(self) -> None:
        """Begins the orderly end; a second call ends what is under way with an error, a third one at once."""
        self.force_exit = self._cut
        self._cut = self.should_exit
        self.should_exit = True
        self._services.draining = True
        in_flight = self._services.meters.in_flight
        if not self._cut:
            _log.info("stopping: %d requests in flight", in_flight)
            return
        _log.warning("stopping at once: %d requests in flight are ended with an error", in_flight)
        for task in self.server_state.tasks:
            task.cancel()
        asyncio.get_running_loop().call_later(CUT_S, self._force)

    def _force(self) -> None:
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # its client does not read: nothing more can be said to it

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes in who has connected already, then nobody, then waits for the connections' ends.

        Closing a listening socket resets the connections that the kernel has made and nobody has taken in.
        One that is taken in as the socket closes would not hear of the end, and keep the process waiting.
        """
        await _turns(ACCEPT_TURNS)
        for server in self.servers:
            server.close()
        await _turns(ACCEPT_TURNS)
        await super().shutdown(sockets)
        if self.server_state.tasks:  # cancelled: each still says why to its client
            await asyncio.wait(self.server_state.tasks, timeout=CUT_S)
            self._force()
            await _turns(ACCEPT_TURNS)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are :func:`serve`'s."""
        yield


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def _store_memory(path: Path, config: Config) -> StoreMemory:
    """Outlasts the process where `tierfall up` has made a place for it."""
    if config.nats.url != EMBEDDED:
        return StoreMemory()
    folder = state.folder(path, os.environ)
    return StoreMemory(folder / state.STORES_NAME if folder.is_dir() else None)


def _apply(services: Services, config: Config) -> None:
    before = services.config
    services.apply(config)
    _log.info("config changed: applied")
    if config.nats != before.nats:
        _log.warning("nats has changed in the config: that takes effect at the next start")
    lasting = ("host", "port", "cors_origins", "admin")
    if any(getattr(before.server, name) != getattr(config.server, name) for name in lasting):
        _log.warning(
            "server.host, server.port, server.cors_origins and server.admin take effect at the next start"
        )


def _refused(error: ConfigError) -> None:
    _log.error("the changed config is refused, the old one stays: %s", error.message)
