"""The names of buckets, and the NATS subjects that stand for what can be done with one.

A bucket is a stream ``KV_<name>`` on the subjects ``$KV.<name>.>`` (ADR-8 of NATS's architecture decisions),
so the ``nats kv`` command reads and writes it too.
"""

from __future__ import annotations

import re
from typing import Final

QUOTA: Final = "tierfall_quota"
"""How much of which quota is spent."""
PROVIDERS: Final = "provider"
"""The first token of its keys for the accounts of providers' keys, which cloud workers write."""
CLIENTS: Final = "client"
"""Of those for the accounts of client keys, which ingresses write."""
TRIED: Final = f"{CLIENTS}.check"
"""A key of the bucket of quotas that is written to find out whether it can be; it holds an empty account."""
KEYS: Final = "tierfall_keys"
"""The client keys made with ``tierfall keys``."""

API: Final = "$JS.API"
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
KEY: Final = re.compile(r"[-/_=A-Za-z0-9]+(\.[-/_=A-Za-z0-9]+)*")
KEY_CHARACTERS: Final = 512


def stream(bucket: str) -> str:
    """The stream that holds a bucket."""
    return f"KV_{bucket}"


def entries(bucket: str) -> str:
    """All its keys' subjects."""
    return f"$KV.{bucket}.>"


def entry(bucket: str, key: str) -> str:
    """One key's subject.

    Raises:
        ValueError: Not a key: letters, digits, ``- / _ =``, and dots between them.
    """
    if not KEY.fullmatch(key) or len(key) > KEY_CHARACTERS:
        raise ValueError(f"not a key of a bucket (letters, digits, - / _ = and single dots): {key!r}")
    return f"$KV.{bucket}.{key}"


def info(bucket: str) -> str:
    """Asks whether the bucket is there, and how it is set up."""
    return f"{API}.STREAM.INFO.{stream(bucket)}"


def create(bucket: str) -> str:
    """Makes it."""
    return f"{API}.STREAM.CREATE.{stream(bucket)}"


def update(bucket: str) -> str:
    """Changes how it is set up."""
    return f"{API}.STREAM.UPDATE.{stream(bucket)}"


def read(bucket: str) -> str:
    """Asks the stream's leader for a key's last entry."""
    return f"{API}.STREAM.MSG.GET.{stream(bucket)}"


def consume(bucket: str, consumer: str) -> str:
    """Makes a consumer of all the bucket's entries."""
    return f"{API}.CONSUMER.CREATE.{stream(bucket)}.{consumer}"


def to_use(bucket: str, under: str = "") -> tuple[str, ...]:
    """What a user must be allowed to publish so as to read a bucket that is there, and to write in it.

    Args:
        bucket: Its name.
        under: Only keys below this first token may be written; all may be read.
    """
    return (info(bucket), read(bucket), f"$KV.{bucket}.{under}.>" if under else entries(bucket))


def to_watch(bucket: str) -> tuple[str, ...]:
    """Likewise to watch it. Whoever may do this chooses where NATS delivers the entries."""
    return (info(bucket), consume(bucket, ">"))


def to_make(bucket: str) -> tuple[str, ...]:
    """Likewise to make it. Whoever may do this chooses which subjects it records, also those of requests."""
    return (create(bucket), update(bucket))


def to_look_at(bucket: str) -> tuple[str, ...]:
    """What the ``nats kv`` command asks besides, to list and read."""
    return (
        f"{API}.INFO",
        f"{API}.STREAM.NAMES",
        f"{API}.STREAM.LIST",
        f"{API}.DIRECT.GET.{stream(bucket)}.>",
        f"{API}.CONSUMER.INFO.{stream(bucket)}.>",
        f"{API}.CONSUMER.DELETE.{stream(bucket)}.>",
        f"$JS.FC.{stream(bucket)}.>",
    )
