"""A trace as Jaeger's query API tells it, as a tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

US_PER_MS: Final = 1000


@dataclass(frozen=True)
class Span:
    """One span with what is below it.

    Attributes:
        kind: ``server`` or ``client``.
        start_us: Unix microseconds.
        took_us: Microseconds.
        events: Their names, in order.
        children: In the order in which they began.
    """

    service: str
    name: str
    kind: str
    start_us: int
    took_us: int
    attributes: Mapping[str, Any]
    events: tuple[str, ...]
    children: list[Span] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether its status is an error."""
        return self.attributes.get("error") is True

    @property
    def outcome(self) -> str:
        """``ok`` or why it ended; empty where it does not say."""
        return str(self.attributes.get("tierfall.outcome") or self.attributes.get("error.type") or "")


def roots(traces: Mapping[str, Any]) -> list[Span]:
    """The spans of the first trace that have no parent in it; none if the answer holds no trace.

    Args:
        traces: The body of ``GET /api/traces/{id}``.
    """
    found = traces.get("data") or []
    if not found:
        return []
    processes, told = found[0]["processes"], sorted(found[0]["spans"], key=lambda span: span["startTime"])
    spans = {one["spanID"]: _span(one, processes[one["processID"]]["serviceName"]) for one in told}
    tops: list[Span] = []
    for one in told:
        parent = next((ref["spanID"] for ref in one["references"] if ref["refType"] == "CHILD_OF"), "")
        below = spans[parent].children if parent in spans else tops
        below.append(spans[one["spanID"]])
    return tops


def drawn(span: Span, depth: int = 0) -> Iterator[str]:
    """A line a span, indented below its parent."""
    told = f"{'  ' * depth}{span.service} [{span.kind}] {span.name}"
    happened = f"  ({', '.join(span.events)})" if span.events else ""
    yield f"{told}  {span.took_us / US_PER_MS:.0f} ms  {span.outcome}{happened}".rstrip()
    for child in span.children:
        yield from drawn(child, depth + 1)


def _span(told: Mapping[str, Any], service: str) -> Span:
    attributes = {tag["key"]: tag["value"] for tag in told["tags"]}
    logs = sorted(told.get("logs") or [], key=lambda log: log["timestamp"])
    events = (entry["value"] for log in logs for entry in log["fields"] if entry["key"] == "event")
    return Span(
        service=service,
        name=told["operationName"],
        kind=str(attributes.get("span.kind", "")),
        start_us=told["startTime"],
        took_us=told["duration"],
        attributes=attributes,
        events=tuple(events),
    )
