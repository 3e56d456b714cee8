"""The wire contract, rules 14 to 25: what arrives at a backend, what errors look like, what headers say."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from fakes import faults
from fakes.behaviour import error_body
from fakes.gateway import BROKEN, KEYS, MAX_BODY_BYTES, SERVER, Gateway, asking, sent
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.raw_client import RawClient, chat_request, get_request
from fakes.scripted import Step, chunk
from fakes.stack import ASK, Stack
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
from tierfall.worker import Health
from tierfall_worker_vllm.main import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tierfall.bus import Message

SENT: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            ],
        },
    ],
    "max_completion_tokens": 7,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "chat_template_kwargs": {"enable_thinking": False},
    "top_k": 5,
}
STREAMING = pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway without keys."""
    async with Gateway() as running:
        yield running


@pytest.fixture
async def locked() -> AsyncIterator[Gateway]:
    """A running gateway with a key for everything and one for two models."""
    async with Gateway(KEYS) as running:
        yield running


def error_of(answer: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    """The error object, checked for what every one has."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert error["code"] == code
    return error


# -- Requests


async def test_every_field_reaches_the_backend_as_it_was_sent(gateway: Gateway) -> None:
    """Rules 14 and 15: known or unknown, each field's bytes are the client's, spaces and number forms too."""
    raw = b'{"model":"first", "temperature" : 1.50e0,"seed":123456789012345678901,'
    raw += b'"unknown":[ 1.0 ,null,"\\u00e9"],"messages":[{"role":"user","content":"\xc3\xa9"}]}'
    answer = await gateway.raw(chat_request(raw))
    assert answer.status == 200
    assert sent(gateway.one.asks[0]) == {
        "model": b'"first"',
        "temperature": b"1.50e0",
        "seed": b"123456789012345678901",
        "unknown": b'[ 1.0 ,null,"\\u00e9"]',
        "messages": b'[{"role":"user","content":"\xc3\xa9"}]',
    }


async def test_newer_fields_reach_the_backend(gateway: Gateway) -> None:
    """Rule 15: developer role, parts, schema, tool choice: the backend decides, the gateway drops nothing."""
    await gateway.chat(**SENT)
    arrived = sent(gateway.one.asks[0])
    assert {name: json.loads(arrived[name]) for name in SENT} == SENT


@STREAMING
async def test_a_field_that_no_tier_honours_is_refused_by_name(gateway: Gateway, stream: bool) -> None:
    """Rule 15: a 400 with the field as ``param``; where a later tier can, that one answers."""
    refusal = UnsupportedByTier("this backend knows no 'logit_bias'", param="logit_bias")
    gateway.one.scripts.extend([[refusal]] * 2)
    error = error_of(await gateway.chat(model="alone", stream=stream), 400, "unsupported_parameter")
    assert error["param"] == "logit_bias"
    assert (await gateway.chat(stream=stream)).headers["x-tierfall-tier"] == "two"


@STREAMING
async def test_the_http_limit_is_the_limit(gateway: Gateway, stream: bool) -> None:
    """Rule 16: a body of exactly ``server.max_body`` travels, far above what one bus message holds."""
    body = json.dumps(asking("", stream=stream)).encode()
    text = b"x" * (MAX_BODY_BYTES - len(body))
    body = body.replace(b'"content": ""', b'"content": "' + text + b'"')
    assert len(body) == MAX_BODY_BYTES
    answer = await gateway.raw(chat_request(body))
    assert answer.status == 200
    assert len(gateway.one.asks[0].body["messages"]) > len(text)
    headers = {"Content-Type": "application/json"}
    over = await gateway.client.post("/v1/chat/completions", content=body + b" ", headers=headers)
    assert str(MAX_BODY_BYTES) in error_of(over, 413, "request_too_large")["message"]


@pytest.mark.parametrize("name", ["groq/llama-3.3-70b-versatile", "qwen2.5:3b"])
@pytest.mark.parametrize("quoted", [True, False])
async def test_models_with_slash_and_colon(gateway: Gateway, name: str, quoted: bool) -> None:
    """Rule 17: such names work in requests and in the path, percent-encoded or not."""
    path = name.replace("/", "%2F").replace(":", "%3A") if quoted else name
    described = (await gateway.client.get(f"/v1/models/{path}")).json()
    assert (described["id"], described["object"]) == (name, "model")
    assert isinstance(described["created"], int)
    assert isinstance(described["owned_by"], str)
    assert (await gateway.chat(model=name)).json()["model"] == name


# -- Errors


@STREAMING
@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("bad", param="temperature"), 400, "invalid_request_error", None),
        (ContextLengthExceeded("long"), 400, "invalid_request_error", "context_length_exceeded"),
        (ContentFiltered("no"), 400, "invalid_request_error", "content_filter"),
        (RateLimited("slow", retry_after=60), 429, "rate_limit_error", "rate_limit_exceeded"),
        (QuotaExhausted("spent"), 429, "insufficient_quota", "insufficient_quota"),
        (BackendFault("boom"), 502, "upstream_error", "backend_fault"),
        (BackendDown("refused"), 503, "service_unavailable", "backend_down"),
        (ProviderRefused("our key"), 502, "upstream_error", "provider_refused"),
    ],
    ids=lambda value: value.slug if isinstance(value, TierfallError) else None,
)
async def test_a_backends_failure_has_its_status(  # noqa: PLR0917 - pytest passes them by name
    gateway: Gateway, error: TierfallError, status: int, kind: str, code: str | None, stream: bool
) -> None:
    """Rules 18 and 19: one error object, one status per kind of failure, streaming or not."""
    gateway.one.scripts.extend([[error]] * 2)
    told = error_of(await gateway.chat(model="alone", stream=stream), status, code)
    assert told["type"] == kind


@STREAMING
async def test_nobody_and_too_late_have_theirs(gateway: Gateway, stream: bool) -> None:
    """Rule 19: 503 when no tier can answer, with a time to come back; 504 when a deadline has passed."""
    gateway.one.scripts.append([asyncio.Event()])
    error_of(await gateway.chat(model="hurried", stream=stream), 504, "budget_spent")
    gateway.one.health = Health("down", "engine is off")
    await until(lambda: gateway.state("one") == "down")
    answer = await gateway.chat(model="alone", stream=stream)
    assert "engine is off" in error_of(answer, 503, "backend_down")["message"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_keys(locked: Gateway) -> None:
    """Rule 19: 401 with WWW-Authenticate for a missing or unknown key, 403 for a model it may not use."""
    for given in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic c2stYWxs"}):
        for path in ("/v1/chat/completions", "/v1/models", "/v1/models/first", "/health"):
            method = "POST" if path.endswith("completions") else "GET"
            answer = await locked.client.request(method, path, json=ASK, headers=given)
            error_of(answer, 401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
    one = {"Authorization": "Bearer sk-one-1234567890"}
    allowed = await locked.client.post("/v1/chat/completions", json=ASK, headers=one)
    assert allowed.status_code == 200
    other = await locked.client.post("/v1/chat/completions", json=asking(model="second"), headers=one)
    assert error_of(other, 403, "model_not_allowed")["param"] == "model"
    listed = (await locked.client.get("/v1/models", headers=one)).json()["data"]
    assert {model["id"] for model in listed} == {"first", "alone"}
    error_of(await locked.client.get("/v1/models/second", headers=one), 403, "model_not_allowed")


async def test_a_hint_names_no_model_that_the_key_may_not_use(locked: Gateway) -> None:
    """Rule 19: the 404's suggestions are those of the caller."""
    one = {"Authorization": "Bearer sk-one-1234567890"}
    answer = await locked.client.post("/v1/chat/completions", json=asking(model="secont"), headers=one)
    assert "second" not in error_of(answer, 404, "model_not_found")["message"]


@STREAMING
async def test_an_unknown_model_lists_near_names(gateway: Gateway, stream: bool) -> None:
    """Rule 19: a 404 with ``param: "model"`` that names what may have been meant; asking again is no use."""
    answer = await gateway.chat(model="llama-3.3-70b", stream=stream)
    error = error_of(answer, 404, "model_not_found")
    assert error["param"] == "model"
    assert "groq/llama-3.3-70b-versatile" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    long = error_of(await gateway.chat(model="x" * 1_000_000), 404, "model_not_found")
    assert len(long["message"]) < 300


async def test_methods_and_types(gateway: Gateway) -> None:
    """Rule 19: 405 with Allow, 404 for no such path, 415 for what is no JSON, 413 above the limit."""
    for method, path, allow in (
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/metrics", "GET, HEAD"),
    ):
        answer = await gateway.client.request(method, path)
        error_of(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allow
    error_of(await gateway.client.get("/v1/nothing"), 404, "not_found")
    answer = await gateway.client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "a/b"})
    error_of(answer, 415, "unsupported_media_type")


