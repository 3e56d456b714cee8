"""Starts the programs in order, follows the config, tells when all is well, and stops in the other order."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

from tierfall.cli.up.child import BACKOFF_FIRST_S, Child
from tierfall.cli.up.keeper import Keeper
from tierfall.cli.up.program import Stage
from tierfall.cli.up.readiness import wait_for_engines, wait_until_ready
from tierfall.cli.up.report import base_url, curl, summary
from tierfall.cli.up.store_guard import StoreGuard
from tierfall.logs import MODE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import TextIO

    from tierfall.cli.up.console import Console
    from tierfall.cli.up.program import Program
    from tierfall.config import Watcher
    from tierfall.config.schema import Config
    from tierfall.errors import ConfigError

NATS_LISTENS_S: Final = 10.0
POLL_EVERY_S: Final = 0.05
TERMINAL_POLL_S: Final = 1.0
SLOW_START_S: Final = 20.0
"""After this long without readiness the supervisor says so, and goes on waiting."""


class Supervisor:
    """All children of one ``tierfall up``.

    Args:
        config: The config, checked.
        plan: Says which programs a config needs.
        watcher: Makes the watcher of the config file from what to call with a new config, and with the
            refusal of one.
        environ: The children's environment.
        console: Where the children's lines and the supervisor's own go.
        out: Where the report goes.
        nats_store: Where the embedded nats-server keeps its store, if there is one.
        backoff_first_s: The delay before the first restart of a child, in seconds.
    """

    def __init__(
        self,
        config: Config,
        *,
        plan: Callable[[Config], Mapping[str, Program]],
        watcher: Callable[[Callable[[Config], None], Callable[[ConfigError], None]], Watcher],
        environ: Mapping[str, str],
        console: Console,
        out: TextIO,
        nats_store: Path | None = None,
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self.children: dict[str, Child] = {}
        self._config = config
        self._plan = plan
        self._console = console
        self._out = out
        self._backoff_first_s = backoff_first_s
        self._environ = {**environ, "PYTHONUNBUFFERED": "1"}
        if console.terminal:
            self._environ.setdefault(MODE_VARIABLE, "human")
        self._guard = StoreGuard(nats_store, console, self._end_nats) if nats_store is not None else None
        self._keeper = Keeper()
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._changes: asyncio.Queue[Config] = asyncio.Queue()
        self._watcher = watcher(self._changes.put_nowait, self._refused)

    async def run(self) -> None:
        """Runs until :meth:`stop` is called, then stops every child."""
        with self._keeper:
            going = asyncio.create_task(self._go())
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait({going, stopped}, return_when=asyncio.FIRST_COMPLETED)
            going.cancel()
            stopped.cancel()
            await asyncio.wait({going, stopped})
            await self._stop_all()
        if not going.cancelled():
            going.result()  # only a defect of ours ends it before it is cancelled

    def stop(self) -> None:
        """Begins to stop, for SIGTERM and SIGINT; called once more, it does not wait for anything."""
        if self._stop.is_set():
            self._console.say("stopping at once")
            self._at_once.set()
        self._stop.set()

    def hang_up(self) -> None:
        """Reloads, for SIGHUP; but when the terminal was closed that signal means the same as Ctrl-C."""
        if self._console.hung_up():
            self._stop.set()
            return
        self._watcher.reload_now()
        for child in self.children.values():
            if child.program.stage in {Stage.WORKER, Stage.INGRESS}:  # an engine may not know this signal
                child.signal(signal.SIGHUP)

    async def _go(self) -> None:
        """Starts everything and follows the config for ever."""
        await self._start_all()
        async with self._watcher, asyncio.TaskGroup() as group:
            group.create_task(self._report())
            group.create_task(self._follow())
            group.create_task(self._watch_terminal())
            if self._guard is not None:
                group.create_task(self._guard.run())

    async def _start_all(self) -> None:
        wanted = self._plan(self._config)
        for program in sorted(wanted.values(), key=lambda program: program.stage):
            self._start(program)
            if program.stage is Stage.NATS:
                await self._wait_for_nats()

    def _start(self, program: Program) -> None:
        if program.stage is Stage.ENGINE:
            self._console.say(f"starting {program.name}: {' '.join(program.argv)}")
        hear = self._guard.hear if self._guard is not None and program.stage is Stage.NATS else None
        child = Child(
            program,
            self._environ,
            self._console,
            self._keeper,
            hear=hear,
            backoff_first_s=self._backoff_first_s,
        )
        self.children[program.name] = child
        child.start()

    def _end_nats(self) -> None:
        """Its child starts it again at once."""
        for child in self.children.values():
            if child.program.stage is Stage.NATS:
                child.signal(signal.SIGTERM)

    async def _wait_for_nats(self) -> None:
        """Spares the services their first failed connects; they would try again by themselves."""
        nats = self._config.nats
        host = nats.address.removeprefix("nats://").rpartition(":")[0]
        try:
            async with asyncio.timeout(NATS_LISTENS_S):
                while not await _listens(host.strip("[]"), nats.port):  # noqa: ASYNC110 - a port has no event
                    await asyncio.sleep(POLL_EVERY_S)
        except TimeoutError:
            self._console.say(f"nats-server does not listen after {NATS_LISTENS_S:g} s; going on without it")

    async def _report(self) -> None:
        self._console.say("starting: waiting for the ingress")
        slow = asyncio.get_running_loop().call_later(
            SLOW_START_S,
            self._console.say,
            f"the ingress is not ready after {SLOW_START_S:g} s; still waiting",
        )
        try:
            await wait_until_ready(self._config)
        finally:
            slow.cancel()
        engines = [name for name, tier in self._config.tiers.items() if tier.run]
        if engines:
            self._console.say(f"the ingress is ready; waiting for engines to load: {', '.join(engines)}")
        health = await wait_for_engines(self._config)
        report = f"\n{summary(self._config, health or {})}\n\n" if health is not None else "\n"
        ready = f"Tierfall answers on {base_url(self._config.server)}/v1; Ctrl-C stops it. Try:\n\n"
        self._print(f"{report}{ready}{curl(self._config)}\n\n")

    def _print(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    async def _follow(self) -> None:
        """Brings the children in line with each new config, one after another."""
        while True:
            config = await self._changes.get()
            before, self._config = self._config, config
            await self._apply(before, config)

    async def _watch_terminal(self) -> None:
        """Stops when the terminal's window was closed.

        SIGHUP alone does not tell: the kernel sends it to the session's leader, which may be a make that
        waits for this process.
        """
        while not self._console.hung_up():  # noqa: ASYNC110 - a terminal has no event for it
            await asyncio.sleep(TERMINAL_POLL_S)
        self._stop.set()

    async def _apply(self, before: Config, config: Config) -> None:
        if config.nats != before.nats:
            self._console.say("nats has changed in the config: that needs a restart of `tierfall up`")
        if (config.server.host, config.server.port) != (before.server.host, before.server.port):
            self._console.say("server.host or server.port has changed: that needs a restart of `tierfall up`")
        wanted = {
            program.name: program
            for program in self._plan(config).values()
            if program.stage is not Stage.NATS
        }
        running = {name: child for name, child in self.children.items() if name != "nats"}
        outdated = [name for name, child in running.items() if wanted.get(name) != child.program]
        for name in outdated:
            self._console.say(f"the config has changed: stopping {name}")
        await asyncio.gather(*(self.children[name].stop(self._at_once) for name in outdated))
        for name in outdated:
            del self.children[name]
        for name, program in wanted.items():
            if name not in self.children:
                self._console.say(f"the config has changed: starting {name}")
                self._start(program)

    def _refused(self, error: ConfigError) -> None:
        self._console.say(f"the config has changed, but cannot be used; the old one stays: {error.message}")

    async def _stop_all(self) -> None:
        self._console.say("stopping: requests in flight are finished first; Ctrl-C again stops at once")
        for stage in sorted(Stage, reverse=True):
            children = [child for child in self.children.values() if child.program.stage is stage]
            await asyncio.gather(*(child.stop(self._at_once) for child in children))
        self._console.say("stopped")


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
