"""The ingress's spans: one for the HTTP request, one below it for each attempt.

Names are those of OpenTelemetry's HTTP conventions; what they have no word for is ``tierfall.*``. The GenAI
attributes stand on the worker's span, so that nobody counts an answer's tokens twice.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from tierfall.telemetry import NO_SPAN, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.errors import TierfallError
    from tierfall.protocol.operation import Operation
    from tierfall.telemetry import Span, Tracer
    from tierfall_ingress.ladder import Answer
    from tierfall_ingress.line import Line

FAILED_FROM: Final = 500
"""HTTP conventions: on the serving side a 4xx is the caller's failure, not the span's."""
OK: Final = "ok"
_UNFINISHED: Final = frozenset({"client_gone", "budget_spent"})
"""Outcomes that are no fault of the tier's."""


def begin_request(tracer: Tracer, scope: Mapping[str, Any], traceparent: str) -> Span:
    """The span of one request, below the caller's if it sent a ``traceparent``."""
    if not tracer.enabled:
        return tracer.start("", Kind.SERVER, {}, traceparent=traceparent)
    method, path = scope["method"], scope["path"]
    return tracer.start(
        f"{method} {path}",
        Kind.SERVER,
        {"http.request.method": method, "url.path": path, "url.scheme": scope["scheme"], "http.route": path},
        traceparent=traceparent,
    )


def end_request(
    span: Span,
    *,
    request_id: str,
    model: str,
    status: int,
    failure: TierfallError | None,
    answer: Answer | None,
    attempts: str,
    waited_s: float,
) -> None:
    """Says how the request ended.

    Args:
        span: The request's.
        request_id: ``x-request-id``.
        model: What was asked for, ``other`` if it is not configured.
        status: What the client was sent, if it is still there.
        failure: Why there is no whole answer.
        answer: Whose it was, as far as there is one.
        attempts: The ladder's story, ``vllm=no_workers;ollama=ok``.
        waited_s: How long the request stood in line for a slot.
    """
    if not span.recording:
        return
    told: dict[str, Any] = {
        "http.response.status_code": status,
        "tierfall.request_id": request_id,
        "tierfall.model": model,
        "tierfall.attempts": attempts,
        "tierfall.waited_s": waited_s,
    }
    if answer is not None:
        told |= {"tierfall.tier": answer.tier, "tierfall.worker": answer.worker}
    span.set(told)
    if failure is not None and failure.status >= FAILED_FROM:
        span.fail(failure.slug)
    elif failure is not None:
        span.set({"error.type": failure.slug})
    span.end()


class AttemptTrace:
    """The span of one attempt; ended once, by whoever learns first how the attempt ended.

    Args:
        span: The span.
        epoch: Unix seconds at loop time 0.
    """

    __slots__ = ("_epoch", "_span", "traceparent")

    def __init__(self, span: Span, epoch: float = 0.0) -> None:
        self._span = span
        self._epoch = epoch
        self.traceparent = span.traceparent

    def accepted(self, line: Line) -> None:
        """A worker holds the request."""
        if self._span.recording:
            self._span.set({"tierfall.worker": line.worker})
            self._span.event("accepted", at=self._epoch + line.accepted_at)

    def answers(self, first_at: float, resumed_at: float | None) -> None:
        """There is output for the client.

        Args:
            first_at: Loop time of the attempt's first output.
            resumed_at: Loop time of its first output that the client did not have yet from an attempt that
                broke; None if there was none.
        """
        if self._span.recording:
            self._span.event("first_output", at=self._epoch + first_at)
            if resumed_at is not None:
                self._span.event("resumed", at=self._epoch + resumed_at)

    def end(self, outcome: str) -> None:
        """``ok`` or the slug of the error that ended it."""
        span, self._span = self._span, NO_SPAN
        if span.recording:
            span.set({"tierfall.outcome": outcome})
            if outcome != OK and outcome not in _UNFINISHED:
                span.fail(outcome)
            span.end()


UNTRACED: Final = AttemptTrace(NO_SPAN)


def begin_attempt(
    request: Span, *, tier: str, model: str, operation: Operation, number: int, resumes: bool
) -> AttemptTrace:
    """The span of one attempt on one tier; ``number`` counts the request's attempts from 1."""
    if not request.recording:
        return AttemptTrace(request) if request.traceparent else UNTRACED
    attributes: dict[str, Any] = {
        "tierfall.tier": tier,
        "tierfall.model": model,
        "tierfall.attempt": number,
    }
    if resumes:
        attributes["tierfall.resumes"] = True
    epoch = time.time() - asyncio.get_running_loop().time()
    return AttemptTrace(request.child(f"{operation} {tier}", Kind.CLIENT, attributes), epoch)
