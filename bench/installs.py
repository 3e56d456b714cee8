"""Other gateways, each in an environment of its own under .bench/, fetched on first use from hashed locks."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
BENCH: Final = ROOT / ".bench"
"""Environments, configs and logs."""
_MADE: Final = ".made"


class NotInstallable(Exception):
    """A peer cannot be had here; the message is pip's last word."""


def install(peer: str) -> Path:
    """Makes the peer's environment unless it is there and from the same lock.

    Args:
        peer: ``requirements/bench-<peer>.lock`` says what goes into it.

    Returns:
        The folder of its commands.

    Raises:
        NotInstallable: pip failed: no network, or nothing built for this machine.
    """
    lock = ROOT / "requirements" / f"bench-{peer}.lock"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    home = BENCH / peer
    commands = home / "bin"
    made = home / _MADE
    if made.exists() and made.read_text() == digest:
        return commands
    print(f"Installing {peer} into {home.relative_to(ROOT)}", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    pip: list[str | Path] = [
        commands / "python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
    ]
    hashed: list[str | Path] = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", lock]
    done = subprocess.run([*pip, *hashed], capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        raise NotInstallable((done.stderr.strip() or "pip failed").splitlines()[-1])
    made.write_text(digest)
    return commands


def version(distribution: str, peer: str | None = None) -> str:
    """The installed version of a distribution: the peer's, or this environment's."""
    if peer is None:
        return metadata.version(distribution)
    folders = [str(folder) for folder in (BENCH / peer / "lib").glob("python*/site-packages")]
    return next(found.version for found in metadata.distributions(name=distribution, path=folders))
