"""How every process of Tierfall logs: for people on a terminal, as JSON lines for machines; always to stderr.

What a message is about goes beside the text, so that both forms show it::

    logger.info("backend is down", extra={"fields": {"tier": "vllm", "reason": "connection refused"}})
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

MODE_VARIABLE: Final = "TIERFALL_LOG"
"""``human`` or ``json`` settles the form; anything else leaves it to whether stderr is a terminal."""
LEVEL_VARIABLE: Final = "TIERFALL_LOG_LEVEL"
"""The least level that is shown of Tierfall's own loggers, in any case; other words count for nothing."""

WRITE_WITHIN_S: Final = 0.05
"""How long a line that is no warning may wait for others: a write for each would be a tenth of a request."""

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
    handler = BatchHandler(target)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter(name))
    # What no line shows need not be looked up for each (logging's own advice, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - the documented way
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers[:] = [handler]
    own = logging.getLevelNamesMapping().get(known.get(LEVEL_VARIABLE, "").upper(), logging.NOTSET)
    logging.getLogger("tierfall").setLevel(own)


class BatchHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of a moment together; a warning, or a line outside of an event loop, at once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._due = False

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one line; logging holds the handler's lock meanwhile."""
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted is logging's own matter
            self.handleError(record)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or record.levelno >= logging.WARNING:
            self.flush()
        elif not self._due:
            self._due = True
            loop.call_later(WRITE_WITHIN_S, self._write_due)

    def flush(self) -> None:
        """Writes what there is; called at the process's end, too."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("\n".join([*lines, ""]))
                super().flush()
        finally:
            self.release()

    def _write_due(self) -> None:
        self._due = False
        self.flush()


class HumanFormatter(logging.Formatter):
    """``14:03:07 WARNING tierfall.bus: not connected address=nats://127.0.0.1:4222``; local time."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname:<7} {record.name}: {record.getMessage()}"
        pairs = " ".join(f"{key}={_value(value)}" for key, value in _fields(record).items())
        return "\n".join(part for part in (f"{line} {pairs}".rstrip(), _traceback(self, record)) if part)


_encoder: Final = msgspec.json.Encoder(enc_hook=str)


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
        try:
            return _encoder.encode(line).decode()
        except (TypeError, ValueError):  # a lone surrogate, a number above all: the slow way knows them
            return json.dumps(line, default=str)


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
