"""Metrics as text, in the form that a scraper accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_OPENMETRICS: Final = "application/openmetrics-text"
_VERSIONS: Final = frozenset({"", "0.0.1", "1.0.0"})
"""Of OpenMetrics, as far as there are any; who names none takes the newest."""


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All metrics, and their content type: OpenMetrics if the scraper takes it, else Prometheus's own text.

    The client library's own choice raises for a version that is no number, and repeats the scraper's words in
    the content type; any client that reaches the port may scrape.

    Args:
        registry: What is collected.
        accept: The ``Accept`` header, whatever is in it.
    """
    for accepted in accept.split(","):
        kind, *parameters = (part.strip() for part in accepted.split(";"))
        named = dict(parameter.partition("=")[::2] for parameter in parameters)
        if kind.lower() == _OPENMETRICS and named.get("version", "") in _VERSIONS:
            body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
            return body, openmetrics.CONTENT_TYPE_LATEST
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_PLAIN_0_0_4
