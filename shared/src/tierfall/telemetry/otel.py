"""Spans that are recorded and sent to a collector: OpenTelemetry's SDK, OTLP over HTTP.

The tracer provider is not made the process's global one: FastAPI and others would add spans of their own, for
every probe. No context variable is used either; a span's parent is always named.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tierfall import __version__
from tierfall.telemetry.span import Attributes, Kind, Span, Tracer, own_traceparent

if TYPE_CHECKING:
    from opentelemetry import trace

NS_PER_S: Final = 1_000_000_000
_KINDS: Final = {Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT}
_propagator: Final = TraceContextTextMapPropagator()
_log: Final = logging.getLogger("tierfall.telemetry")


class OtelTracer(Tracer):
    """Records what the environment's sampler takes, and sends it in batches from a thread.

    Args:
        service: ``service.name``, unless ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` has one.
        instance: ``service.instance.id``, likewise; none when empty.
    """

    enabled = True

    def __init__(self, service: str, instance: str = "") -> None:
        # A retry is no news to anybody; what was given up in the end is an error, and stays one line.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        ours = {"service.name": service, "service.version": __version__}
        if instance:
            ours["service.instance.id"] = instance
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tierfall", __version__)

    def start(self, name: str, kind: Kind, attributes: Attributes, *, traceparent: str = "") -> Span:
        """Begins a span; the sampler decides from the caller's flag and the environment."""
        parent = own_traceparent(traceparent)
        context = _propagator.extract({"traceparent": parent}, Context()) if parent else Context()
        return _begin(self._tracer, name, kind, attributes, context)

    def close(self, timeout_s: float) -> None:
        """Sends what is left. A collector that hangs must not keep the process: its thread is left behind."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces: last batch", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            _log.warning("the last spans could not be sent within %g s", timeout_s)


class OtelSpan(Span):
    """A span that is recorded."""

    __slots__ = ("_span", "_tracer", "trace_id")
    recording = True

    def __init__(self, tracer: trace.Tracer, span: trace.Span, traceparent: str) -> None:
        super().__init__(traceparent)
        self._tracer = tracer
        self._span = span
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span:
        """A span below this one."""
        return _begin(self._tracer, name, kind, attributes, set_span_in_context(self._span, Context()))

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""
        self._span.set_attributes(dict(attributes))

    def event(self, name: str, *, at: float | None = None) -> None:
        """Notes an event."""
        self._span.add_event(name, timestamp=None if at is None else int(at * NS_PER_S))

    def fail(self, error_type: str) -> None:
        """Sets the status, without a description: an error's message may repeat a prompt."""
        self._span.set_status(StatusCode.ERROR)
        self._span.set_attribute("error.type", error_type)

    def end(self) -> None:
        """Hands it to the exporter's thread."""
        self._span.end()


def _begin(tracer: trace.Tracer, name: str, kind: Kind, attributes: Attributes, context: Context) -> Span:
    span = tracer.start_span(name, context, _KINDS[kind], dict(attributes))
    carrier: dict[str, Any] = {}
    _propagator.inject(carrier, set_span_in_context(span, Context()))
    traceparent = carrier.get("traceparent", "")
    return OtelSpan(tracer, span, traceparent) if span.is_recording() else Span(traceparent)
