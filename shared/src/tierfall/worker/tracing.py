"""A worker's spans: one for the request that it holds, one below it for each time it asks the backend.

The attributes are those of OpenTelemetry's GenAI conventions (status: development; since 2026 in a repository
of their own, semantic-conventions-genai). No message and no answer is recorded, only their sizes in tokens.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from tierfall.config import CloudTier
from tierfall.errors import TierfallError
from tierfall.protocol.operation import Operation
from tierfall.telemetry import NO_SPAN, Kind

if TYPE_CHECKING:
    from tierfall.config import Tier
    from tierfall.protocol.envelope import Ending, Envelope
    from tierfall.telemetry import Span, Tracer
    from tierfall.worker.backend import Ask

OK: Final = "ok"
CANCELLED: Final = "cancelled"
"""The outcome of a request that its ingress did not want any longer."""
INT64_LIMIT: Final = 1 << 63
"""OTLP has no larger integers: one would spoil its whole batch."""
_PROVIDERS: Final = {
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
    "azure": "azure.ai.openai",
}
"""Where the conventions' well-known value differs from the name in the config."""
_OPERATIONS: Final = {
    Operation.CHAT: "chat",
    Operation.COMPLETIONS: "text_completion",
    Operation.EMBEDDINGS: "embeddings",
}
"""``gen_ai.operation.name``, and the first word of the span's name."""
_NUMBERS: Final[dict[str, tuple[str, type[int | float]]]] = {
    "max_tokens": ("gen_ai.request.max_tokens", int),
    "max_completion_tokens": ("gen_ai.request.max_tokens", int),
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", int),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "seed": ("gen_ai.request.seed", int),
    "dimensions": ("gen_ai.embeddings.dimension.count", int),
}
"""A backend may refuse two types under one name, so ``"temperature": 1`` is told as 1.0."""
EFFORTS: Final = frozenset({"none", "minimal", "low", "medium", "high", "xhigh"})
"""Of ``reasoning_effort``; anything else may be text of the caller's."""


class _Answered(msgspec.Struct):
    model: Any = None


_answered: Final = msgspec.json.Decoder(_Answered)


class TierTrace:
    """What all spans of one tier have in common.

    Args:
        tracer: The process's.
        name: The tier's name.
        tier: Its config.
        worker: The process's id.
        base_url: Where the tier's backend is.
    """

    def __init__(self, tracer: Tracer, name: str, tier: Tier, worker: str, base_url: str) -> None:
        self._tracer = tracer
        self._provider = {"gen_ai.provider.name": provider_name(tier)}
        self._tierfall = {"tierfall.tier": name, "tierfall.worker": worker}
        self._server = server_of(base_url)

    def begin(self, envelope: Envelope) -> JobTrace:
        """The span of a request that this worker has accepted, below the ingress's attempt."""
        if not self._tracer.enabled:
            return NO_TRACE
        operation = _OPERATIONS[envelope.operation]
        attributes: dict[str, Any] = {
            **self._provider,
            **self._tierfall,
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": envelope.backend_model,
            "tierfall.model": envelope.model,
            "tierfall.attempt": envelope.attempt,
            "tierfall.request_id": envelope.request_id,
        }
        if envelope.operation is not Operation.EMBEDDINGS:
            attributes["gen_ai.request.stream"] = True  # towards the backend, always
        span = self._tracer.start(
            f"{operation} {envelope.backend_model}", Kind.SERVER, attributes, traceparent=envelope.traceparent
        )
        return JobTrace(span, self._server)


class JobTrace:
    """The spans of one request: the server's, and the client's of the backend call that runs now."""

    __slots__ = ("_call", "_server", "_span")

    def __init__(self, span: Span, server: dict[str, Any]) -> None:
        self._span = span
        self._server = server
        self._call = NO_SPAN

    @property
    def trace_id(self) -> str:
        """Empty when nothing is recorded."""
        return self._span.trace_id

    def ask(self, ask: Ask) -> Ask:
        """The backend is to be asked; the same request with the call's own traceparent."""
        if not self._span.recording:
            return ask
        self._span.set(_asked(ask))
        self._call = self._span.child("POST", Kind.CLIENT, {"http.request.method": "POST", **self._server})
        return msgspec.structs.replace(ask, traceparent=self._call.traceparent)

    def first_output(self, chunk: bytes, after_s: float) -> None:
        """The backend's first real output is there, ``after_s`` seconds after it was asked."""
        if self._span.recording:
            self._span.set({"gen_ai.response.time_to_first_chunk": after_s})
            self._span.event("first_output")
            model = _answered.decode(chunk).model
            if isinstance(model, str) and model:
                self._span.set({"gen_ai.response.model": model})

    def answered(self, error: BaseException | None) -> None:
        """The backend call is over."""
        call, self._call = self._call, NO_SPAN
        if call.recording:
            if isinstance(error, TierfallError):
                call.fail(error.slug)
            elif error is not None and not isinstance(error, asyncio.CancelledError):
                call.fail(type(error).__qualname__)
            call.end()

    def end(self, outcome: str, *, answer_id: str, ending: Ending | None, why: str) -> None:
        """The request is over.

        Args:
            outcome: ``ok``, ``cancelled`` or an error's slug.
            answer_id: The answer's id.
            ending: How the answer ended, if it is whole.
            why: What the ingress said when it cancelled.
        """
        span = self._span
        if not span.recording:
            return
        span.set({"tierfall.outcome": outcome})
        if why:
            span.set({"tierfall.cancelled_because": why})
        if ending is not None:
            span.set(
                {
                    "gen_ai.response.id": answer_id,
                    "gen_ai.response.finish_reasons": ending.finish_reasons,
                    "gen_ai.usage.input_tokens": ending.prompt_tokens,
                    "gen_ai.usage.output_tokens": ending.completion_tokens,
                }
            )
        if outcome not in {OK, CANCELLED}:
            span.fail(outcome)
        span.end()


NO_TRACE: Final = JobTrace(NO_SPAN, {})


def provider_name(tier: Tier) -> str:
    """``gen_ai.provider.name``: the conventions' well-known value where there is one, else the kind."""
    if not isinstance(tier, CloudTier):
        return tier.kind
    return _PROVIDERS.get(tier.provider, tier.provider)


def server_of(base_url: str) -> dict[str, Any]:
    """``server.address`` and ``server.port`` of a backend; nothing for an empty URL."""
    parts = urlsplit(base_url)
    if not parts.hostname:
        return {}
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname, "server.port": port}


def _asked(ask: Ask) -> dict[str, Any]:
    """Parameters that are numbers or one of a few words; nothing that may be text of the caller's."""
    found: dict[str, Any] = {}
    for field, (name, kind) in _NUMBERS.items():
        value = _given(ask, field)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < INT64_LIMIT:
            found[name] = kind(value)
    choices = _given(ask, "n")
    if isinstance(choices, int) and not isinstance(choices, bool) and 1 < choices < INT64_LIMIT:
        found["gen_ai.request.choice.count"] = choices
    effort = _given(ask, "reasoning_effort")
    if isinstance(effort, str) and effort in EFFORTS:
        found["gen_ai.request.reasoning.level"] = effort
    return found


def _given(ask: Ask, field: str) -> Any:
    raw = ask.body.get(field)
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except msgspec.DecodeError:  # a number out of range
        return None
