"""How many files a process may have open: each connection is one."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
from typing import Final

FEW: Final = 1024
"""Below this a limit is worth a word: a few hundred clients are enough to meet it."""
MOST: Final = 1 << 20
"""Asked for where the system has no hard limit."""
HOW_TO_RAISE: Final = "raise it with `ulimit -n`, LimitNOFILE= of systemd, or `ulimits: nofile` of Docker"

_log: Final = logging.getLogger("tierfall.files")


def raise_limit() -> int:
    """Raises the soft limit of open files to the hard one, and says so where that is still low.

    Systems set the soft one low for programs with ``select()``, which knows no more than 1024 files.

    Returns:
        The limit that is in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        wanted = min(soft, MOST) if soft != resource.RLIM_INFINITY else MOST
    else:
        with contextlib.suppress(ValueError, OSError):  # the kernel may have a limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if wanted < FEW:
        _log.warning(
            "this process may have only %d files open, and each connection is one: %s", wanted, HOW_TO_RAISE
        )
    return wanted


def limit() -> int:
    """How many files this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if soft == resource.RLIM_INFINITY else soft


def exhausted() -> bool:
    """Whether this process cannot open a single file more."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return False
