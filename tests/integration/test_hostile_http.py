"""Whatever clients and providers send: valid HTTP, an answer or the error object, and never a 500."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fakes import faults
from fakes.behaviour import Answer, event
from fakes.client_view import ClientView
from fakes.fault_stack import FaultStack
from fakes.polling import until
from fakes.raw_client import RawAnswer, RawClient, chat_request
from fakes.scripted import ScriptedBackend
from fakes.stack import ASK, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG: Final = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 8}
models:
  first: {tier: a, backend_model: model-a}
server: {max_body: 64KiB}
"""
ERROR_KEYS: Final = {"message", "type", "param", "code"}
QUIET_S: Final = 0.1
"""After so much silence a client leaves; one that leaves too early sees less, and fails nothing."""
HTTP: Final = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
SLOW: Final = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KNOWN_FIELDS: Final = (
    *("model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "tools"),
    *("response_format", "logprobs", "temperature", "seed", "stop", "usage", "error", "choices"),
)
NEAR_BODIES: Final = st.builds(
    lambda changes, gone: {name: value for name, value in {**ASK, **changes}.items() if name not in gone},
    st.dictionaries(st.sampled_from(KNOWN_FIELDS), VALUES, max_size=3),
    st.sets(st.sampled_from(["model", "messages"]), max_size=1),
)
REQUEST: Final = chat_request(dict(ASK))
RAW: Final = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda at, cut, new: REQUEST[:at] + new + REQUEST[at + cut :],
        st.integers(0, len(REQUEST)),
        st.integers(0, 12),
        st.binary(max_size=12)
        | st.sampled_from(
            [
                b"\r\n",
                b"\n",
                b"\x00",
                b"Content-Length: 5\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Expect: x\r\n",
            ]
        ),
    ),
    st.lists(
        st.sampled_from([REQUEST, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n", b"0\r\n\r\n"]),
        max_size=4,
    ).map(b"".join),
)
TOKEN: Final = st.text("abcdefghijklmnopqrstuvwxyz-ABCXYZ0123456789_", min_size=1, max_size=20)
NAMES: Final = TOKEN | st.sampled_from(
    [
        *("authorization", "content-type", "content-encoding", "x-request-id", "traceparent", "tracestate"),
        *("accept", "origin", "expect", "upgrade", "connection", "cookie", "range", "if-none-match", "te"),
    ]
)
HEADER_VALUES: Final = st.binary(max_size=40).map(
    lambda value: bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F)
)
HEADERS: Final = st.lists(st.tuples(NAMES.map(str.encode), HEADER_VALUES), max_size=6)
CHUNK_VALUES: Final = VALUES | st.sampled_from(
    ["assistant", "stop", 0, 1, [], {}, [{"index": 0, "delta": {}}]]
)
CHUNKS: Final = st.builds(
    lambda top, choice, delta: {
        "id": "x",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "finish_reason": None, **choice, "delta": {"content": "a", **delta}}],
        **top,
    },
    st.dictionaries(
        st.sampled_from(["choices", "usage", "error", "object", "model", "x"]), CHUNK_VALUES, max_size=1
    ),
    st.dictionaries(st.sampled_from(["index", "finish_reason", "logprobs", "x"]), CHUNK_VALUES, max_size=1),
    st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls", "function_call", "refusal", "audio", "reasoning"]),
        CHUNK_VALUES,
        max_size=2,
    ),
)
FINISH: Final = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
STREAMS: Final = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda chunks, tail: b"".join(map(event, chunks)) + tail,
        st.lists(CHUNKS, min_size=1, max_size=3),
        st.sampled_from([b"", FINISH, FINISH + b"data: [DONE]\n\n", b"data: [DONE]\n\n", b"data: {"]),
    ),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.lists(
        st.sampled_from([FINISH, b"data: ", b"\n", b"\r", b"\n\n", b"data: null\n\n", b"\xff", b": x\n\n"])
    ).map(b"".join),
)


