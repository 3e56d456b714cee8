"""Where what belongs to one config, and is no part of it, is kept on this machine.

It follows from the config file and the user alone, so that `tierfall up`, the services that it starts, and a
command in another terminal and another folder find the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_NAME: Final = "nats-token"  # noqa: S105 - a file's name
"""What clients of the embedded NATS show; made by `tierfall up` at each start."""
STORES_NAME: Final = "stores.json"
"""Which buckets an ingress has seen; see :class:`tierfall_ingress.store.StoreMemory`."""
DIGEST_CHARACTERS: Final = 8
OTHERS_MAY_WRITE: Final = stat.S_IWOTH


def folder(config: Path, environ: Mapping[str, str]) -> Path:
    """The state folder of a config file, which need not be there yet.

    Args:
        config: The file; a symlink counts as what it points to.
        environ: For ``XDG_STATE_HOME`` and ``HOME``.
    """
    path = config.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:DIGEST_CHARACTERS]
    return _home(environ) / "tierfall" / f"{path.stem}-{digest}"


def make_private(path: Path) -> None:
    """Makes a folder that only this user can enter, or refuses one that others might change.

    Raises:
        ConfigError: It belongs to another user, or all users may write to it.
        OSError: It cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid != os.getuid():
        raise ConfigError(f"{path} belongs to another user; name another folder with --state-dir")
    if found.st_mode & OTHERS_MAY_WRITE:
        raise ConfigError(f"every user may write to {path}; name another folder with --state-dir")


def write_private(path: Path, text: str) -> None:
    """Writes a file that only this user can read: all of it, or it stays as it was.

    Raises:
        OSError: It cannot be written.
    """
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(new).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(new).unlink()
        raise


def _home(environ: Mapping[str, str]) -> Path:
    named = environ.get("XDG_STATE_HOME", "")
    if Path(named).is_absolute():  # another one is to be ignored, says the XDG specification
        return Path(named)
    if home := environ.get("HOME", ""):
        return Path(home) / ".local" / "state"
    try:
        return Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a home, as some containers have
        return Path(tempfile.gettempdir()) / f"state-{os.getuid()}"
