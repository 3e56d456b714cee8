"""What must hold before anything is started: free ports, commands that exist."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tierfall.cli.up.program import Stage, find_command
from tierfall.config.schema import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall.cli.up.program import Program
    from tierfall.config.schema import Config

LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})

INSTALL_HINTS: Final = {
    Stage.NATS: "install `tierfall[up]`, or set nats.url to a server that runs already",
    Stage.ENGINE: "install it, or correct the command",
    Stage.WORKER: "install the package of the same name into this environment",
    Stage.INGRESS: "install the package of the same name into this environment",
}


def port_problems(config: Config) -> list[str]:
    """Returns a sentence for each port that cannot be had, with the config key that moves it."""
    server = config.server
    found = [_problem("server", server.host, server.port, "set another server.port")]
    if server.admin is not None:
        admin = server.admin
        found.append(_problem("server.admin", admin.host, admin.port, "set another server.admin.port"))
    if config.nats.url == EMBEDDED:
        nats = config.nats
        remedy = f"set another nats.port, or nats.url: nats://{nats.host}:{nats.port} to use the server there"
        found.append(_problem("nats", nats.host, nats.port, remedy))
    for name, tier in config.tiers.items():
        url = urlsplit(getattr(tier, "base_url", ""))
        if tier.run and url.hostname in LOOPBACK_HOSTS and url.port is not None:
            remedy = f"set another port in tiers.{name}.base_url and in tiers.{name}.run"
            found.append(_problem(f"tiers.{name}", url.hostname, url.port, remedy))
    return [problem for problem in found if problem]


def command_problems(wanted: Iterable[Program]) -> list[str]:
    """Returns a sentence for each program whose command is not installed."""
    return [
        f"{program.key or program.name}: no command {program.argv[0]}: {INSTALL_HINTS[program.stage]}"
        for program in wanted
        if find_command(program.argv[0]) is None
    ]


def _problem(section: str, host: str, port: int, remedy: str) -> str:
    """A sentence if nothing can listen there, else nothing."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"{section}.host: {host} is no address of this machine: {error.strerror}"
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return (
                        f"{section}: port {port} on {host} is in use already:"
                        f" stop what listens there (`lsof -i :{port}` tells what), or {remedy}"
                    )
                return f"{section}: cannot listen on {host} port {port}: {error.strerror}; {remedy}"
    return ""
