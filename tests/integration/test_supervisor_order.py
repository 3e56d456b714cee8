"""The supervisor with stand-in programs: order of starting and stopping, and a config that changes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Final

import pytest

from fakes.polling import until
from tierfall.cli.up.console import Console
from tierfall.cli.up.program import Program, Stage
from tierfall.cli.up.supervisor import Supervisor
from tierfall.config import Config, Watcher, parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

# Nothing listens on port 9: the report waits for an ingress that never comes.
CONFIG: Final = """
server: {port: 9}
nats: {url: "nats://127.0.0.1:9"}
tiers:
  cpu: {worker: ollama, base_url: "http://127.0.0.1:9"}
models:
  small: {tier: cpu, backend_model: small}
"""
WITH_ENGINE: Final = CONFIG.replace(
    "models:", '  gpu: {worker: vllm, base_url: "http://127.0.0.1:9/v1", run: [engine]}\nmodels:'
)

STAND_IN: Final = """
import signal, sys, time
def end(*_):
    print("ends", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGHUP, lambda *_: print("reloads", flush=True))
print("runs", flush=True)
while True:
    time.sleep(600)
"""


def stand_ins(config: Config) -> Mapping[str, Program]:
    """Programs of the right names and stages, all with the same code."""
    stages = {"ingress": Stage.INGRESS}
    stages |= {f"worker-{tier.kind}": Stage.WORKER for tier in config.tiers.values()}
    stages |= {f"engine:{name}": Stage.ENGINE for name, tier in config.tiers.items() if tier.run}
    argv = (sys.executable, "-c", STAND_IN)
    return {name: Program(name=name, argv=argv, stage=stage, stop_s=10.0) for name, stage in stages.items()}


class Running:
    """A supervisor at work on a config file."""

    def __init__(self, path: Path, text: str) -> None:
        self._stream = io.StringIO()
        self.path = path
        path.write_text(text)
        config = parse(text, {}, str(path))
        self.supervisor = Supervisor(
            config,
            plan=stand_ins,
            watcher=lambda changed, refused: Watcher(
                path, changed, refused, {}, current=config, poll_every_s=0.02
            ),
            environ=os.environ,
            console=Console(self._stream),
            out=io.StringIO(),
        )
        self.task = asyncio.create_task(self.supervisor.run())

    @property
    def lines(self) -> list[str]:
        """What the console shows, without the padding."""
        return [" ".join(line.split()) for line in self._stream.getvalue().splitlines()]

    async def sees(self, *lines: str) -> None:
        """Waits until each line was shown."""
        await until(lambda: set(lines) <= set(self.lines))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A supervisor with an engine, two workers and an ingress."""
    running = Running(tmp_path / "config.yaml", WITH_ENGINE)
    yield running
    if not running.task.done():
        running.supervisor.stop()
        running.supervisor.stop()
    with contextlib.suppress(asyncio.CancelledError):
        await running.task


ALL_RUN: Final = ("engine:gpu | runs", "worker-vllm | runs", "worker-ollama | runs", "ingress | runs")


async def test_stops_ingress_then_workers_then_engines(running: Running) -> None:
    """Who takes requests goes first, who answers them last: that is what lets a drain finish."""
    await running.sees(*ALL_RUN)
    running.supervisor.stop()
    await running.task
    ends = [line.partition(" ")[0] for line in running.lines if line.endswith("| ends")]
    assert ends[0] == "ingress"
    assert set(ends[1:3]) == {"worker-ollama", "worker-vllm"}
    assert ends[3] == "engine:gpu"
    assert running.lines[-1] == "tierfall | stopped"


async def test_a_changed_config_stops_and_starts_what_it_must(running: Running) -> None:
    """The kind of worker and the engine that go are stopped, and started when they come back; no other is."""
    await running.sees(*ALL_RUN)
    pid = running.supervisor.children["ingress"].pid
    running.path.write_text(CONFIG)
    await running.sees("engine:gpu | ends", "worker-vllm | ends")
    await until(lambda: set(running.supervisor.children) == {"worker-ollama", "ingress"})
    running.path.write_text(WITH_ENGINE)
    await until(lambda: running.lines.count("engine:gpu | runs") == 2)
    await until(lambda: running.lines.count("worker-vllm | runs") == 2)
    assert running.supervisor.children["ingress"].pid == pid
    assert "worker-ollama | ends" not in running.lines


async def test_an_address_that_changes_asks_for_a_restart(running: Running) -> None:
    """What cannot change while it runs is said, not silently ignored."""
    await running.sees(*ALL_RUN)
    running.path.write_text(WITH_ENGINE.replace("nats://127.0.0.1:9", "nats://127.0.0.1:10"))
    await running.sees("tierfall | nats has changed in the config: that needs a restart of `tierfall up`")
    running.path.write_text(WITH_ENGINE.replace("port: 9}", "port: 11}"))
    await running.sees(
        "tierfall | server.host or server.port has changed: that needs a restart of `tierfall up`"
    )


async def test_a_config_that_cannot_be_used_changes_nothing(running: Running) -> None:
    """The refusal is told with its reason; every child stays."""
    await running.sees(*ALL_RUN)
    running.path.write_text(WITH_ENGINE.replace("tier: cpu", "tier: cpx"))
    await until(lambda: any("the old one stays" in line and "cpx" in line for line in running.lines))
    assert not [line for line in running.lines if line.endswith("| ends")]


async def test_sighup_reaches_services_and_spares_engines(running: Running) -> None:
    """An engine that does not know the signal would die of it."""
    await running.sees(*ALL_RUN)
    running.supervisor.hang_up()
    await running.sees("ingress | reloads", "worker-ollama | reloads", "worker-vllm | reloads")
    running.supervisor.stop()
    await running.task
    assert "engine:gpu | reloads" not in running.lines
    assert "engine:gpu | ends" in running.lines
