"""How every process of Tierfall logs: for people on a terminal, as JSON lines for machines; always to stderr.

What a message is about goes beside the text, so that both forms show it::

    logger.info("backend is down", extra={"fields": {"tier": "vllm", "reason": "connection refused"}})
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

MODE_VARIABLE: Final = "TIERFALL_LOG"
"""``human`` or ``json`` settles the form; anything else leaves it to whether stderr is a terminal."""
LEVEL_VARIABLE: Final = "TIERFALL_LOG_LEVEL"
"""The least level that is shown of Tierfall's own loggers, in any case; other words count for nothing."""

_PLAIN: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/@+,;()[]<>~%*!?"
)


def configure(
    name: str,
    level: str = "INFO",
    *,
    environ: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Sets up the root logger: one handler, one form. Calling it again replaces what it did before.

    Args:
        name: The process's name, a member of each JSON line: ``ingress``, ``worker-cloud``.
        level: The least level that is shown, by its :mod:`logging` name, in any case.
        environ: Where the two variables are looked up; the process's own when left out.
        stream: Where the lines go; stderr when left out.

    Raises:
        ValueError: ``level`` is no level of :mod:`logging`.
    """
    target = sys.stderr if stream is None else stream
    known = os.environ if environ is None else environ
    mode = known.get(MODE_VARIABLE, "")
    human = mode == "human" or (mode != "json" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter(name))
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers[:] = [handler]
    own = logging.getLevelNamesMapping().get(known.get(LEVEL_VARIABLE, "").upper(), logging.NOTSET)
    logging.getLogger("tierfall").setLevel(own)


class HumanFormatter(logging.Formatter):
    """``14:03:07 WARNING tierfall.bus: not connected address=nats://127.0.0.1:4222``; local time."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname:<7} {record.name}: {record.getMessage()}"
        pairs = " ".join(f"{key}={_value(value)}" for key, value in _fields(record).items())
        return "\n".join(part for part in (f"{line} {pairs}".rstrip(), _traceback(self, record)) if part)


_encode: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode


class JsonFormatter(logging.Formatter):
    """One JSON object on one line: time (UTC), level, service, logger, message, then the fields."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        """A field never replaces what every line has."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._name,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line = line | {key: value for key, value in _fields(record).items() if key not in line}
        traceback = _traceback(self, record)
        if traceback:
            line["traceback"] = traceback
        return _encode(line)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _value(value: object) -> str:
    """As it is where that reads as one word; quoted otherwise, which also keeps a line one line."""
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text, ensure_ascii=False)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
