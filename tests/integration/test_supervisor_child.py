"""One child of ``tierfall up``: kept alive, relayed, stopped, with small Python programs as children."""

from __future__ import annotations

import asyncio
import io
import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING, Final

import pytest

from fakes.polling import until
from fakes.processes import free_port
from tierfall.bus import Bus, BusOptions
from tierfall.cli.up.child import Child, describe_ending
from tierfall.cli.up.console import Console
from tierfall.cli.up.keeper import Keeper
from tierfall.cli.up.nats import write_conf
from tierfall.cli.up.program import Program, Stage, programs
from tierfall.config import parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

TIERS: Final = """
nats: {port: PORT}
tiers: {one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}}
models: {first: {tier: one, backend_model: m}}
"""
SLEEPS: Final = "print('ready', flush=True); import time; time.sleep(600)"


class Bench:
    """Starts children whose output and news land in :attr:`text`."""

    def __init__(self, keeper: Keeper) -> None:
        self._stream = io.StringIO()
        self._keeper = keeper
        self.children: list[Child] = []

    @property
    def text(self) -> str:
        """Everything that the console was given."""
        return self._stream.getvalue()

    def start(
        self,
        code: str,
        *,
        stop_s: float = 10.0,
        hidden: str = "",
        argv: tuple[str, ...] | None = None,
        environ: dict[str, str] | None = None,
    ) -> Child:
        """Starts a child that runs Python code, or ``argv``."""
        program = Program(
            name="child",
            argv=argv or (sys.executable, "-c", textwrap.dedent(code)),
            stage=Stage.ENGINE,
            stop_s=stop_s,
            hidden=re.compile(hidden) if hidden else None,
            environ=environ or {},
        )
        return self.start_program(program)

    def start_program(self, program: Program) -> Child:
        """Starts a child that runs this."""
        child = Child(program, os.environ, Console(self._stream), self._keeper, backoff_first_s=0.02)
        self.children.append(child)
        child.start()
        return child


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A guard process of the test's own."""
    with Keeper() as keeper:
        yield keeper


@pytest.fixture
async def bench(keeper: Keeper) -> AsyncIterator[Bench]:
    """A bench whose children end with the test."""
    bench = Bench(keeper)
    yield bench
    at_once = asyncio.Event()
    at_once.set()
    for child in bench.children:
        await child.stop(at_once)