async def test_a_providers_401_is_not_the_callers() -> None:
    """Rules 18, 19, 23: our key's failure is a 502; an integer code is mended; its headers stay outside."""
    async with FakeProvider() as provider, engine(provider) as gateway:
        provider.plan(faults.Status(401, body=error_body("bad key sk-123", code="invalid_api_key")))
        refused = error_of(await gateway.chat(), 502, "provider_key_refused")
        assert "sk-123" not in refused["message"]
        provider.plan(faults.Status(400, body=error_body("bad temperature", "BadRequestError", 400)))
        assert error_of(await gateway.chat(), 400, None)["message"]
        limits = {"x-ratelimit-remaining-requests": "7", "x-ratelimit-limit-requests": "9"}
        provider.plan(faults.Status(429, retry_after=60, headers=limits))
        answer = await gateway.chat()
        error_of(answer, 429, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "60"
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (QuotaExhausted("spent"), "false"),
        (ProviderRefused("our key"), "false"),
        (InvalidRequest("bad", should_retry=False), "false"),
        (BackendFault("boom"), None),
        (RateLimited("slow", retry_after=60), None),
    ],
    ids=["quota", "refused", "invalid", "fault", "rate"],
)
async def test_trying_again_is_discouraged_where_it_is_pointless(
    gateway: Gateway, error: TierfallError, told: str | None
) -> None:
    """Rule 20: ``x-should-retry: false`` where somebody has to act first; else SDKs decide by status."""
    gateway.one.scripts.extend([[error]] * 2)
    answer = await gateway.chat(model="alone")
    assert answer.headers.get("x-should-retry") == told


