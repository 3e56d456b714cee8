"""What is wrong with a config file, and where: collected first, told all at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class Problem(msgspec.Struct, frozen=True):
    """One thing to mend.

    Attributes:
        path: Where in the file, as its reader would write it: ``models["groq/llama"].deadlines.idle``,
            ``server.api_keys[1]``. Empty for the file as a whole.
        text: What is there and what would be right. Never holds a secret.
        line: Counted from 1; 0 when it is not known.
    """

    path: str
    text: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


def within(path: str, key: str | int) -> str:
    """The path of one entry: ``models`` and ``a/b`` give ``models["a/b"]``, a list's index ``models[0]``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _PLAIN_KEY.fullmatch(key):
        return f'{path}["{key}"]'
    return f"{path}.{key}" if path else key


def refusal(source: str, problems: Iterable[Problem]) -> ConfigError:
    """One error for all problems, one line each: ``tierfall.yaml:12: models.a.tier: ...``."""
    lines = [
        f"{source}:{problem.line}: {problem}" if problem.line else f"{source}: {problem}"
        for problem in sorted(problems, key=lambda problem: problem.line)
    ]
    return ConfigError("\n".join(lines))
