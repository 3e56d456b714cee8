"""From a provider's failure to the error tree, so that the ladder knows what to do about it."""

from __future__ import annotations

import datetime as dt
import email.utils
import re
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.errors import (
    BackendDown,
    BackendFault,
    ContentFiltered,
    ContextLengthExceeded,
    InvalidRequest,
    ProviderRefused,
    QuotaExhausted,
    RateLimited,
    TierfallError,
    UnsupportedByTier,
)
from tierfall.upstream.complaint import Complaint

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_REFUSED: Final = "provider_key_refused"
"""Code of a :class:`ProviderRefused` that the API key caused: until it is mended the whole tier is down."""

_CONTEXT_CODES: Final = {"context_length_exceeded", "exceed_context_size_error"}
_CONTEXT_WORDS: Final = (
    "maximum context length",  # OpenAI, vLLM, Mistral
    "maximum model length",  # vLLM
    "exceed_context_size_error",  # llama.cpp
    "exceeds the available context size",  # llama.cpp
    "longer than the model's context length",  # SGLang
    "context length of only",  # LM Studio
    "exceeds the maximum number of tokens allowed",  # Gemini
    "too large to process",  # llama.cpp, of an input to embed, with a 500
    "tokens, exceeding max",  # Mistral, likewise
)
_FILTER_CODES: Final = {"content_filter", "content_policy_violation"}
_QUOTA_CODES: Final = {"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"}
_UNSUPPORTED_CODES: Final = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}
_UNSUPPORTED_WORDS: Final = (
    re.compile(r"Unknown name \"([^\"]+)\"(?: at '[^']*')?: Cannot find field"),  # Google
    re.compile(r"Unrecognized request arguments? supplied: ([\w.\[\]]+)"),  # OpenAI
    re.compile(r"property '([^']+)' is unsupported"),  # Groq
)
_STARTS: Final = {
    400: (
        "invalidrequest",
        "badrequest",
        "invalidargument",
        "exceedcontextsize",
        "contextlength",
        "contentfilter",
        "contentpolicy",
        "unsupported",
        "unknownparameter",
    ),
    401: ("authentication", "unauthenticated", "invalidapikey"),
    403: ("permission",),
    404: ("notfound", "modelnotfound"),
    429: ("ratelimit", "insufficientquota", "quotaexceeded", "resourceexhausted", "tokens", "requests"),
}
"""How the types and codes of known providers begin, without ``_`` and case."""
_NUMBER: Final = re.compile(r"\d+(\.\d+)?")
_UNAUTHORIZED: Final = 401
_PAYMENT_REQUIRED: Final = 402
_UNAVAILABLE: Final = 503
_SERVER_ERROR: Final = 500
_LIMITS: Final = frozenset({_PAYMENT_REQUIRED, 429, 498})
"""498 is Groq's for a service tier without capacity."""
_INVALID: Final = frozenset({400, 413, 422})
_FAULTS: Final = frozenset({408, 409, 425})
_REFUSALS: Final = {
    401: "check {key}",
    403: "check what {key} may use, and the model's backend_model",
    404: "check the model's backend_model and the tier's base_url",
    405: "check the tier's base_url",
}


class Source(msgspec.Struct, frozen=True):
    """Which backend failed, in an operator's terms.

    Attributes:
        name: ``openai``, or the tier's name for an engine of one's own.
        base_url: Where it is.
        key: What holds its API key: ``OPENAI_API_KEY``, or ``the tier's api_key``.
    """

    name: str
    base_url: str
    key: str = "the tier's api_key"


def from_answer(source: Source, status: int, headers: Mapping[str, str], body: bytes) -> TierfallError:
    """The error that an HTTP answer other than 200 stands for.

    Args:
        source: Who answered.
        status: Its HTTP status.
        headers: Its headers, with names in lower case.
        body: Its body, or as much of it as arrived.
    """
    return classify(source, status, Complaint.of_body(body), _retry_after(headers))


def from_event(source: Source, decoded: object) -> TierfallError:
    """The error that an error object inside a 200 stands for, as an event or as the whole body.

    Its own code or type decides; without a telling one it is a fault of the backend.
    """
    complaint = Complaint.of(decoded)
    status = complaint.status or _status_of(complaint.type) or _status_of(complaint.code or "")
    return classify(source, status or _SERVER_ERROR, complaint, None)


