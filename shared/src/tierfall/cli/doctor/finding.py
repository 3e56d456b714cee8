"""One line of the doctor's report."""

from __future__ import annotations

import enum

import msgspec


class Level(enum.Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Something is missing or odd, and requests are answered all the same."""
    FAIL = "FAIL"
    """Some request cannot be answered because of it."""


class Finding(msgspec.Struct, frozen=True):
    """What one check found.

    Attributes:
        level: How bad it is.
        subject: What was looked at: ``config``, ``nats``, ``tier vllm``.
        text: What it means. Never holds a secret.
        command: What to type about it; empty when there is nothing to do.
    """

    level: Level
    subject: str
    text: str
    command: str = ""
