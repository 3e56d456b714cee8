"""Which programs a config needs: nats-server, engines, workers, the ingress."""

from __future__ import annotations

import enum
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tierfall.config.schema import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.config.schema import Config

INGRESS_DRAIN_S: Final = 30.0
WORKER_DRAIN_S: Final = 15.0
ENGINE_STOP_S: Final = 10.0
NATS_STOP_S: Final = 5.0

NATS_CUTS_OFF: Final = re.compile(r"Slow Consumer")
"""nats-server gives these lines its level INF, although each of them is a client that it cut off."""
NATS_CHATTER: Final = re.compile(rf"^(?!.*{NATS_CUTS_OFF.pattern}).*(\[INF\]|\[DBG\]|\[TRC\])")
"""nats-server has no level below which it is silent; warnings and errors are shown."""

NATS_ENVIRON: Final = {"GOMAXPROCS": "1"}
"""One core carries more than one machine can ask of it, at some 15 us a request. On several, Go looks for
work on all of them: a third of what a nats-server takes."""


class Stage(enum.IntEnum):
    """The order in which programs start; they stop the other way round."""

    NATS = 0
    ENGINE = 1
    WORKER = 2
    INGRESS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process to keep alive."""

    name: str
    """Shown before each line of its output: ``nats``, ``engine:local``, ``worker-vllm``, ``ingress``."""
    argv: tuple[str, ...]
    stage: Stage
    stop_s: float
    """How long it may take to end after SIGTERM."""
    key: str = ""
    """The config key that asked for it, for error messages."""
    hidden: re.Pattern[str] | None = None
    """Lines of its output that nobody needs."""
    warned: re.Pattern[str] | None = None
    """Lines that are shown as warnings, although the program calls them information."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Variables that it gets where they are not set already."""


def programs(config: Config, config_path: Path, nats_conf: Path) -> dict[str, Program]:
    """Returns what to run, by name, in the order of starting.

    Args:
        config: The config.
        config_path: Its file, absolute: the services read it themselves.
        nats_conf: The embedded nats-server's config file, absolute.
    """
    wanted: list[Program] = []
    if config.nats.url == EMBEDDED:
        wanted.append(
            Program(
                name="nats",
                argv=("nats-server", "--config", str(nats_conf)),
                stage=Stage.NATS,
                stop_s=NATS_STOP_S,
                key="nats.url",
                hidden=NATS_CHATTER,
                warned=NATS_CUTS_OFF,
                environ=NATS_ENVIRON,
            )
        )
    wanted += [
        Program(
            name=f"engine:{name}",
            argv=tier.run,
            stage=Stage.ENGINE,
            stop_s=ENGINE_STOP_S,
            key=f"tiers.{name}.run",
        )
        for name, tier in config.tiers.items()
        if tier.run
    ]
    wanted += [
        _service(f"worker-{kind}", Stage.WORKER, WORKER_DRAIN_S, config_path)
        for kind in sorted({tier.kind for tier in config.tiers.values()})
    ]
    wanted.append(_service("ingress", Stage.INGRESS, INGRESS_DRAIN_S, config_path))
    return {program.name: program for program in wanted}


def _service(name: str, stage: Stage, stop_s: float, config_path: Path) -> Program:
    argv = (f"tierfall-{name}", "--config", str(config_path))
    return Program(name=name, argv=argv, stage=stage, stop_s=stop_s)


def find_command(command: str) -> str | None:
    """Returns a command's path: beside this Python (the virtual environment) first, then from PATH."""
    beside = Path(sys.executable).parent
    return shutil.which(command, path=str(beside)) or shutil.which(command)
