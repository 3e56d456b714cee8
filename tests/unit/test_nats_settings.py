"""Every nats-server config that is shipped or documented has the same settings, which clients rely on."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from fakes.manifests import K8S, ROOT
from tierfall.bus.wire import PING_EVERY_S
from tierfall.cli import nats_config
from tierfall.cli.up import nats as embedded
from tierfall.config import Nats

if TYPE_CHECKING:
    from collections.abc import Mapping

SHARED: Final = ("max_payload", "max_pending", "write_deadline", "ping_interval", "ping_max")
NOTICED_S: Final = 10.0
"""How long a client that is suspended may keep its place in the queue groups."""


@pytest.fixture
def confs(tmp_path: Path) -> dict[str, str]:
    """All of them, by where they stand."""
    nats_config.run(tmp_path / "keys", None, 1, io.StringIO())
    (documented,) = re.findall(
        r"`/etc/tierfall/nats.conf` on the small machine:\n\n```\n(.*?)```",
        (ROOT / "docs" / "run-at-home.md").read_text(),
        re.DOTALL,
    )
    return {
        "tierfall up": embedded.write_conf(Nats(), "a token", tmp_path / "keys").read_text(),
        "tierfall nats-config": (tmp_path / "keys" / "nats" / "nats.conf").read_text(),
        "k8s/base": (K8S / "base" / "nats.conf").read_text(),
        "k8s/overlays/home-lab": (K8S / "overlays" / "home-lab" / "nats.conf").read_text(),
        "docs/run-at-home.md": documented,
    }


def settings(conf: str) -> Mapping[str, str]:
    """The shared ones of them, as they are written."""
    found = re.findall(r'^(\w+): "?([^"\s]+)"?', conf, re.MULTILINE)
    return {name: value for name, value in found if name in SHARED}


def test_no_config_is_forgotten() -> None:
    """Every file of the repository that tells a nats-server its limits is compared here."""
    told = {
        str(path.relative_to(ROOT))
        for folder in ("k8s", "docs", "deploy", "examples", "shared")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".conf", ".md", ".yaml", ".py"}
        and re.search(r"^max_pending: ", path.read_text(), re.MULTILINE)
    }
    assert told == {
        "shared/src/tierfall/cli/up/nats.py",
        "k8s/base/nats.conf",
        "k8s/overlays/home-lab/nats.conf",
        "docs/run-at-home.md",
    }


def test_they_agree(confs: dict[str, str]) -> None:
    """The limits of a client and the pings are the same everywhere, and JetStream is on."""
    expected = settings(embedded.LIMITS)
    assert sorted(expected) == sorted(SHARED)
    for name, conf in confs.items():
        assert settings(conf) == expected, name
        assert 'sync_interval: "10s"' in conf, name


def test_a_suspended_client_is_noticed_soon() -> None:
    """Even when it was suspended right after a ping, and a client's own pings keep it from being pinged."""
    told = settings(embedded.LIMITS)
    interval_s = float(told["ping_interval"].removesuffix("s"))
    assert interval_s * (int(told["ping_max"]) + 2) <= NOTICED_S
    # A client that blocks for less than its own ping's interval is never taken for a suspended one.
    assert interval_s * (int(told["ping_max"]) + 1) > PING_EVERY_S


def test_monitoring_is_for_the_machine_itself(confs: dict[str, str]) -> None:
    """Where the monitoring port is open, it listens on loopback."""
    for name, conf in confs.items():
        opened = re.findall(r"^(https?_?p?o?r?t?): (\S+)", conf, re.MULTILINE)
        assert opened in ([], [("http", "127.0.0.1:8222")]), name


def test_nats_server_takes_what_is_documented(confs: dict[str, str], tmp_path: Path) -> None:
    """The documented config is read by nats-server itself, with the token from the environment."""
    path = tmp_path / "nats.conf"
    path.write_text(confs["docs/run-at-home.md"])
    checked = subprocess.run(  # noqa: S603 - our own nats-server
        [str(Path(sys.executable).with_name("nats-server")), "-t", "-c", str(path)],
        env={"TIERFALL_NATS_TOKEN": "a1b2c3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    assert checked.returncode == 0, checked.stderr
