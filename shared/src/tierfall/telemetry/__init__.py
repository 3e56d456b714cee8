"""Traces and what metrics have in common. Importing this imports no OpenTelemetry."""

from tierfall.telemetry.choose import tracer_from
from tierfall.telemetry.span import NO_SPAN, OFF, Attributes, Kind, Span, Tracer

__all__ = ["NO_SPAN", "OFF", "Attributes", "Kind", "Span", "Tracer", "tracer_from"]
