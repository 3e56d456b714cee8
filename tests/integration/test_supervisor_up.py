"""``tierfall up`` as a process: real nats-server, real services, and what is left when it is gone."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import pytest

from fakes.polling import until
from tierfall import state
from tierfall.bus import Bus, BusOptions
from tierfall.errors import BusDown, StoreUnavailable
from tierfall.store import QUOTA, Bucket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find what was left behind")

COMMAND: Final = Path(sys.executable).parent / "tierfall"
MARK: Final = "TIERFALL_TEST_RUN"

# Starts a process of its own and ignores what would end it politely.
ENGINE: Final = """\
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", deaf])
print("engine runs", flush=True)
time.sleep(600)
"""


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Up:
    """One ``tierfall up`` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.nats_port = free_port(), free_port()
        self.mark = uuid.uuid4().hex
        self.config = folder / "config.yaml"
        self.state = folder / "state"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environ(self) -> dict[str, str]:
        """For the command, and for others that use the same config."""
        return {
            **os.environ,
            MARK: self.mark,
            "UP_TEST_KEY": "sk-not-to-be-shown",
            "XDG_STATE_HOME": str(self.state),
        }

    @property
    def state_dir(self) -> Path:
        """Where the config's state is."""
        return state.folder(self.config, self.environ)

    def start(
        self,
        tiers: str,
        *,
        run: bool = False,
        stderr: int | None = None,
        token: str = "",
        server: str = "",
        cwd: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Writes the config and starts the command.

        Args:
            tiers: The settings of the tier ``only``.
            run: Whether that tier has an engine to run.
            stderr: A descriptor to write to instead of the file behind :attr:`err`.
            token: Of NATS, as the config has it.
            server: More settings of the HTTP side.
            cwd: Where it is started.
            arguments: More of them.
        """
        engine = self.folder / "engine.py"
        engine.write_text(ENGINE)
        command = f", run: [{sys.executable}, {engine}]" if run else ""
        token = f", token: '{token}'" if token else ""
        self.config.write_text(
            f"server: {{port: {self.port}, api_keys: [{{key: '${{UP_TEST_KEY}}'}}]{server}}}\n"
            f"nats: {{url: embedded, port: {self.nats_port}{token}}}\n"
            f"tiers:\n  only: {{{tiers}{command}}}\n"
            "models:\n  small: {tier: only, backend_model: small}\n"
        )
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                [COMMAND, "up", "--config", self.config, *arguments],
                cwd=cwd or self.folder,
                env=self.environ,
                stdout=out,
                stderr=err if stderr is None else stderr,
            )
        return self.process

    @property
    def out(self) -> str:
        """What it printed to stdout."""
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        """What it printed to stderr."""
        return (self.folder / "err").read_text()

    def processes(self) -> list[str]:
        """Every living process of this run, with its command line."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                ):
                    found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()!r}")
            except OSError:
                continue  # it has just ended
        return found

    async def ends(self) -> int:
        """Waits for the supervisor's end and returns its status."""
        process = self.process
        assert process is not None
        await until(lambda: process.poll() is not None, timeout_s=30)
        return int(process.returncode)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """A run that leaves nothing behind even when its test fails."""
    up = Up(tmp_path)
    yield up
    if up.process is not None and up.process.poll() is None:
        up.process.kill()
        up.process.wait()
    for line in up.processes():
        os.kill(int(line.partition(" ")[0]), signal.SIGKILL)


TIERS: Final = "worker: ollama, base_url: 'http://127.0.0.1:9'"


async def test_reports_the_tiers_and_stops_clean(up: Up) -> None:
    """The table says what is down and why, the curl line names the key's variable; then exit 0, all gone."""
    process = up.start(TIERS, token='a"b$c')
    await until(lambda: "curl" in up.out, timeout_s=40)
    assert re.search(r"^only +ollama +http://127\.0\.0\.1:9 +(down: .+|no workers)$", up.out, re.MULTILINE)
    assert re.search(r"^small +small +nobody$", up.out, re.MULTILINE)
    assert f"curl http://127.0.0.1:{up.port}/v1/chat/completions" in up.out
    assert '-H "Authorization: Bearer $UP_TEST_KEY"' in up.out
    for printed in (up.out, up.err):
        assert "sk-not-to-be-shown" not in printed
        assert 'a"b$c' not in printed
    assert (up.state_dir / "nats.conf").stat().st_mode & 0o077 == 0
    assert (up.state_dir / "jetstream").is_dir(), "what must last is beside it"
    assert not (up.state_dir / state.TOKEN_NAME).exists(), "the config's own token is not written down again"
    process.send_signal(signal.SIGINT)
    assert await up.ends() == 0
    assert up.processes() == []


