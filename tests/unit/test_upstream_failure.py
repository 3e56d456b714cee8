"""What providers say when they refuse, as the ladder understands it."""

from __future__ import annotations

import datetime as dt
import email.utils
import json
from typing import Any

import pytest
from multidict import CIMultiDict

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
from tierfall.upstream.failure import KEY_REFUSED, Source, from_answer, from_event

SOURCE = Source("openai", "https://api.example/v1", "OPENAI_API_KEY")


def answer(status: int, body: Any = None, **headers: str) -> TierfallError:
    """The error for one HTTP answer."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return from_answer(SOURCE, status, CIMultiDict(named), raw)


def error(
    message: str = "no", kind: str | None = None, code: Any = None, param: Any = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def google(message: str, code: int, status: str, *details: Any) -> list[Any]:
    """Google's error, in a list as its OpenAI endpoint sends it."""
    return [{"error": {"code": code, "message": message, "status": status, "details": list(details)}}]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error("too long", code="context_length_exceeded"), ContextLengthExceeded),
        (400, error("This model's maximum context length is 4096 tokens.", code=400), ContextLengthExceeded),
        (400, error("request exceeds", "exceed_context_size_error", 400), ContextLengthExceeded),
        (400, error("the request exceeds the available context size"), ContextLengthExceeded),
        (413, error("Prompt is longer than the maximum model length of 10"), ContextLengthExceeded),
        (
            400,
            google("The input token count (9) exceeds the maximum number of tokens allowed (8).", 400, "X"),
            ContextLengthExceeded,
        ),
        (400, error(code="content_filter"), ContentFiltered),
        (400, error(kind="x", code="content_policy_violation"), ContentFiltered),
        (400, error(), InvalidRequest),
        (413, error(), InvalidRequest),
        (422, {"detail": "no"}, InvalidRequest),
        (400, error(code="unsupported_parameter", param="seed"), UnsupportedByTier),
        (400, error("Unrecognized request argument supplied: top_k"), UnsupportedByTier),
        (400, error("property 'verbosity' is unsupported"), UnsupportedByTier),
        (401, error("Incorrect API key provided: sk-abc"), ProviderRefused),
        (403, error(), ProviderRefused),
        (404, error(), ProviderRefused),
        (301, b"", ProviderRefused),
        (418, b"teapot", ProviderRefused),
        (402, error(), QuotaExhausted),
        (408, b"", BackendFault),
        (429, error(), RateLimited),
        (429, error(code="insufficient_quota"), QuotaExhausted),
        (429, error(kind="insufficient_quota"), QuotaExhausted),
        (413, error("Request too large, limit 6000 TPM", "tokens", "rate_limit_exceeded"), QuotaExhausted),
        (500, b"<html>oh no</html>", BackendFault),
        (502, b"", BackendFault),
        (503, error(), BackendFault),
        (503, error("Loading model", "unavailable_error", 503), BackendDown),
        (504, b"\xff\xfe", BackendFault),
        (529, error(), BackendFault),
    ],
)
def test_status_and_body(status: int, body: Any, expected: type[TierfallError]) -> None:
    """Each known refusal becomes exactly its class of the tree."""
    assert type(answer(status, body)) is expected


def test_invalid_request_keeps_the_providers_words() -> None:
    """Message, param and code of a 400 are the client's to read; an integer code is mended."""
    found = answer(400, error("bad temperature", "invalid_request_error", "out_of_range", "temperature"))
    assert (found.message, found.param, found.code, found.status) == (
        "bad temperature",
        "temperature",
        "out_of_range",
        400,
    )
    assert answer(400, error(code=400)).code is None
    assert answer(400, error(code=3001)).code == "3001"
    assert answer(422, {"message": "x", "code": "1000"}).code == "1000"


def test_key_refused_names_the_key_and_does_not_quote_it() -> None:
    """A 401 says which variable to check; the provider's words, which quote the key, stay out."""
    found = answer(401, error("Incorrect API key provided: sk-abc***xyz"))
    assert found.code == KEY_REFUSED
    assert "OPENAI_API_KEY" in found.message
    assert "https://api.example/v1" in found.internal
    assert "api.example" not in found.message
    assert "sk-" not in found.message + found.internal
    assert answer(404).code == "provider_refused"


def test_google_key_refused_is_not_the_callers_fault() -> None:
    """Google answers 400 to a bad key; that is still our misconfiguration."""
    body = google("API key not valid. Please pass a valid API key.", 400, "INVALID_ARGUMENT")
    found = answer(400, body)
    assert isinstance(found, ProviderRefused)
    assert found.code == KEY_REFUSED
    reason = {"@type": "x/ErrorInfo", "reason": "API_KEY_INVALID"}
    assert isinstance(answer(400, google("nope", 400, "INVALID_ARGUMENT", reason)), ProviderRefused)


def test_google_unknown_field_is_named() -> None:
    """A field that Google's endpoint does not know goes to the next tier, and is named."""
    text = 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
    found = answer(400, google(text, 400, "INVALID_ARGUMENT"))
    assert isinstance(found, UnsupportedByTier)
    assert found.param == "seed"


