"""How every process of Tierfall logs: for people on a terminal, as JSON lines for machines; always to stderr.

What a message is about goes beside the text, so that both forms show it::

    logger.info("backend is down", extra={"fields": {"tier": "vllm", "reason": "connection refused"}})
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

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
    handler = BatchHandler(target, HumanFormatter() if human else JsonFormatter(name))
    # What no line shows need not be looked up for each (logging's own advice, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - the documented way
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers[:] = [handler]
    own = logging.getLevelNamesMapping().get(known.get(LEVEL_VARIABLE, "").upper(), logging.NOTSET)
    logging.getLogger("tierfall").setLevel(own)


def event(logger: logging.Logger, text: str, fields: dict[str, Any]) -> None:
    """An ``INFO`` line of which there is one for each request.

    It goes past logging's records, which cost more than all that is counted of a request, as long as our own
    handler is the root logger's only one. What is hung on loggers below does not see it then.
    """
    handlers = logging.root.handlers
    if len(handlers) != 1 or not isinstance(handlers[0], BatchHandler):
        logger.info(text, extra={"fields": fields})
    elif logger.isEnabledFor(logging.INFO):
        handlers[0].event(logger.name, text, fields)


class Told(NamedTuple):
    """What a line says."""

    at: float
    """Unix seconds."""
    level: str
    logger: str
    text: str
    fields: dict[str, Any]
    traceback: str = ""


class LineFormatter(logging.Formatter):
    """What the two forms have in common."""

    def format(self, record: logging.LogRecord) -> str:
        """A record's line, and its traceback if there is one."""
        level, traceback = record.levelname, _traceback(self, record)
        told = Told(record.created, level, record.name, record.getMessage(), _fields(record), traceback)
        return self.line(told)

    def line(self, told: Told) -> str:
        """All of it, on one line but for the traceback."""
        raise NotImplementedError


class BatchHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of a moment together; a warning, or a line outside of an event loop, at once."""

    def __init__(self, stream: TextIO, form: LineFormatter) -> None:
        super().__init__(stream)
        self.setFormatter(form)
        self._form = form
        self._lines: list[str] = []
        self._due = False

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one line; logging holds the handler's lock meanwhile."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a record that cannot be formatted is logging's own matter
            self.handleError(record)
        else:
            self._add(line, at_once=record.levelno >= logging.WARNING)

    def event(self, logger: str, text: str, fields: dict[str, Any]) -> None:
        """Takes a line that is in no record."""
        self._add(self._form.line(Told(time.time(), "INFO", logger, text, fields)), at_once=False)

    def _add(self, line: str, *, at_once: bool) -> None:
        self._lines.append(line)
        if at_once:
            self.flush()
        elif not self._due:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self.flush()
            else:
                self._due = True
                loop.call_later(WRITE_WITHIN_S, self._write_due)

    def flush(self) -> None:
        """Writes what there is; called at the process's end, too."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines:
                with contextlib.suppress(OSError):  # nobody reads, or the disk is full: no reason to fail
                    self.stream.write("\n".join([*lines, ""]))
                    super().flush()
        finally:
            self.release()

    def _write_due(self) -> None:
        self._due = False
        self.flush()


class HumanFormatter(LineFormatter):
    """``14:03:07 WARNING tierfall.bus: not connected address=nats://127.0.0.1:4222``; local time."""

    def line(self, told: Told) -> str:
        """One line, and the traceback below it."""
        clock = time.strftime("%H:%M:%S", time.localtime(told.at))
        line = f"{clock} {told.level:<7} {told.logger}: {told.text}"
        pairs = " ".join(f"{key}={_value(value)}" for key, value in told.fields.items())
        return "\n".join(part for part in (f"{line} {pairs}".rstrip(), told.traceback) if part)


_encoder: Final = msgspec.json.Encoder(enc_hook=str)


class JsonFormatter(LineFormatter):
    """One JSON object on one line: time (UTC), level, service, logger, message, then the fields."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._second = 0
        self._second_text = ""

    def line(self, told: Told) -> str:
        """A field never replaces what every line has."""
        at, level, logger, text, fields, traceback = told
        line: dict[str, Any] = {
            "time": self._time(at),
            "level": level.lower(),
            "service": self._name,
            "logger": logger,
            "message": text,
        }
        if line.keys().isdisjoint(fields):
            line.update(fields)
        else:
            line |= {key: value for key, value in fields.items() if key not in line}
        if traceback:
            line["traceback"] = traceback
        try:
            return _encoder.encode(line).decode()
        except (TypeError, ValueError):  # a lone surrogate, a number above all: the slow way knows them
            return json.dumps(line, default=str)

    def _time(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._second_text}.{int((at - second) * 1000):03d}Z"


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
