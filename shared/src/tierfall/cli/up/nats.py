"""The embedded nats-server's config file."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from tierfall.cli.up.program import find_command
from tierfall.errors import ConfigError
from tierfall.state import write_private

if TYPE_CHECKING:
    from pathlib import Path

    from tierfall.config.schema import Nats

COMMAND: Final = "nats-server"
CONF_NAME: Final = "nats.conf"
STORE_NAME: Final = "jetstream"
"""The folder beside it in which the server keeps client keys and quotas."""
CHECK_S: Final = 10.0

LIMITS: Final = """\
max_payload: 8MB
# A client that stops reading is cut off at this backlog or after this time, whichever comes first.
max_pending: 64MB
write_deadline: "5s"
# A client that is frozen, or gone without a word, is noticed within 9 s.
ping_interval: "3s"
ping_max: 1
"""
"""Settings of every nats-server of Tierfall. A live client is never pinged twice: its own pings, one each
five seconds, and its heartbeats count as answers."""

SETTINGS: Final = f"""\
# Written by `tierfall up` at each start; changes are lost.
server_name: "tierfall"
{LIMITS}logtime: false
# nats-py's KV watch does not understand the newer form of acknowledgements.
feature_flags {{ js_ack_fc_v2: false }}
"""


def write_conf(nats: Nats, token: str, state_dir: Path) -> Path:
    """Writes the file, readable by its owner alone, as it holds the token.

    Args:
        nats: Where to listen.
        token: What clients must show.
        state_dir: Where the file goes.

    Returns:
        The file's path.

    Raises:
        OSError: The directory cannot be written.
    """
    path = state_dir / CONF_NAME
    lines = [SETTINGS, f"host: {quoted(nats.host)}", f"port: {nats.port}", jetstream(state_dir / STORE_NAME)]
    lines.append(f"authorization {{ token: {quoted(token)} }}")
    write_private(path, "\n".join(lines) + "\n")
    return path


def jetstream(store_dir: Path) -> str:
    """The section that switches JetStream on.

    What a server has acknowledged is safe from its own end at once, and from the machine's within
    ``sync_interval``.
    """
    folder = quoted(str(store_dir.absolute()))
    limits = 'max_file_store: 1GB, max_memory_store: 64MB, sync_interval: "10s"'
    return f"jetstream {{ store_dir: {folder}, {limits} }}"


def quoted(text: str) -> str:
    """A string in nats-server's notation."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def check_conf(path: Path) -> None:
    """Has nats-server read the file.

    Raises:
        ConfigError: It refuses; the message is its own.
    """
    command = find_command(COMMAND) or COMMAND
    checked = subprocess.run(  # noqa: S603 - our own nats-server
        [command, "-t", "--config", str(path)], capture_output=True, text=True, check=False, timeout=CHECK_S
    )
    if checked.returncode != 0:
        words = (checked.stderr + checked.stdout).strip()
        raise ConfigError(f"nats-server refuses its config (it must be 2.14 or newer): {words}")