class Driven:
    """A stack on a loop of its own, driven from tests that hypothesis repeats."""

    def __init__(self, stack: Stack) -> None:
        self.runner = asyncio.Runner()
        self.stack = stack
        self.runner.run(stack.__aenter__())

    def close(self) -> None:
        """Stops it; nothing of any request may be left."""
        self.runner.run(until(lambda: not self.stack.services.switchboard.open_lines))
        self.runner.run(self.stack.__aexit__())
        self.runner.close()

    def post(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> httpx.Response:
        """One chat request."""
        return self.runner.run(self.stack.client.post("/v1/chat/completions", content=body, headers=headers))


@pytest.fixture(scope="module")
def gateway() -> Iterator[Driven]:
    """The gateway over a backend that answers everything."""
    driven = Driven(Stack(CONFIG, {"a": ScriptedBackend()}))
    yield driven
    driven.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[tuple[Driven, FaultStack]]:
    """The gateway over a provider that sends what it is told to."""
    stack = FaultStack()
    driven = Driven(stack)
    yield driven, stack
    driven.close()


def check(response: httpx.Response) -> None:
    """An answer, or a client's error with its object."""
    assert response.status_code < 500, response.text
    assert response.headers["x-request-id"]
    if response.status_code != 200:
        assert set(response.json()["error"]) == ERROR_KEYS
        assert response.json()["error"]["type"] == "invalid_request_error"


@HTTP
@given(st.binary(max_size=200))
@example(b"\x00")
@example(b'{"model":"first","messages":[{}],"seed":1e999}')
def test_any_bytes_as_body(gateway: Driven, body: bytes) -> None:
    """Arbitrary bytes as a chat request's body are refused in the contract's form."""
    check(gateway.post(body, [(b"content-type", b"application/json")]))


@HTTP
@given(VALUES | NEAR_BODIES)
def test_any_json_as_body(gateway: Driven, value: Any) -> None:
    """Any JSON value, and any near miss of a chat request, is answered or refused."""
    check(gateway.post(json.dumps(value).encode(), []))


@HTTP
@given(HEADERS)
def test_any_headers(gateway: Driven, headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever headers come with a good request, it is answered or refused; none of them comes back."""
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    start, rest = REQUEST.split(b"\r\n", 1)
    answer = gateway.runner.run(ask(gateway.stack.url, start + b"\r\n" + lines + rest))
    assert 200 <= answer.status < 500, answer.body
    assert answer.header("x-request-id")
    if answer.status != 200:
        assert set(answer.json["error"]) == ERROR_KEYS
    sent = {value.strip().decode("latin-1") for name, value in headers if name.lower() != b"x-request-id"}
    ours = {"application/json"}  # the type of every answer, whoever names it too
    assert not {value for value in sent - ours if len(value) > 12} & {value for _, value in answer.headers}


@HTTP
@given(
    st.text(max_size=30),
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]),
)
def test_any_path_and_method(gateway: Driven, path: str, method: str) -> None:
    """Any path with any method is a page of ours or an error object, never a 5xx."""
    for prefix in ("/", "/v1/models/", "/docs/assets/", "/health/"):
        url = gateway.stack.url + prefix + quote(path, safe="/")
        response = gateway.runner.run(gateway.stack.client.request(method, url))
        assert response.status_code < 500, response.text
        assert response.headers["x-request-id"]
        if response.status_code >= 400 and method != "HEAD":
            assert set(response.json()["error"]) == ERROR_KEYS, url


@HTTP
@given(RAW, st.integers(1, 400))
def test_any_bytes_on_the_connection(gateway: Driven, data: bytes, size: int) -> None:
    """Whatever bytes come, in whatever pieces: whole HTTP answers or none, no 5xx, and an end."""
    for answer in gateway.runner.run(exchange(gateway.stack.url, data, size)):
        assert 200 <= answer.status < 500, answer.body
        if answer.status >= 400 and answer.body:
            assert set(answer.json["error"]) == ERROR_KEYS
    assert gateway.runner.run(gateway.stack.chat()).status_code == 200


async def ask(url: str, request: bytes) -> RawAnswer:
    """The answer to one whole request."""
    async with RawClient(url) as client:
        await client.send(request)
        return await client.answer()


async def exchange(url: str, data: bytes, size: int) -> list[RawAnswer]:
    """Sends bytes in pieces; all answers, until the server closes or has nothing more to say and is left."""
    answers = []
    async with RawClient(url) as client:
        with contextlib.suppress(ConnectionError):  # it was refused, and reset, with bytes still unread
            for at in range(0, len(data), size):
                await client.send(data[at : at + size])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_S):
                    while True:
                        answers.append(await whole_answer(client, data))
            client.writer.write_eof()
            while True:
                answers.append(await whole_answer(client, data))
    return answers


async def whole_answer(client: RawClient, data: bytes) -> RawAnswer:
    """The next answer; it is not to break off in the middle.

    Raises:
        ConnectionError: There is none, the connection has ended.
    """
    try:
        return await client.answer(head_only=data.lstrip()[:5] == b"HEAD ")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise AssertionError(f"half an answer: {error.partial!r}") from None
        raise ConnectionResetError from None


@SLOW
@given(STREAMS, st.booleans())
@example(event({"choices": [{"delta": {"audio": {"data": "\u00e9"}}, "finish_reason": "stop"}]}), False)  # noqa: FBT003 - positional by hypothesis
@example(b'data: {"x":1e999,"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n', False)  # noqa: FBT003 - likewise
@example(b'data: {"x":1e999,"choices":[{"delta":{"content":"a"}}]}\n\n', True)  # noqa: FBT003 - likewise
def test_any_stream_of_a_provider(provider: tuple[Driven, FaultStack], data: bytes, stream: bool) -> None:
    """Whatever a provider sends as its stream, the client has a whole answer or an honest error."""
    driven, stack = provider
    driven.runner.run(stack.reset())
    stack.first.default = faults.Raw(data)
    response = driven.runner.run(stack.chat(stream=stream, model="first"))
    if response.status_code == 200 and stream:
        ends_honestly(response.text)
    elif response.status_code == 200:
        assert response.json()["object"] == "chat.completion"
    else:
        assert response.status_code != 500, response.text
        assert set(response.json()["error"]) == ERROR_KEYS
    driven.runner.run(stack.reset())
    view = ClientView(driven.runner.run(stack.chat(stream=stream)), stream=stream)
    assert (view.whole, view.text) == (True, Answer().text)


def ends_honestly(body: str) -> None:
    """Whole events of one line; last ``[DONE]`` behind a finish reason, or one error and nothing more."""
    events = body.split("\n\n")
    assert events.pop() == ""
    payloads = [each.removeprefix("data: ") for each in events if not each.startswith(":")]
    last = payloads.pop()
    chunks = [json.loads(payload) for payload in payloads]
    assert not any("error" in chunk and not chunk.get("choices") for chunk in chunks)
    if last == "[DONE]":
        assert any(choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"])
    else:
        assert set(json.loads(last)["error"]) == ERROR_KEYS


def test_the_property_sees_a_lie(gateway: Driven) -> None:
    """The checks above can fail: a stream without its end, and an error without its object, are seen."""
    with pytest.raises((AssertionError, KeyError)):
        ends_honestly('data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
    request = httpx.Request("POST", gateway.stack.url)
    with pytest.raises((AssertionError, KeyError)):
        check(httpx.Response(422, json={"detail": []}, headers={"x-request-id": "r"}, request=request))