async def test_before_the_first_byte_a_failure_is_a_status(gateway: Gateway) -> None:
    """Rule 21: until there is output, a failing stream is a failing HTTP answer."""
    gateway.one.scripts.extend([[chunk("", role="assistant"), BROKEN]] * 2)
    error_of(await gateway.chat(model="honest", stream=True), 502, "stream_broken")


@pytest.mark.parametrize(
    "script",
    [
        [chunk("a"), BROKEN],
        [chunk("a")],
        [chunk("a"), b"garbage"],
        [chunk("a"), chunk(finish="stop"), chunk("b", index=1), BROKEN],
    ],
    ids=["fault", "end", "garbage", "one-choice-of-two"],
)
async def test_after_the_first_byte_a_failure_is_an_event(gateway: Gateway, script: list[Step]) -> None:
    """Rule 21: an error event, no ``[DONE]``, and the end of the stream, which is in good order."""
    gateway.one.scripts.append(script)
    n = 2 if len(script) > 2 else 1
    answer = await gateway.raw(chat_request(asking(model="honest", stream=True, n=n)))
    assert answer.status == 200
    assert set(answer.chunks[-1]["error"]) == {"message", "type", "param", "code"}
    assert answer.chunks[-1]["error"]["code"] == "stream_broken"
    assert b"[DONE]" not in answer.body


async def test_a_stalled_stream_is_cut_with_an_event(gateway: Gateway) -> None:
    """Rule 21: an engine that goes silent after output ends in an error event, never in ``stop``."""
    gateway.one.scripts.append([chunk("a"), asyncio.Event()])
    answer = await gateway.raw(chat_request(asking(model="idle", stream=True)))
    assert answer.chunks[-1]["error"]["code"] == "idle_deadline"
    assert b'"stop"' not in answer.body
    await until(lambda: gateway.idle)


# -- Headers and methods


async def test_a_callers_request_id_is_kept_if_harmless(gateway: Gateway) -> None:
    """Rule 22: on answers, streams and errors of every route; what is not harmless is replaced."""
    harmless = ["my-id_1.2", "x" * 128]
    for given in (*harmless, "x" * 129, "a b", "<script>", "ä", ""):
        header = f"X-Request-Id: {given}"
        requests = [
            chat_request(asking(), header),
            chat_request(asking(stream=True), header),
            chat_request(b"nonsense", header),
            *(get_request(path, header) for path in ("/v1/models", "/nope", "/metrics/")),
        ]
        for request in requests:
            told = (await gateway.raw(request)).header("x-request-id")
            assert told
            assert (told == given) == (given in harmless)


async def test_every_route_tells_a_request_id(gateway: Gateway) -> None:
    """Rule 22: one, a new one each time, also from pages and probes."""
    paths = ["/health", "/health/liveliness", "/health/readiness", "/docs", "/openapi.json", "/nope"]
    ids = [(await gateway.raw(get_request(path))).header("x-request-id") for path in paths * 2]
    assert all(ids)
    assert len(set(ids)) == len(ids)