async def test_a_killed_supervisor_leaves_no_process(up: Up) -> None:
    """Services, engine and the engine's own child all end, though no handler of the supervisor ran."""
    process = up.start(TIERS.replace("ollama", "vllm").replace(":9", ":9/v1"), run=True)
    async with httpx.AsyncClient() as client:
        async with asyncio.timeout(40):
            while not await _is_ready(client, up.port):  # noqa: ASYNC110 - HTTP has no event
                await asyncio.sleep(0.05)
    await until(lambda: "engine runs" in up.err)
    assert len(up.processes()) >= 6
    process.kill()
    await up.ends()
    await until(lambda: up.processes() == [])


async def test_a_second_signal_stops_at_once(up: Up) -> None:
    """An engine that ignores SIGTERM holds the first Ctrl-C up, not the second."""
    process = up.start(TIERS, run=True)
    await until(lambda: "engine runs" in up.err, timeout_s=30)
    process.send_signal(signal.SIGINT)
    await until(lambda: "Ctrl-C again" in up.err)
    process.send_signal(signal.SIGINT)
    assert await up.ends() == 0
    assert "stopping at once" in up.err
    assert up.processes() == []


async def test_a_closed_terminal_means_the_same_as_ctrl_c(up: Up) -> None:
    """SIGHUP goes to the session's leader alone: here nobody passes it on, as with `make run` in a window."""
    master, slave = os.openpty()
    process = up.start(TIERS, stderr=slave)
    os.close(slave)
    seen = b""
    while b"waiting for the ingress" not in seen:
        seen += await asyncio.to_thread(os.read, master, 65536)
    assert b"\x1b[" in seen
    os.close(master)
    await until(lambda: process.poll() is not None, timeout_s=30)
    assert process.returncode == 0
    assert up.processes() == []


async def test_a_taken_port_is_named_with_its_key_before_anything_starts(up: Up) -> None:
    """All of them in one message, exit 1, no traceback."""
    with socket.socket() as one, socket.socket() as two:
        for taken, port in ((one, up.port), (two, up.nats_port)):
            taken.bind(("127.0.0.1", port))
            taken.listen()
        up.start(TIERS)
        assert await up.ends() == 1
    assert f"port {up.port} on 127.0.0.1 is in use already" in up.err
    assert "set another server.port" in up.err
    assert f"port {up.nats_port} on 127.0.0.1 is in use already" in up.err
    assert "set another nats.port" in up.err
    assert "Traceback" not in up.err
    assert not up.state.exists()


async def test_a_missing_command_is_named_with_its_key(up: Up) -> None:
    """A typing error in `run` is found before anything starts."""
    up.start(f"{TIERS}, run: [no-such-engine]")
    assert await up.ends() == 1
    assert "tiers.only.run: no command no-such-engine" in up.err


