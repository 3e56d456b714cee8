"""The report of ``tierfall up``, its checks before the start, and the embedded server's config."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tierfall.cli.up.nats import check_conf, write_conf
from tierfall.cli.up.preflight import command_problems, port_problems
from tierfall.cli.up.program import Stage, programs
from tierfall.cli.up.report import base_url, curl, summary
from tierfall.config import Nats, Server, parse
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from tierfall.config import Config

CONFIG: Final = """
server: {port: PORT}
nats: {url: "nats://127.0.0.1:9"}
tiers:
  gpu: {worker: vllm, base_url: "http://127.0.0.1:ENGINE/v1", run: [python3, serve.py]}
  cpu: {worker: ollama, base_url: "http://127.0.0.1:11434"}
  sky: {worker: cloud, provider: openai, api_key: sk-sky}
models:
  big: {tier: gpu, backend_model: b, fallbacks: [small, sky]}
  small: {tier: cpu, backend_model: s}
  sky: {tier: sky, backend_model: o}
"""


def config(port: int = 4000, engine: int = 8000) -> Config:
    """A config with three kinds of worker."""
    return parse(CONFIG.replace("PORT", str(port)).replace("ENGINE", str(engine)), {}, "test")


def test_the_report_names_state_reason_and_who_answers() -> None:
    """One row per tier with the reason of a tier that is not up, one per model with its first live rung."""
    tiers = {
        "gpu": {"state": "down", "reason": "connection refused"},
        "cpu": {"state": "up", "reason": "stale"},
        "sky": {"state": "no_workers", "reason": "no worker serves this tier"},
    }
    rows = [re.split(r" {2,}", line) for line in summary(config(), {"tiers": tiers}).splitlines()]
    assert ["gpu", "vllm", "http://127.0.0.1:8000/v1", "down: connection refused"] in rows
    assert ["cpu", "ollama", "http://127.0.0.1:11434", "up"] in rows
    assert ["sky", "cloud", "openai", "no workers"] in rows
    assert ["big", "big > small > sky", "small"] in rows
    assert ["sky", "sky", "nobody"] in rows


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:4000"),
        ("0.0.0.0", "http://127.0.0.1:4000"),
        ("::", "http://[::1]:4000"),
        ("lab.example", "http://lab.example:4000"),
    ],
)
def test_the_address_to_paste_is_one_that_can_be_dialled(host: str, url: str) -> None:
    """A wildcard is where a server listens, not where a client connects to."""
    assert base_url(Server(host=host)) == url


def test_the_curl_line_shows_a_key_only_by_its_variable() -> None:
    """A key written into the file appears as $TIERFALL_KEY."""
    text = CONFIG.replace("PORT", "1, api_keys: [sk-mine-and-mine-alone]").replace("ENGINE", "2")
    keyed = parse(text, {}, "test")
    assert '-H "Authorization: Bearer $TIERFALL_KEY"' in curl(keyed)
    assert "sk-mine" not in curl(keyed)
    assert "Authorization" not in curl(config())
    assert '"model": "big"' in curl(config())


def test_programs_are_one_per_kind_and_engine_in_starting_order() -> None:
    """No nats-server for a nats.url that names one."""
    wanted = programs(config(), Path("/c.yaml"), Path("/n.conf"))
    assert list(wanted) == ["engine:gpu", "worker-cloud", "worker-ollama", "worker-vllm", "ingress"]
    assert wanted["ingress"].argv == ("tierfall-ingress", "--config", "/c.yaml")
    stages = [program.stage for program in wanted.values()]
    assert stages == sorted(stages)
    assert Stage.NATS not in stages


def test_a_taken_port_is_told_with_the_key_that_moves_it() -> None:
    """Also the port that a `run` command is about to take."""
    with socket.socket() as one, socket.socket() as two:
        for taken in (one, two):
            taken.bind(("127.0.0.1", 0))
            taken.listen()
        port, engine = one.getsockname()[1], two.getsockname()[1]
        first, second = port_problems(config(port, engine))
    assert f"server: port {port} on 127.0.0.1 is in use already" in first
    assert "set another server.port" in first
    assert "set another port in tiers.gpu.base_url and in tiers.gpu.run" in second


def test_a_command_that_is_not_installed_is_told_with_its_key() -> None:
    """And with what to do about it."""
    lost = parse(CONFIG.replace("PORT", "1").replace("ENGINE", "2").replace("python3", "no-such"), {}, "test")
    wanted = programs(lost, Path("/c.yaml"), Path("/n.conf"))
    assert command_problems(wanted.values()) == [
        "tiers.gpu.run: no command no-such: install it, or correct the command"
    ]


@pytest.mark.parametrize("token", ['a"b\\c$d #e', "ключ"])
def test_nats_server_accepts_its_config_whatever_the_token_holds(tmp_path: Path, token: str) -> None:
    """Its own reader is the judge; the file is its owner's alone, also when an old one was not."""
    (tmp_path / "nats.conf").touch(0o644)
    path = write_conf(Nats(), token, tmp_path)
    check_conf(path)
    assert path.stat().st_mode & 0o077 == 0


def test_a_config_that_nats_server_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    """Not as a traceback, and not as a server that never comes up."""
    path = tmp_path / "nats.conf"
    path.write_text("max_payload: lots\n")
    with pytest.raises(ConfigError, match="nats-server refuses its config"):
        check_conf(path)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--version"], 0, "tierfall 0."),
        (["check", "no-such.yaml"], 1, "no-such.yaml: cannot be read"),
        (["up", "--config", "no-such.yaml"], 1, "no-such.yaml: cannot be read"),
        (["engine", "--model", "no-such.gguf"], 1, "--model: there is no file no-such.gguf"),
        (["engine", "--slots", "0"], 1, "--slots is 0"),
        (["engine", "--port", "70000"], 1, "--port: cannot listen on 127.0.0.1:70000"),
        ([], 2, "usage: tierfall"),
    ],
)
def test_the_command_refuses_with_a_message_and_a_status(
    arguments: list[str], status: int, words: str
) -> None:
    """No traceback for what its user got wrong."""
    command = Path(sys.executable).parent / "tierfall"
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    assert done.returncode == status
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
