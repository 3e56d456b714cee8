"""Spans and the tracer, in the form that costs nothing: what services use while tracing is off.

:mod:`tierfall.telemetry.otel` has the ones that record. Attributes and events never hold text of a prompt or
an answer, nor a provider's error message, which may repeat some.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Final

AttributeValue = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, AttributeValue]

_TRACEPARENT: Final = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<parent>(?!0{16})[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?",
    re.DOTALL,
)
"""W3C Trace Context, section 3.2: version, trace id, parent id, flags, and what a newer version adds."""
_KNOWN_FLAGS: Final = 0x03
"""Sampled, and random trace id."""


class Kind(enum.Enum):
    """Which side of a call a span stands for."""

    SERVER = "server"
    CLIENT = "client"


class Span:
    """A span that is not recorded.

    Args:
        traceparent: What a callee is told, so that a trace of the caller's goes through a gateway that does
            not record it.

    Attributes:
        recording: Whether what is set here will be seen by anybody.
        trace_id: 32 hexadecimal digits; empty when the trace is not recorded.
        traceparent: The W3C header for callees; empty when there is no trace.
    """

    __slots__ = ("traceparent",)
    recording = False
    trace_id = ""

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent

    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span:  # noqa: ARG002 - as recorded ones
        """A span below this one, begun now."""
        return self

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""

    def event(self, name: str, *, at: float | None = None) -> None:
        """Notes that something happened, at ``at`` (Unix seconds) or now."""

    def fail(self, error_type: str) -> None:
        """Marks the span as failed; ``error_type`` is the error's slug, the convention's ``error.type``."""

    def end(self) -> None:
        """Ends it; to be called once."""


NO_SPAN: Final = Span()


class Tracer:
    """Tracing that is off.

    Attributes:
        enabled: Whether any span of this tracer may be recorded.
    """

    enabled = False

    def start(self, name: str, kind: Kind, attributes: Attributes, *, traceparent: str = "") -> Span:  # noqa: ARG002 - as the recording one
        """Begins a span that has its parent, if any, in another process.

        Args:
            name: Of low cardinality.
            kind: Which side of the call it is.
            attributes: Those that a sampler may want to see.
            traceparent: The caller's; what is no W3C traceparent counts as none.
        """
        ours = own_traceparent(traceparent)
        return Span(ours) if ours else NO_SPAN

    def close(self, timeout_s: float) -> None:
        """Sends what was recorded, for at most ``timeout_s`` seconds; blocks meanwhile."""


OFF: Final = Tracer()


def own_traceparent(value: str) -> str:
    """A caller's traceparent as version 00, written by us; empty for what is none.

    Of a newer version only the part that version 00 has is read, as the recommendation asks for (section
    4.3); what stands behind it, which may be long and anything, does not travel on.
    """
    found = _TRACEPARENT.fullmatch(value)
    if found is None or (found["version"] == "00" and found["rest"]):
        return ""
    return f"00-{found['trace']}-{found['parent']}-{int(found['flags'], 16) & _KNOWN_FLAGS:02x}"
