"""The folders of one ``tierfall up``, and the token that its NATS asks for."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tierfall import state
from tierfall.cli.up.nats import STORE_NAME
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from tierfall.config.schema import Nats

TOKEN_BYTES: Final = 24
LOCK_NAME: Final = "lock"
OLD_NAME: Final = ".tierfall"
"""Where versions up to 0.1 kept the store: in the folder that they were started in."""


def make(home: Path, chosen: Path | None, config_path: Path) -> tuple[Path, list[str]]:
    """Makes the folders.

    Args:
        home: The config's own state folder.
        chosen: The one that ``--state-dir`` names, if it does.
        config_path: The config file, absolute.

    Returns:
        The folder for NATS's files, and what to tell the user of it.

    Raises:
        ConfigError: A folder is not this user's own.
        OSError: One cannot be made.
    """
    state.make_private(home)
    home.chmod(0o700)
    said = [] if chosen is not None else _adopt(home / STORE_NAME, config_path)
    place = chosen or home
    state.make_private(place)
    if (place / STORE_NAME).exists():
        state.make_private(place / STORE_NAME)
    return place, said


def lock(place: Path) -> None:
    """Keeps the store to this process until it ends: two servers on one would spoil it.

    Raises:
        ConfigError: Another ``tierfall up`` has it.
        OSError: The file cannot be made.
    """
    folder = (place / STORE_NAME).resolve().parent
    # Closed by the end of the process alone.
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"another `tierfall up` uses {folder}: stop that one, or name another folder with --state-dir"
        ) from None


def token_of(nats: Nats, home: Path) -> str:
    """What the embedded server asks for: the config's, or a new one that is written where clients look.

    It is a new one at each start. Another program may have listened on the port before and been shown the
    last one.

    Raises:
        ConfigError: The config names a file of its own, which cannot be read or is empty.
        OSError: The file cannot be written.
    """
    if nats.token:
        return nats.token.value
    if Path(nats.token_file) != home / state.TOKEN_NAME:
        return _configured(nats.token_file)
    token = secrets.token_hex(TOKEN_BYTES)
    state.write_private(Path(nats.token_file), f"{token}\n")
    return token


def _configured(path: str) -> str:
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"nats.token_file: cannot read {path}: {error}") from None
    if not token:
        raise ConfigError(f"nats.token_file: {path} is empty; it must hold the token")
    return token


def _adopt(store: Path, config_path: Path) -> list[str]:
    """Goes on with the store that an earlier version kept elsewhere, where this config has none yet."""
    if store.is_symlink():
        found = store.readlink()
        if not found.is_dir():
            raise ConfigError(
                f"{found}, which holds the client keys and counters of {config_path}, is gone:"
                f" put it back, or begin without them: rm {store}"
            )
        return [_told(found, store)]
    if store.exists():
        return []
    for folder in dict.fromkeys((Path.cwd() / OLD_NAME, config_path.parent / OLD_NAME)):
        old = folder / STORE_NAME
        if not old.is_dir() or folder.is_symlink() or old.is_symlink():
            continue
        try:
            state.make_private(folder)
            state.make_private(old)
        except ConfigError as error:
            return [f"the store in {folder} is left alone: {error.message}"]
        store.symlink_to(old)
        return [_told(old, store)]
    return []


def _told(old: Path, store: Path) -> str:
    return (
        f"client keys and counters are in {old}, where an earlier version made them;"
        f" to move them while nothing runs: rm {store} && mv {old} {os.fspath(store.parent)}/"
    )
