"""Service discovery as NATS's own tools speak it: ``nats micro ls``, ``info`` and ``stats``.

The protocol is ADR-32 of NATS's architecture decisions. It is answered here, without nats-py's ``micro``,
whose services cannot leave their queue group without cancelling the handlers that run.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tierfall.bus.message import Callback, Message

PREFIX: Final = "$SRV"
VERBS: Final = ("PING", "INFO", "STATS")
TYPE: Final = "io.nats.micro.v1"
NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
VERSION: Final = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
ENDPOINT_STATS: Final = {
    "num_requests": 0,
    "num_errors": 0,
    "last_error": "",
    "processing_time": 0,
    "average_processing_time": 0,
}
"""What ADR-32 wants of each endpoint, in counts and nanoseconds."""


class Publish(Protocol):
    """As :meth:`tierfall.bus.Bus.publish`."""

    def __call__(self, subject: str, payload: bytes) -> None:
        """Queues a message."""


class Service:
    """One instance of a service with one endpoint.

    Args:
        name: The kind of service: letters, digits, dash and underscore.
        version: Semantic version.
        description: One line for people.
        metadata: What tells this instance from others.
        stats: Called for each STATS; keys that ADR-32 knows (``num_requests``, ``num_errors``,
            ``last_error``, ``processing_time``, ``average_processing_time``, both in ns) stand as such,
            the rest under ``data``.
        subject: What the service listens to, shown as its endpoint.
        queue: Its queue group, likewise.
        publish: As :meth:`tierfall.bus.Bus.publish`.

    Raises:
        ValueError: A name or version that the protocol does not allow.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        description: str,
        metadata: dict[str, str],
        stats: Callable[[], dict[str, Any]],
        subject: str,
        queue: str,
        publish: Publish,
    ) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"not a service name (letters, digits, dash, underscore): {name!r}")
        if not VERSION.fullmatch(version):
            raise ValueError(f"not a semantic version: {version!r}")
        self._id = secrets.token_hex(11)
        self._identity = {"name": name, "id": self._id, "version": version, "metadata": metadata}
        self._endpoint = {"name": name, "subject": subject, "queue_group": queue}
        self._description = description
        self._stats = stats
        self._publish = publish
        now = dt.datetime.now(dt.UTC)
        self._started = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def routes(self) -> Iterator[tuple[str, Callback]]:
        """The nine subjects with their callbacks; without a queue group, as every instance answers."""
        for verb, answer in zip(VERBS, (self._ping, self._info, self._stats_now), strict=True):
            for scope in ("", f".{self._identity['name']}", f".{self._identity['name']}.{self._id}"):
                yield f"{PREFIX}.{verb}{scope}", self._answering(answer)

    def _answering(self, answer: Callable[[], dict[str, Any]]) -> Callback:
        def reply(message: Message) -> None:
            if message.reply:
                self._publish(message.reply, msgspec.json.encode(answer()))

        return reply

    def _ping(self) -> dict[str, Any]:
        return {**self._identity, "type": f"{TYPE}.ping_response"}

    def _info(self) -> dict[str, Any]:
        return {
            **self._identity,
            "type": f"{TYPE}.info_response",
            "description": self._description,
            "endpoints": [{**self._endpoint, "metadata": {}}],
        }

    def _stats_now(self) -> dict[str, Any]:
        found = self._stats()
        known = {key: found.get(key, default) for key, default in ENDPOINT_STATS.items()}
        data = {key: value for key, value in found.items() if key not in ENDPOINT_STATS}
        return {
            **self._identity,
            "type": f"{TYPE}.stats_response",
            "started": self._started,
            "endpoints": [{**self._endpoint, **known, "data": data}],
        }