async def test_the_embedded_nats_asks_for_a_token_that_only_its_user_has(up: Up, tmp_path: Path) -> None:
    """The token is random, in a file that no other user can read, on no command line and in no output.

    Commands and workers of the same user that read the same config have it, wherever they are started.
    """
    process = up.start(TIERS)
    await until(lambda: "curl" in up.out, timeout_s=40)
    place = up.state_dir / state.TOKEN_NAME
    token = place.read_text().strip()
    assert len(token) >= 32
    assert place.stat().st_mode & 0o077 == 0
    assert up.state_dir.stat().st_mode & 0o077 == 0
    url = f"nats://127.0.0.1:{up.nats_port}"
    with pytest.raises(BusDown, match="Authorization"):
        await Bus.connect(BusOptions(servers=url, name="wiretap", connect_timeout_s=2.0))
    for shown in (up.out, up.err, *up.processes()):
        assert token not in shown
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link.yaml").symlink_to(up.config)
    worker = subprocess.Popen(  # noqa: ASYNC220,S603 - our own command
        [COMMAND.with_name("tierfall-worker-ollama"), "--config", "link.yaml", "--tier", "only"],
        cwd=elsewhere,
        env=up.environ,
    )
    try:
        async with httpx.AsyncClient(headers={"Authorization": "Bearer sk-not-to-be-shown"}) as client:
            async with asyncio.timeout(30):
                while await _workers(client, up.port) < 2:  # noqa: ASYNC110 - HTTP has no event
                    await asyncio.sleep(0.05)
    finally:
        worker.terminate()
        await until(lambda: worker.poll() is not None)
    command = [str(COMMAND), "doctor", "--config", "../config.yaml", "--no-trial"]
    doctor = subprocess.run(  # noqa: ASYNC221,S603 - our own command
        command, cwd=elsewhere, env=up.environ, capture_output=True, text=True, check=False
    )
    assert re.search(r"^ok +nats +127\.0\.0\.1:\d+ lets us in", doctor.stdout, re.MULTILINE), doctor.stdout
    process.send_signal(signal.SIGINT)
    assert await up.ends() == 0
    assert list(elsewhere.iterdir()) == [elsewhere / "link.yaml"], "nothing is kept where it was started"


async def test_stored_keys_are_there_wherever_it_is_started(up: Up, tmp_path: Path) -> None:
    """Also those that an earlier version kept in the folder that it was started in."""
    old = tmp_path / ".tierfall"
    process = up.start(TIERS, server=", stored_keys: true", arguments=("--state-dir", str(old)))
    await until(lambda: "curl" in up.out, timeout_s=40)
    made = subprocess.run(  # noqa: ASYNC221,S603 - our own command
        [COMMAND, "keys", "create", "--config", up.config, "--name", "alice"],
        cwd="/",
        env=up.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    process.send_signal(signal.SIGINT)
    assert await up.ends() == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for cwd in (tmp_path, elsewhere):
        process = up.start(TIERS, server=", stored_keys: true", cwd=cwd)
        await until(lambda: "curl" in up.out, timeout_s=40)
        assert f"client keys and counters are in {old / 'jetstream'}" in up.err
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {made.stdout.strip()}"}) as client:
            answer = await client.get(f"http://127.0.0.1:{up.port}/v1/models")
        assert answer.status_code == httpx.codes.OK
        process.send_signal(signal.SIGINT)
        assert await up.ends() == 0
    assert not (elsewhere / ".tierfall").exists()
    old.rename(tmp_path / "gone")
    up.start(TIERS, server=", stored_keys: true", cwd=elsewhere)
    assert await up.ends() == 1
    assert "is gone: put it back" in up.err


async def test_nats_is_started_again_once_it_could_not_write_its_store(up: Up) -> None:
    """It would refuse every write until then, whatever room there is by now."""
    # Without this the signal of a file that is too large would end nats-server, instead of an error.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXFSZ})
    try:
        process = up.start(TIERS, server=", stored_keys: true")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXFSZ})
    await until(lambda: "curl" in up.out, timeout_s=40)
    (line,) = [line for line in up.processes() if "nats-server" in line]
    bus = await Bus.connect(
        BusOptions(
            servers=f"nats://127.0.0.1:{up.nats_port}",
            name="test",
            token_file=str(up.state_dir / state.TOKEN_NAME),
        )
    )
    bucket = await Bucket.open(bus, QUOTA)
    resource.prlimit(int(line.partition(" ")[0]), resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    with pytest.raises(StoreUnavailable, match="NATS cannot write its store"):
        await bucket.try_write()
    await until(lambda: "starting nats-server again" in up.err, timeout_s=15)
    assert "nats-server cannot keep client keys and counters:" in up.err
    await until(lambda: bus.counters.reconnects and bus.connected, timeout_s=15)
    await bucket.try_write()
    await bus.close()
    process.send_signal(signal.SIGINT)
    assert await up.ends() == 0


async def _workers(client: httpx.AsyncClient, port: int) -> int:
    answer = await client.get(f"http://127.0.0.1:{port}/health")
    return len(answer.json()["tiers"]["only"]["workers"])


async def _is_ready(client: httpx.AsyncClient, port: int) -> bool:
    try:
        answer = await client.get(f"http://127.0.0.1:{port}/health/readiness")
    except httpx.TransportError:
        return False
    return answer.status_code == httpx.codes.OK
