"""The entry of ``tierfall up``: config, checks, then the supervisor."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

from tierfall import config as configs
from tierfall import state as states
from tierfall.cli.up import state
from tierfall.cli.up.console import Console
from tierfall.cli.up.nats import CONF_NAME, STORE_NAME, check_conf, write_conf
from tierfall.cli.up.preflight import command_problems, port_problems
from tierfall.cli.up.program import programs
from tierfall.cli.up.supervisor import Supervisor
from tierfall.config.schema import EMBEDDED
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tierfall.config.schema import Config


def run(config_path: Path, state_dir: Path | None, environ: Mapping[str, str]) -> int:
    """Runs everything that the config needs until SIGTERM or Ctrl-C.

    Args:
        config_path: The config file.
        state_dir: For the embedded nats-server's files; the config's own state folder when left out.
        environ: For the config's ``${NAME}`` and for the children.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: The config cannot be used, a port is taken, or a command is missing; nothing was started.
    """
    config = configs.load(config_path, environ)
    config_path = config_path.absolute()
    home = states.folder(config_path, environ)
    state_dir = state_dir.absolute() if state_dir is not None else None
    console = Console(sys.stderr)
    nats_conf = _prepare(config, config_path, home, state_dir, console)
    supervisor = Supervisor(
        config,
        plan=lambda config: programs(config, config_path, nats_conf),
        watcher=lambda changed, refused: configs.Watcher(
            config_path, changed, refused, environ, current=config
        ),
        environ=environ,
        console=console,
        out=sys.stdout,
        nats_store=nats_conf.parent / STORE_NAME if config.nats.url == EMBEDDED else None,
    )
    asyncio.run(_supervise(supervisor))
    return 0


async def _supervise(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.hang_up)
    await supervisor.run()


def _prepare(config: Config, config_path: Path, home: Path, state_dir: Path | None, console: Console) -> Path:
    """Checks what can be checked before the first start; returns nats-server's config file."""
    nats_conf = (state_dir or home) / CONF_NAME
    wanted = programs(config, config_path, nats_conf)
    problems = command_problems(wanted.values()) + port_problems(config)
    if problems:
        raise ConfigError("\n".join(f"{config_path}: {problem}" for problem in problems))
    if config.nats.url == EMBEDDED:
        try:
            place, said = state.make(home, state_dir, config_path)
            state.lock(place)
            write_conf(config.nats, state.token_of(config.nats, home), place)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {error.filename or home}: {error.strerror};"
                " set XDG_STATE_HOME to a folder of your own, or name one with --state-dir"
            ) from error
        for line in said:
            console.say(line)
        check_conf(nats_conf)
    return nats_conf
