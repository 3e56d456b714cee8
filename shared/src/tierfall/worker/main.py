"""The entry point that every worker service shares: read the config once, run, drain on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from tierfall import files, logs, memory
from tierfall.bus import Bus, BusOptions
from tierfall.config import Watcher, load
from tierfall.errors import BusDown, ConfigError
from tierfall.telemetry import tracer_from
from tierfall.worker.process import WorkerProcess, worker_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from tierfall.config import Config
    from tierfall.worker.process import Build

BUS_WAIT_S: Final = 30.0
"""How long a worker waits for NATS at its start before it gives up and says so."""
FLUSH_S: Final = 3.0
"""How long the last spans may take to reach their collector."""

_log: Final = logging.getLogger("tierfall.worker")


def run_worker(kind: str, build: Build) -> None:
    """Runs a worker process until SIGTERM or Ctrl-C; what a worker service's ``main`` calls.

    Args:
        kind: The kind of tier that it serves, as in the config's ``worker:``.
        build: Makes the backend of one tier from the tier's name, its config, the whole config, and the bus.
    """
    arguments = _parse(kind)
    logs.configure(f"worker-{kind}")
    files.raise_limit()
    try:
        config = load(arguments.config, os.environ, for_worker=True)
        only = _only(kind, arguments.tier, config)
        uvloop.run(_serve(kind, build, arguments, config, only))
    except (ConfigError, BusDown) as error:
        sys.exit(f"tierfall-worker-{kind}: {error.message}")


def _parse(kind: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"tierfall-worker-{kind}", description=f"Serves the {kind} tiers of a Tierfall config."
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the config file of all services"
    )
    parser.add_argument(
        "--tier",
        action="append",
        default=[],
        metavar="NAME",
        help=f"serve only this {kind} tier; may be repeated",
    )
    parser.add_argument(
        "--http", metavar="HOST:PORT", help="serve /metrics and /health/* there; nowhere when left out"
    )
    return parser.parse_args()


def _only(kind: str, names: list[str], config: Config) -> frozenset[str]:
    ours = sorted(name for name, tier in config.tiers.items() if tier.kind == kind)
    for name in names:
        if name not in ours:
            raise ConfigError(
                f"--tier {name}: the config has no {kind} tier of that name; it has: {', '.join(ours)}"
            )
    if not ours:
        _log.warning("the config has no %s tier: nothing to serve until it has one", kind)
    return frozenset(names)


async def _serve(
    kind: str, build: Build, arguments: argparse.Namespace, config: Config, only: frozenset[str]
) -> None:
    name = worker_id(kind)
    tracer = tracer_from(os.environ, f"tierfall-worker-{kind}", name)
    bus = await Bus.connect(BusOptions.of(config.nats, f"tierfall-worker-{kind}", BUS_WAIT_S))
    process = WorkerProcess(kind, build, bus, only, tracer=tracer, name=name)
    try:
        async with _http(process, arguments.http):
            await _serve_on(bus, process, arguments.config, config)
    finally:
        await bus.close()
        await asyncio.to_thread(tracer.close, FLUSH_S)


@contextlib.asynccontextmanager
async def _http(process: WorkerProcess, address: str | None) -> AsyncIterator[None]:
    """Metrics and probes, if they are wanted."""
    if address is None:
        yield
        return
    from tierfall.worker.http import WorkerHttp  # noqa: PLC0415 - an HTTP server that nobody asked for costs memory

    async with WorkerHttp(process, address) as http:
        _log.info("metrics and health on %s", http.url)
        yield


async def _serve_on(bus: Bus, process: WorkerProcess, path: Path, config: Config) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    applying: set[asyncio.Task[None]] = set()

    def apply(changed: Config) -> None:
        _log.info("config changed: applied")
        if changed.nats != config.nats:
            _log.warning("nats has changed in the config: that takes effect at the next start")
        task = asyncio.create_task(process.apply(changed))
        applying.add(task)
        task.add_done_callback(applied)

    def applied(task: asyncio.Task[None]) -> None:
        applying.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the changed config was not applied in full", exc_info=error)

    watcher = Watcher(
        path, on_change=apply, on_refused=_refused, environ=os.environ, current=config, for_worker=True
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, watcher.reload_now)
    async with watcher:
        if await _unless(stop, process.start(config)):
            memory.settle()
            _log.info("%s is ready", process.id)
            await stop.wait()
        _log.info("draining")
        for task in applying:
            task.cancel()  # without NATS it would wait, and the drain for it
        stop.clear()
        await _unless(stop, process.drain())
    _log.info("stopped%s", "" if bus.connected else " without a connection to NATS")


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Lets it run to its end, or until it is to stop at once; whether it came to its end."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for each in (task, stopping):
        each.cancel()
    await asyncio.wait({task, stopping})
    if task.cancelled():
        return False
    await task
    return True


def _refused(error: ConfigError) -> None:
    _log.error("the changed config is refused, the old one stays: %s", error.message)
