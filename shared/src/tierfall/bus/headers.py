"""NATS headers, for the few subjects that need them: JetStream's (ADR-4 of NATS's architecture decisions)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = b"NATS/1.0"
NEWLINE: Final = b"\r\n"


def encode(headers: Mapping[str, str]) -> bytes:
    """The block that stands before a message's payload.

    Raises:
        ValueError: A name or value that would break the block.
    """
    for name, value in headers.items():
        if not name or ":" in name or " " in name or not (name + value).isprintable():
            raise ValueError(f"not a NATS header: {name!r}: {value!r}")
    lines = [VERSION, *(f"{name}: {value}".encode() for name, value in headers.items())]
    return NEWLINE.join([*lines, b"", b""])


def find(block: bytes, name: str) -> str:
    """The first value under this name, which is compared as it is written; empty if there is none."""
    for line in block.split(NEWLINE)[1:]:
        key, _, value = line.partition(b":")
        if key == name.encode():
            return value.strip().decode()
    return ""


def status(block: bytes) -> int:
    """The code in the first line when the server speaks for itself (100, 404, 503); 0 in other messages."""
    code = block.partition(NEWLINE)[0].removeprefix(VERSION).strip().partition(b" ")[0]
    return int(code) if code.isdigit() else 0
