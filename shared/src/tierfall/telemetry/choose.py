"""Whether this process traces: only when the environment names a place to send traces to."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tierfall.telemetry.span import OFF, Tracer

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own: where a collector listens for OTLP over HTTP, as a full or as a base URL."""

_log: Final = logging.getLogger("tierfall.telemetry")


def tracer_from(environ: Mapping[str, str], service: str, instance: str = "") -> Tracer:
    """The process's tracer.

    OpenTelemetry's SDK is imported only if tracing is on; it reads its other standard variables
    (``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``, ``OTEL_RESOURCE_ATTRIBUTES``) itself.

    Args:
        environ: The process's environment.
        service: ``service.name``, unless the environment has another one.
        instance: ``service.instance.id``, likewise.
    """
    if not any(environ.get(name) for name in ENDPOINT_VARIABLES):
        return OFF
    if (
        environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environ.get("OTEL_TRACES_EXPORTER") == "none"
    ):
        return OFF
    try:
        from tierfall.telemetry.otel import OtelTracer  # noqa: PLC0415 - off must not pay for the SDK
    except ImportError:
        _log.warning(
            "%s asks for traces, but OpenTelemetry is not installed: pip install 'tierfall[otel]'",
            " or ".join(name for name in ENDPOINT_VARIABLES if environ.get(name)),
        )
        return OFF
    return OtelTracer(service, instance)
