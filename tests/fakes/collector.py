"""A fake OpenTelemetry collector: takes OTLP over HTTP and keeps the spans, to be asked about their tree."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


class SeenSpan(NamedTuple):
    """One span as it arrived."""

    service: str
    name: str
    kind: str
    """``server`` or ``client``."""
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[str]
    failed: bool

    @property
    def took_s(self) -> float:
        """From its begin to its end."""
        return (self.end_ns - self.start_ns) / 1e9


class FakeCollector:
    """Listens on a port of its own while entered.

    Attributes:
        spans: What has arrived, in the order of arrival.
        raw: The bodies, to search for what must never be in them.
    """

    def __init__(self) -> None:
        self.spans: list[SeenSpan] = []
        self.raw: list[bytes] = []
        self._app = web.Application()
        self._app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(self._app, access_log=None)

    async def __aenter__(self) -> Self:
        """Listens."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops listening."""
        await self._runner.cleanup()

    def roots(self) -> list[SeenSpan]:
        """The spans whose parent has not arrived."""
        known = {span.span_id for span in self.spans}
        return [span for span in self.spans if span.parent_id not in known]

    def children(self, of: SeenSpan) -> list[SeenSpan]:
        """The spans below one, in the order in which they began."""
        found = [span for span in self.spans if span.parent_id == of.span_id]
        return sorted(found, key=lambda span: span.start_ns)

    def named(self, name: str) -> list[SeenSpan]:
        """The spans of this name, in the order in which they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_ns)

    def tree(self) -> list[str]:
        """Everything that arrived, a line a span, indented below its parent."""
        below = defaultdict(list)
        for span in sorted(self.spans, key=lambda span: span.start_ns):
            below[span.parent_id].append(span)
        lines: list[str] = []

        def draw(span: SeenSpan, depth: int) -> None:
            outcome = span.attributes.get("tierfall.outcome") or span.attributes.get("error.type") or ""
            line = f"{'  ' * depth}{span.service} {span.kind} {span.name} {outcome}"
            lines.append(line.rstrip())
            for child in below[span.span_id]:
                draw(child, depth + 1)

        for root in self.roots():
            draw(root, 0)
        return lines

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = dict(_pairs(resource.resource.attributes))["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_seen(service, span) for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def _seen(service: str, span: Span) -> SeenSpan:
    return SeenSpan(
        service=service,
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=dict(_pairs(span.attributes)),
        events=[event.name for event in sorted(span.events, key=lambda event: event.time_unix_nano)],
        failed=span.status.code == Status.STATUS_CODE_ERROR,
    )


def _pairs(attributes: Any) -> Iterator[tuple[str, Any]]:
    pair: KeyValue
    for pair in attributes:
        yield pair.key, _value(pair.value)


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind or "string_value")
