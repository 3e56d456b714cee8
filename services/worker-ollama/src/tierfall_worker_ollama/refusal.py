"""What Ollama's HTTP errors mean for the ladder.

Ollama has a status and one English sentence, so sentences are what there is to go by; those here are from its
source as of 0.17 (``server/routes.go``, ``server/sched.go``, ``llm/server.go``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.errors import (
    BackendFault,
    ContextLengthExceeded,
    InvalidRequest,
    ProviderRefused,
    RateLimited,
    TierBusy,
    TierfallError,
    UnsupportedByTier,
    UnsupportedOperation,
)
from tierfall.protocol.operation import Operation
from tierfall_worker_ollama.shape import THINKING_FIELDS

if TYPE_CHECKING:
    from tierfall.worker.backend import Ask
    from tierfall_worker_ollama.client import StatusRefusal

TEXT_LIMIT: Final = 500
# Our configuration's fault, under whatever status: the wrong kind of model, or one too large for the machine.
MISCONFIGURED: Final = (
    "model is required",
    "invalid model name",
    "cannot run this remote model",
    "requires more system memory",
)
# The wrong kind of model for the request's endpoint.
WRONG_KIND: Final = ("does not support chat", "does not support generate", "does not support embed")
# The field that holds the text of a request.
TEXT_FIELDS: Final = {
    Operation.CHAT: "messages",
    Operation.COMPLETIONS: "prompt",
    Operation.EMBEDDINGS: "input",
}
# Answers of some other server: redirects, an unknown path or method.
NOT_OLLAMA: Final = frozenset({301, 302, 303, 307, 308, 404, 405})


class _Error(msgspec.Struct):
    error: str = ""


def explain(refusal: StatusRefusal, ask: Ask) -> TierfallError:
    """The error of the tree for an answer with another status than 200."""
    text = _text(refusal)
    return _by_text(text, ask) or _by_status(refusal, text, ask)


def not_pulled(model: str) -> ProviderRefused:
    """The error for a model that Ollama does not have."""
    return ProviderRefused(f"Ollama does not have {model}; run: ollama pull {model}")


def _by_text(text: str, ask: Ask) -> TierfallError | None:
    """Sentences that mean the same under every status; Ollama says 500 for some that are the request's."""
    error: TierfallError | None = None
    if "exceeds the context length" in text:
        field = TEXT_FIELDS[ask.operation]
        error = ContextLengthExceeded(f"{field}: longer than the tier's num_ctx", param=field)
    elif any(sentence in text for sentence in WRONG_KIND):
        error = UnsupportedOperation(f"{ask.backend_model} is not a model for /v1{ask.operation.path}")
    elif "does not support insert" in text:
        error = UnsupportedByTier(f"suffix: {ask.backend_model} cannot fill in", param="suffix")
    elif "does not support tools" in text:
        error = UnsupportedByTier(f"tools: {ask.backend_model} cannot call tools", param="tools")
    elif "does not support thinking" in text or "think value" in text:
        param = next((name for name in THINKING_FIELDS if name in ask.body), "think")
        error = UnsupportedByTier(f"{param}: {ask.backend_model} cannot think like that", param=param)
    elif "image input" in text or "vision model not loaded" in text:
        error = UnsupportedByTier(f"messages: {ask.backend_model} takes no images", param="messages")
    elif "JSON schema in format" in text or "invalid format" in text:
        param = "format" if "format" in ask.body else "response_format"
        error = InvalidRequest(f"{param}: Ollama: {text}", param=param)
    elif text.startswith("option "):
        error = InvalidRequest(f"options: Ollama: {text}", param="options")
    elif any(sentence in text for sentence in MISCONFIGURED):
        error = ProviderRefused(f"Ollama cannot serve {ask.backend_model}: {text}")
    return error


def _by_status(refusal: StatusRefusal, text: str, ask: Ask) -> TierfallError:
    error: TierfallError = BackendFault(f"Ollama failed with status {refusal.status}: {text}")
    match refusal.status:
        case 400:
            error = InvalidRequest(f"Ollama: {text}")
        case 401 | 403:
            error = ProviderRefused(f"Ollama refused access: {text}")
        case 404 if "not found" in text:
            error = not_pulled(ask.backend_model)
        case 429:
            error = RateLimited(f"Ollama: {text}", retry_after=_seconds(refusal.retry_after))
        case 503 if "pending requests" in text:
            error = TierBusy("Ollama's own queue is full; a lower max_in_flight queues here instead")
        case status if status in NOT_OLLAMA:
            error = ProviderRefused(f"what listens at the tier's base_url is not Ollama (status {status})")
    return error


def _text(refusal: StatusRefusal) -> str:
    try:
        text = msgspec.json.decode(refusal.text, type=_Error).error
    except (msgspec.DecodeError, RecursionError):
        text = ""
    return text[:TEXT_LIMIT] or "no reason given"


def _seconds(header: str) -> float | None:
    """``Retry-After`` as seconds; the form with a date, which Ollama does not send, is left out."""
    return float(header) if header.isdecimal() else None
