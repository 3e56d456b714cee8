"""Keeps some of the process's files free, so that it never goes deaf to all clients in silence.

At its limit of open files the event loop closes new connections and says nothing. So before that, idle
connections make room for new ones, and where none is idle a new one is answered with a 503; the log tells.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Final

from tierfall import files
from tierfall.errors import TooManyConnections

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall_ingress.connection import Connection

RESERVED_SHARE: Final = 8
"""One part in so many of the files is kept free, for NATS, the config, and what arrives at a time."""
MAX_RESERVED: Final = 4096
MAX_BACKLOG: Final = 2048
"""Connections that wait to be accepted; the event loop takes in all of them at a time."""
LOOKED_AT: Final = 64
"""Connections among which the longest idle one is looked for: all of them could be a million."""
LOG_EVERY_S: Final = 10.0

_log: Final = logging.getLogger("tierfall.ingress")


class Room:
    """The limit of open files, as of the start of the process.

    Args:
        limit: How many files may be open.

    Attributes:
        backlog: For the listening socket: no more at a time than are kept free.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        reserved = min(MAX_RESERVED, limit // RESERVED_SHARE)
        self._most = limit - reserved
        self.backlog = max(1, min(MAX_BACKLOG, reserved // 2))
        self._logged_at = float("-inf")
        self._closed = 0
        self._refused = 0
        self._leaving: set[Connection] = set()

    def make(
        self, descriptor: int, connections: Iterable[Connection], now: float
    ) -> TooManyConnections | None:
        """Makes room for a connection that was just accepted.

        Args:
            descriptor: Its number; systems give out the lowest one that is free.
            connections: All others.
            now: Loop time.

        Returns:
            What it has to be refused with, if nothing could make room.
        """
        if descriptor < self._most:
            return None
        self._close_idle(descriptor - self._most + 1 - len(self._leaving), connections)
        if self._leaving:
            self._tell(now)
            return None
        self._refused += 1
        self._tell(now)
        return TooManyConnections(
            "the gateway has as many connections as it may have files open; try again in a moment",
            retry_after=1.0,
        )

    def gone(self, connection: Connection) -> None:
        """A connection's file is free again."""
        self._leaving.discard(connection)

    def _close_idle(self, count: int, connections: Iterable[Connection]) -> None:
        if count <= 0:
            return
        looked_at = itertools.islice(connections, LOOKED_AT)
        idle = [(since, each) for each in looked_at if (since := each.idle_since) is not None]
        idle.sort(key=lambda found: found[0])
        for _, connection in idle[:count]:
            connection.give_way()
            self._leaving.add(connection)
            self._closed += 1

    def _tell(self, now: float) -> None:
        if now - self._logged_at < LOG_EVERY_S:
            return
        _log.warning(
            "nearly all of the %d files that this process may have open are in use: closed %d idle "
            "connections for new ones and refused %d new ones with a 503; %s",
            self._limit,
            self._closed,
            self._refused,
            files.HOW_TO_RAISE,
        )
        self._logged_at = now
        self._closed = self._refused = 0