def test_mistral_validation_is_named() -> None:
    """Mistral's 422 names the field in pydantic's form; a foreign field goes to the next tier."""
    detail = {"type": "extra_forbidden", "loc": ["body", "messages", 3, "name"], "msg": "Extra inputs"}
    found = answer(422, {"object": "error", "message": {"detail": [detail]}, "code": None})
    assert isinstance(found, UnsupportedByTier)
    assert found.param == "messages[3].name"
    wrong = {"type": "less_than_equal", "loc": ["body", "temperature"], "msg": "Input should be below 1.5"}
    found = answer(422, {"detail": [wrong]})
    assert type(found) is InvalidRequest
    assert found.message == "temperature: Input should be below 1.5"
    assert found.param == "temperature"


def test_retry_after_seconds_millis_and_date() -> None:
    """Every form of the wait is understood; nonsense is no wait."""
    assert answer(429, error(), Retry_After="7").retry_after == 7
    assert answer(429, error(), Retry_After="0.5").retry_after == 0.5
    assert answer(429, error(), retry_after_ms="1500", Retry_After="2").retry_after == 1.5
    for nonsense in ("", "soon", "nan", "inf", "-5"):
        assert answer(429, error(), Retry_After=nonsense).retry_after is None
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=90)
    wait = answer(429, error(), Retry_After=email.utils.format_datetime(later, usegmt=True)).retry_after
    assert wait is not None
    assert 0 < wait <= 90
    past = email.utils.format_datetime(later - dt.timedelta(hours=1), usegmt=True)
    assert answer(429, error(), Retry_After=past).retry_after == 0


def test_google_retry_delay_and_daily_quota() -> None:
    """Google puts the wait, and which quota is spent, into the body."""
    delay = {"@type": "x/RetryInfo", "retryDelay": "35s"}
    minute = {"@type": "x/QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerMinute-Free"}]}
    daily = {"@type": "x/QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPerProject-Free"}]}
    found = answer(429, google("slow down", 429, "RESOURCE_EXHAUSTED", minute, delay))
    assert (type(found), found.retry_after) == (RateLimited, 35)
    assert type(answer(429, google("enough", 429, "RESOURCE_EXHAUSTED", daily, delay))) is QuotaExhausted


@pytest.mark.parametrize("delay", ["-35s", "nans", "1e999s", "s", "35"])
def test_a_delay_that_is_none_is_not_believed(delay: str) -> None:
    """A wait that no clock can keep does not travel."""
    body = google("slow down", 429, "RESOURCE_EXHAUSTED", {"retryDelay": delay})
    assert answer(429, body).retry_after is None


def test_a_retry_after_beyond_every_calendar_is_not_believed() -> None:
    """Nor does a date that is none."""
    found = answer(429, error(), Retry_After="Mon, 1 Jan 99999999999 00:00:00 GMT")
    assert (type(found), found.retry_after) == (RateLimited, None)


@pytest.mark.parametrize("place", [5, "body", {"a": 1}, None])
def test_a_validation_without_a_place_is_still_told(place: Any) -> None:
    """FastAPI's ``loc`` is a list; whatever else it may be, the words are kept."""
    found = answer(422, {"detail": [{"type": "missing", "loc": place, "msg": "Field required"}]})
    assert (type(found), found.message, found.param) == (InvalidRequest, "Field required", None)


@pytest.mark.parametrize("code", ["\u00b2", "9" * 5000, "\u0664\u0660\u0664"])
def test_a_code_of_odd_digits_is_text(code: str) -> None:
    """Only three plain digits are an HTTP status."""
    assert answer(400, error(code=code)).code == code


@pytest.mark.parametrize(
    ("decoded", "expected"),
    [
        (error("engine died", "InternalServerError", 500), BackendFault),
        (error("bad", "BadRequestError", 400), InvalidRequest),
        (error("slow down", "rate_limit_error"), RateLimited),
        (error("no", "invalid_request_error", "context_length_exceeded"), ContextLengthExceeded),
        (error("no", "authentication_error"), ProviderRefused),
        ({"error": "it broke"}, BackendFault),
        ({"object": "error", "message": "old vLLM", "type": "NotFoundError", "code": 404}, ProviderRefused),
        (google("busy", 503, "UNAVAILABLE"), BackendFault),
        ([], BackendFault),
        (None, BackendFault),
        ({"error": {"message": ["odd"], "code": True, "details": "odd"}}, BackendFault),
    ],
)
def test_error_inside_a_200(decoded: Any, expected: type[TierfallError]) -> None:
    """An error object in the stream or as the body is judged by its code or type, else it is a fault."""
    assert type(from_event(SOURCE, decoded)) is expected


def test_long_words_are_cut() -> None:
    """A page of HTML or a huge message does not travel on."""
    assert len(answer(500, b"x" * 100_000).message) < 1200