def classify(source: Source, status: int, complaint: Complaint, retry_after: float | None) -> TierfallError:
    """The error for a status and what was said with it; ``retry_after`` in seconds."""
    if status in _LIMITS:
        return _limited(source, status, complaint, retry_after)
    if status in _INVALID or _is_too_long(complaint):
        return _invalid(source, status, complaint)
    if status == _UNAVAILABLE and _is_loading(complaint):
        return BackendDown(
            f"{source.name} is loading its model",
            internal=f"{source.name} at {source.base_url} is loading its model",
        )
    if status >= _SERVER_ERROR or status in _FAULTS:
        return BackendFault(f"{source.name} failed ({status}): {_said(complaint, status)}")
    return refused(source, status)


def refused(source: Source, status: int) -> ProviderRefused:
    """Our misconfiguration. The provider's own words stay out of it: some quote the key."""
    if status // 100 == 3:  # noqa: PLR2004 - HTTP's redirects
        advice = "it redirects: check the tier's base_url"
    else:
        advice = _REFUSALS.get(status, "check the tier's base_url").format(key=source.key)
    return ProviderRefused(
        f"{source.name} refused the request ({status}): {advice}",
        code=KEY_REFUSED if status == _UNAUTHORIZED else None,
        internal=f"{source.name} at {source.base_url} refused the request ({status}): {advice}",
    )


def _limited(source: Source, status: int, complaint: Complaint, retry_after: float | None) -> TierfallError:
    said = _said(complaint, status)
    wait = complaint.retry_after if retry_after is None else retry_after
    daily = any("PerDay" in word for word in complaint.details)  # Google's quota ids
    if status == _PAYMENT_REQUIRED or daily or {complaint.code, complaint.type} & _QUOTA_CODES:
        return QuotaExhausted(f"{source.name}: the quota is spent: {said}", retry_after=wait)
    return RateLimited(f"{source.name} is rate limiting: {said}", retry_after=wait)


def _invalid(source: Source, status: int, complaint: Complaint) -> TierfallError:
    """What a code, a type or well-known words say more exactly than the status."""
    marks = {complaint.code, complaint.type}
    said, low = _said(complaint, status), complaint.message.lower()
    if _is_too_long(complaint):
        return ContextLengthExceeded(said, param=complaint.param)
    if marks & _FILTER_CODES:
        return ContentFiltered(said, param=complaint.param)
    if "API_KEY_INVALID" in complaint.details or low.startswith("api key not valid"):  # Google's 400
        return refused(source, _UNAUTHORIZED)
    if complaint.code == "rate_limit_exceeded":
        # Groq's 413: one request above the tokens a minute. Waiting does not make it smaller.
        return QuotaExhausted(f"{source.name}: the request is above the rate limit: {said}")
    if param := _unsupported(complaint):
        return UnsupportedByTier(f"{source.name}: {said}", param=param)
    return InvalidRequest(said, param=complaint.param, code=complaint.code)


def _is_too_long(complaint: Complaint) -> bool:
    low = complaint.message.lower()
    return bool({complaint.code, complaint.type} & _CONTEXT_CODES) or any(
        words in low for words in _CONTEXT_WORDS
    )


def _is_loading(complaint: Complaint) -> bool:
    """As llama.cpp's server says it."""
    return complaint.type == "unavailable_error" or "loading model" in complaint.message.lower()


def _unsupported(complaint: Complaint) -> str | None:
    """The field that the provider does not know, if that is its complaint."""
    if complaint.code in _UNSUPPORTED_CODES or "extra_forbidden" in complaint.details:
        return complaint.param
    for pattern in _UNSUPPORTED_WORDS:
        if match := pattern.search(complaint.message):
            return match.group(1)
    return None


def _said(complaint: Complaint, status: int) -> str:
    return complaint.message or f"status {status} without a reason"


def _status_of(kind: str) -> int:
    """The status that an error without one means by its type or code; 0 when neither says."""
    word = kind.lower().replace("_", "")
    return next((status for status, starts in _STARTS.items() if word.startswith(starts)), 0)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from ``retry-after-ms`` or ``Retry-After`` (RFC 9110, 10.2.3: seconds or an HTTP date)."""
    millis, value = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if _NUMBER.fullmatch(millis):
        return float(millis) / 1000
    if _NUMBER.fullmatch(value):
        return float(value)
    try:
        until = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:  # "-0000": the standard has GMT in mind
        until = until.replace(tzinfo=dt.UTC)
    return max(0.0, (until - dt.datetime.now(dt.UTC)).total_seconds())
