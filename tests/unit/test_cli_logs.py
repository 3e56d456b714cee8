"""The two forms of a log line."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from fakes.polling import until
from tierfall import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    """The handlers of pytest come back after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_holds_the_fields_beside_the_message() -> None:
    """For machines: one object a line, the process named, a field never in the place of a fixed member."""
    stream = io.StringIO()
    logs.configure("ingress", environ={}, stream=stream)
    logging.getLogger("a.b").warning(
        "two\nlines", extra={"fields": {"tier": "gpu", "level": "mine", "x": {1}, "y": len}}
    )
    line = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert line["message"] == "two\nlines"
    assert (line["service"], line["logger"], line["level"]) == ("ingress", "a.b", "warning")
    assert (line["tier"], line["x"], line["y"]) == ("gpu", [1], str(len))
    assert line["time"].endswith("Z")


def test_a_requests_line_is_as_any_other() -> None:
    """What goes past logging's records is written alike, obeys the level, and reaches who else listens."""
    stream, others = io.StringIO(), io.StringIO()
    logs.configure("ingress", environ={}, stream=stream)
    logger = logging.getLogger("tierfall.a")
    logs.event(logger, "chat", {"model": "m", "level": "mine"})
    logger.info("chat", extra={"fields": {"model": "m", "level": "mine"}})
    lines = [{**json.loads(line), "time": ""} for line in stream.getvalue().splitlines()]
    assert lines[0] == lines[1]
    assert (lines[0]["level"], lines[0]["logger"], lines[0]["model"]) == ("info", "tierfall.a", "m")
    logging.getLogger().addHandler(logging.StreamHandler(others))
    logs.event(logger, "seen", {})
    assert others.getvalue() == "seen\n"
    logs.configure("ingress", "warning", environ={}, stream=stream)
    told = stream.getvalue()
    logs.event(logger, "chat", {})
    assert stream.getvalue() == told


def test_nobody_fails_because_a_line_cannot_be_written() -> None:
    """With a reader that is gone, or a full disk, whoever logs goes on."""

    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    logs.configure("ingress", environ={}, stream=Broken())
    logging.getLogger("tierfall.a").warning("heard by nobody")


def test_json_holds_the_traceback() -> None:
    """A defect's traceback stays on the one line."""
    stream = io.StringIO()
    logs.configure("ingress", environ={}, stream=stream)
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("a").exception("defect")
    assert json.loads(stream.getvalue())["traceback"].endswith("ZeroDivisionError: division by zero")


def test_human_shows_fields_as_pairs_that_can_be_told_apart() -> None:
    """A value with a space, a quote or a line break is quoted."""
    stream = io.StringIO()
    logs.configure("ingress", environ={"TIERFALL_LOG": "human"}, stream=stream)
    fields = {"tier": "gpu", "reason": 'no "luck"\nhere', "s": 0.12345}
    logging.getLogger("a").warning("down", extra={"fields": fields})
    assert stream.getvalue().partition(" ")[2] == (
        'WARNING a: down tier=gpu reason="no \\"luck\\"\\nhere" s=0.123\n'
    )


def test_the_level_and_a_second_call_count() -> None:
    """The second call replaces the first: no line twice."""
    first, second = io.StringIO(), io.StringIO()
    logs.configure("a", environ={}, stream=first)
    logs.configure("a", "warning", environ={}, stream=second)
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


def test_the_environment_sets_our_own_level() -> None:
    """``TIERFALL_LOG_LEVEL`` is for Tierfall's loggers alone: libraries keep quiet."""
    stream = io.StringIO()
    logs.configure("a", environ={"TIERFALL_LOG_LEVEL": "debug"}, stream=stream)
    try:
        logging.getLogger("tierfall.worker").debug("shown")
        logging.getLogger("x").debug("not shown")
    finally:
        logs.configure("a", environ={"TIERFALL_LOG_LEVEL": "nonsense"}, stream=stream)
    logging.getLogger("tierfall.worker").debug("not shown either")
    assert json.loads(stream.getvalue())["message"] == "shown"


async def test_lines_of_a_moment_are_written_together() -> None:
    """In a running process a line costs no write of its own; a warning takes along what waits."""
    stream = io.StringIO()
    logs.configure("a", environ={}, stream=stream)
    logging.getLogger("x").info("first")
    logging.getLogger("x").info("second")
    assert stream.getvalue() == ""
    await until(lambda: stream.getvalue().count("\n") == 2)
    logging.getLogger("x").info("third")
    logging.getLogger("x").warning("loud")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == [
        "first",
        "second",
        "third",
        "loud",
    ]


def test_a_field_that_is_no_json_does_not_lose_the_line() -> None:
    """Half a surrogate pair is no UTF-8, a number may be above JSON's: the line is written anyway."""
    stream = io.StringIO()
    logs.configure("a", environ={}, stream=stream)
    logging.getLogger("x").warning("odd", extra={"fields": {"name": "\ud800", "count": 1 << 70}})
    assert json.loads(stream.getvalue()) == json.loads(stream.getvalue()) | {
        "name": "\ud800",
        "count": 1 << 70,
    }