async def test_a_program_has_variables_of_its_own_unless_they_are_set(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program gets by default is there, and gives way to what whoever starts it has set."""
    monkeypatch.setenv("CHILD_B", "ours")
    code = "import os; print(os.environ['CHILD_A'], os.environ['CHILD_B'], flush=True)"
    bench.start(code, environ={"CHILD_A": "a", "CHILD_B": "b"})
    await until(said(bench, "a ours"))


def said(bench: Bench, text: str) -> Callable[[], bool]:
    """The condition that the console has shown a text."""
    return lambda: text in bench.text


def is_alive(pid: int) -> bool:
    """Whether a process is there; its init may take a moment to collect a dead one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_crashed_child_is_started_again_after_a_growing_delay(bench: Bench) -> None:
    """Each crash is told with the status and the delay, and the delay doubles."""
    child = bench.start("raise SystemExit(3)")
    await until(said(bench, "child exited with status 3; starting it again in 0.08 s"))
    assert "child exited with status 3; starting it again in 0.02 s" in bench.text
    assert "child exited with status 3; starting it again in 0.04 s" in bench.text
    assert child.restarts >= 2


async def test_a_child_killed_by_a_signal_is_named_so_and_comes_back(bench: Bench) -> None:
    """What a chaos test or the OOM killer does: the signal is told and a new process runs."""
    child = bench.start(SLEEPS)
    await until(said(bench, "| ready"))
    first = child.pid
    assert first is not None
    os.kill(first, 9)
    await until(lambda: bench.text.count("| ready") == 2)
    assert "child was killed by SIGKILL; starting it again in 0.02 s" in bench.text
    assert child.pid not in {None, first}


async def test_stop_lets_a_child_finish_and_does_not_restart_it(bench: Bench) -> None:
    """SIGTERM first: a child that tidies up on it gets to do so, and that is its end."""
    child = bench.start(
        """
        import signal, time
        def tidy(*_):
            print("tidied")
            raise SystemExit(0)
        signal.signal(signal.SIGTERM, tidy)
        print("ready", flush=True)
        time.sleep(600)
        """
    )
    await until(said(bench, "| ready"))
    await child.stop(asyncio.Event())
    assert bench.text.endswith("| tidied\n")
    assert child.pid is None


async def test_a_child_that_ignores_sigterm_is_killed_when_its_time_is_up(bench: Bench) -> None:
    """The wait is bounded, and the supervisor says that it was cut short."""
    child = bench.start(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}", stop_s=0.2)
    await until(said(bench, "| ready"))
    pid = child.pid
    await child.stop(asyncio.Event())
    assert "child did not end within 0.2 s: killed" in bench.text
    assert pid is not None
    assert not is_alive(pid)


async def test_at_once_does_not_wait_for_a_draining_child(bench: Bench) -> None:
    """The second Ctrl-C: set while the stop waits, it ends the wait, not only the next one."""
    child = bench.start(
        f"import signal; signal.signal(signal.SIGTERM, lambda *_: print('draining', flush=True)); {SLEEPS}",
        stop_s=600,
    )
    await until(said(bench, "| ready"))
    at_once = asyncio.Event()
    stopping = asyncio.create_task(child.stop(at_once))
    await until(said(bench, "| draining"))
    assert not stopping.done()
    at_once.set()
    await stopping
    assert child.pid is None


async def test_what_a_child_started_itself_ends_with_it(bench: Bench) -> None:
    """An engine's own processes do not outlive it, even when it ends without a word to them."""
    child = bench.start(
        """
        import signal, subprocess, sys, time
        sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
        inner = subprocess.Popen([sys.executable, "-c", sleep + "; time.sleep(600)"])
        print("inner", inner.pid, flush=True)
        time.sleep(600)
        """
    )
    await until(said(bench, "| up"))
    await until(said(bench, "inner"))
    found = re.search(r"inner (\d+)", bench.text)
    assert found is not None
    await child.stop(asyncio.Event())
    await until(lambda: not is_alive(int(found[1])))


async def test_a_missing_command_is_told_and_tried_again(bench: Bench) -> None:
    """A config reload may name a command that is not installed: no crash, a clear word."""
    bench.start("", argv=("no-such-command-here",))
    await until(said(bench, "there is no command no-such-command-here; starting it again in 0.04 s"))


async def test_output_comes_whole_and_prefixed(bench: Bench) -> None:
    """Both streams, long lines, a last line without an end; hidden lines are left out."""
    bench.start(
        """
        import sys, time
        print("x" * 100_000, flush=True)
        print("[INF] chatter", flush=True)
        print("to stderr", file=sys.stderr)
        sys.stdout.write("no end")
        """,
        hidden=r"\[INF\]",
    )
    await until(said(bench, "starting it again"))
    lines = bench.text.splitlines()
    assert sum(line.count("x") for line in lines if set(line[16:]) == {"x"}) == 100_000
    assert "child         | to stderr" in lines
    assert "child         | no end" in lines
    assert "chatter" not in bench.text


async def test_a_client_that_nats_cuts_off_is_shown(bench: Bench, tmp_path: Path) -> None:
    """nats-server's line of a slow consumer is shown, as a warning; its other information is not."""
    port = free_port()
    config = parse(TIERS.replace("PORT", str(port)), {}, "t.yaml")
    conf = write_conf(config.nats, "t", tmp_path)
    bench.start_program(programs(config, tmp_path / "t.yaml", conf)["nats"])
    slow = await Bus.connect(BusOptions(servers=config.nats.address, token="t", name="the slow one"))
    quick = await Bus.connect(BusOptions(servers=config.nats.address, token="t", name="the quick one"))
    await slow.subscribe("flood", lambda _: None)
    assert slow._wire is not None
    transport = slow._wire._writer.transport
    transport.pause_reading()
    while "Slow Consumer" not in bench.text:
        quick.publish("flood", bytes(256 * 1024))
        await quick.flush()
    transport.resume_reading()
    await slow.close()
    await quick.close()
    line, *_ = [line for line in bench.text.splitlines() if "Slow Consumer" in line]
    assert line.startswith("nats          | ")
    assert "[WRN]" in line
    assert "the slow one" in line
    assert "[INF]" not in bench.text


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exited with status 0"), (-11, "was killed by SIGSEGV"), (-99, "was killed by signal 99")],
)
def test_an_ending_is_told_in_words(status: int, words: str) -> None:
    """Also for a signal that has no name here."""
    assert describe_ending(status) == words
