"""The config file, read, decoded and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tierfall import state
from tierfall.config import check, document
from tierfall.config.decode import Decoder
from tierfall.config.problem import Problem, refusal
from tierfall.config.schema import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.config.schema import Config


def load(path: str | Path, environ: Mapping[str, str], *, for_worker: bool = False) -> Config:
    """Reads a config file.

    Args:
        path: The file; UTF-8.
        environ: Where ``${NAME}`` of a secret is looked up.
        for_worker: For a process that serves no HTTP: its environment need not hold the client keys, so they
            are not checked, and the config comes without them.

    Raises:
        ConfigError: The file cannot be read or used. Its message has one line for each problem, with the
            file, the line, the path of the key, what is there and what would be right; never a secret.
    """
    return load_text(read_text(path), path, environ, for_worker=for_worker)


def load_text(text: str, path: str | Path, environ: Mapping[str, str], *, for_worker: bool = False) -> Config:
    """As :func:`load`, of a text that was just read from the file.

    Raises:
        ConfigError: The text cannot be used.
    """
    config = parse(text, environ, str(path), for_worker=for_worker)
    nats = config.nats
    if nats.url != EMBEDDED or nats.token or nats.token_file:
        return config
    token_file = state.folder(Path(path), environ) / state.TOKEN_NAME
    nats = msgspec.structs.replace(nats, token_file=str(token_file))
    return msgspec.structs.replace(config, nats=nats)


def parse(text: str, environ: Mapping[str, str], source: str, *, for_worker: bool = False) -> Config:
    """Reads a config from its text; see :func:`load`.

    Args:
        text: The file's content.
        environ: Where ``${NAME}`` of a secret is looked up.
        source: What messages call the file.
        for_worker: See :func:`load`.

    Raises:
        ConfigError: The text cannot be used.
    """
    decoder = Decoder(environ)
    config = decoder.config(document.read(text, source))
    if config is None:
        raise refusal(source, decoder.problems)
    config = _named(config, for_worker=for_worker)
    if found := check.find(config, for_worker=for_worker):
        raise refusal(
            source,
            [Problem(one.path, one.text, _line(one.path, decoder.lines)) for one in found],
        )
    return config


def read_text(path: str | Path) -> str:
    """The file's content.

    Raises:
        ConfigError: It cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise refusal(str(path), [Problem("", f"cannot be read: {said}")]) from error
    except UnicodeDecodeError as error:
        # The cause holds the whole file, keys and all.
        said = f"is not UTF-8: byte {error.start} cannot be read"
        raise refusal(str(path), [Problem("", said)]) from None


def _named(config: Config, *, for_worker: bool) -> Config:
    """Gives each client key the name that logs show, or takes the keys out where nobody may need them."""
    keys = tuple(
        key if key.name else msgspec.structs.replace(key, name=f"key-{number}")
        for number, key in enumerate(config.server.api_keys, start=1)
    )
    if for_worker:
        server = msgspec.structs.replace(config.server, api_keys=(), admin_keys=())
    else:
        server = msgspec.structs.replace(config.server, api_keys=keys)
    return msgspec.structs.replace(config, server=server)


def _line(path: str, lines: Mapping[str, int]) -> int:
    """The line of a path, or of the nearest thing around it that the file holds."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path, 0)
