"""``tierfall import litellm FILE``: writes the new file, and says on stderr what the import could not do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tierfall.cli.importer.convert import convert
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import TextIO

    from tierfall.cli.importer.convert import Converted

OWNER_ONLY: Final = 0o600
EVERYBODY: Final = 0o666
"""Less the process's umask."""


def run(
    path: Path,
    *,
    output: Path | None,
    force: bool,
    wanted: Sequence[str],
    environ: Mapping[str, str],
    out: TextIO,
    err: TextIO,
) -> int:
    """Imports one file.

    Args:
        path: LiteLLM's ``config.yaml``.
        output: Where the new file goes; to ``out`` when left out.
        force: Whether a file that is there already is written over.
        wanted: Models that clients use through a wildcard name.
        environ: See :func:`tierfall.cli.importer.convert`.
        out: Gets the new file without ``output``.
        err: Gets the findings.

    Returns:
        The exit status, 0; findings do not change it.

    Raises:
        ConfigError: Nothing was written; the message says why.
    """
    if output is not None and output.exists() and not force:
        raise ConfigError(f"{output}: is there already; --force writes over it")
    made = convert(path, environ, wanted)
    if output is None:
        out.write(made.text)
    else:
        _write(output, made)
    for line in made.findings:
        print(line, file=err)
    if output is not None:
        print(f"{output} is written. Next: tierfall check {output}", file=err)
    return 0


def _write(path: Path, made: Converted) -> None:
    """A file that holds a key is its owner's alone."""
    mode = OWNER_ONLY if made.holds_secrets else EVERYBODY
    try:
        if path.is_file():
            path.unlink()  # or it would keep its mode
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(made.text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