async def test_a_callers_key_stays_at_the_door(locked: Gateway) -> None:
    """Rule 23: no message on the bus holds the caller's key, nor any of its headers."""
    heard: list[bytes] = []

    def hear(message: Message) -> None:
        heard.append(message.data)

    bus = await locked._connect("listener")
    subscription = await bus.subscribe(">", hear)
    try:
        headers = {"Authorization": "Bearer sk-all-1234567890", "X-Private": "sk-canary"}
        answer = await locked.client.post("/v1/chat/completions", json=ASK, headers=headers)
        assert answer.status_code == 200
        await until(lambda: any(b"Say hello." in data for data in heard))
    finally:
        await subscription.close()
        await bus.close()
    assert not any(b"sk-" in data for data in heard)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/first", "/metrics", "/health", "/docs", "/nope"])
async def test_head_is_get_without_a_body(gateway: Gateway, path: str) -> None:
    """Rule 24: the same status and headers, no body, and the connection goes on."""
    async with RawClient(gateway.url) as client:
        await client.send(get_request(path, "X-Request-Id: a", method="HEAD"))
        head = await client.answer(head_only=True)
        await client.send(get_request(path, "X-Request-Id: a"))
        whole = await client.answer()
    assert head.status == whole.status
    assert head.header("content-type") == whole.header("content-type")
    assert head.header("content-length") is not None


async def test_no_cors_unless_configured() -> None:
    """Rule 24: without ``server.cors_origins`` a preflight is a method that is not there."""
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with Gateway(KEYS) as gateway:
        answer = await gateway.client.options("/v1/chat/completions", headers=headers)
        error_of(answer, 405, "method_not_allowed")
        headers["Authorization"] = "Bearer sk-all-1234567890"
        answer = await gateway.client.post("/v1/chat/completions", json=ASK, headers=headers)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_cors_for_the_configured_origins() -> None:
    """Rule 24: preflight and answers, errors too, for a configured origin; none for another."""
    async with Gateway(SERVER.replace("}", ", cors_origins: ['https://a.example']}")) as gateway:
        headers = {
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
        }
        for path in ("/v1/chat/completions", "/v1/models"):
            preflight = await gateway.client.options(path, headers=headers)
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == "https://a.example"
            assert "authorization" in preflight.headers["access-control-allow-headers"]
            assert preflight.headers["x-request-id"]
        for fields in ({}, {"stream": True}, {"model": "nope"}):
            answer = await gateway.client.post(
                "/v1/chat/completions", json=asking(**fields), headers={"Origin": "https://a.example"}
            )
            assert answer.headers["access-control-allow-origin"] == "https://a.example"
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = await gateway.client.options(
            "/v1/chat/completions", headers={**headers, "Origin": "https://b.example"}
        )
        assert "https://b.example" in error_of(other, 403, "origin_not_allowed")["message"]
        assert "access-control-allow-origin" not in other.headers


@STREAMING
@pytest.mark.parametrize("begun", [True, False], ids=["after-output", "before-output"])
async def test_hanging_up_stops_the_work(gateway: Gateway, begun: bool, stream: bool) -> None:
    """Rule 25: the backend's work stops, nothing is left open, and it counts as 499."""
    gateway.one.scripts.append([*([chunk("a")] if begun else []), asyncio.Event()])
    async with RawClient(gateway.url) as client:
        await client.chat(asking(stream=stream))
        if begun and stream:
            assert (await client.head())[0] == 200
        await until(lambda: gateway.one.running)
    await until(lambda: gateway.one.cancelled == 1 and gateway.idle)
    await until(lambda: gateway.services.meters.in_flight == 0)
    metrics = (await gateway.client.get("/metrics")).text
    assert 'tierfall_requests_total{model="first",operation="chat",status="499"} 1.0' in metrics


async def test_hanging_up_with_a_request_in_the_pipeline(gateway: Gateway) -> None:
    """Rule 25: a client that has sent its next request already is noticed to hang up all the same."""
    gateway.one.scripts.append([asyncio.Event()])
    async with RawClient(gateway.url) as client:
        await client.chat(asking())
        await until(lambda: gateway.one.running)
        await client.send(get_request("/v1/models") * 2)
        await until(lambda: any(connection.pipeline for connection in connections(gateway)))
    await until(lambda: gateway.one.cancelled == 1 and gateway.idle)


def connections(gateway: Gateway) -> list[Any]:
    """The server's open connections."""
    return list(gateway.server.server_state.connections)


def engine(provider: FakeProvider) -> Stack:
    """A gateway with the real vLLM worker before a fake engine."""
    config = f"""
tiers: {{one: {{worker: vllm, base_url: '{provider.base_url}'}}}}
models: {{first: {{tier: one, backend_model: fake-model}}}}
"""
    return Stack(config, builds={"vllm": build})
