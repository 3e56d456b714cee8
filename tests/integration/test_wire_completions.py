"""``POST /v1/completions``: the rules that chat has, with texts in the place of messages."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

from fakes.gateway import BROKEN, KEYS, Gateway, sent
from fakes.polling import until
from fakes.scripted import USAGE, Step, chunk, text, writes
from tierfall.errors import (
    BackendFault,
    ContextLengthExceeded,
    InvalidRequest,
    RateLimited,
    UnsupportedByTier,
)
from tierfall.protocol.operation import Operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORDS = ["One", " two", " three", " four", " five."]
TEXT = "".join(WORDS)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A running gateway."""
    async with Gateway() as running:
        yield running


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """The official client."""
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


class Read:
    """A streamed completion as its client has it."""

    def __init__(self, body: str) -> None:
        lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
        self.done = lines.count("[DONE]")
        self.events = [json.loads(line) for line in lines if line != "[DONE]"]
        self.chunks = [event for event in self.events if "choices" in event]
        self.heads = {(event["id"], event["object"], event["created"]) for event in self.chunks}
        self.models = list(dict.fromkeys(event["model"] for event in self.chunks))
        choices = [choice for event in self.chunks for choice in event["choices"]]
        self.text = "".join(choice["text"] for choice in choices)
        self.finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        self.usage = [event["usage"] for event in self.chunks if event.get("usage")]
        self.errors = [event["error"]["code"] for event in self.events if "error" in event]


async def read(gateway: Gateway, **fields: Any) -> Read:
    """One streamed completion to its end."""
    answer = await gateway.complete(stream=True, stream_options={"include_usage": True}, **fields)
    assert answer.status_code == 200, answer.text
    return Read(answer.text)


def broken(*words: str, how: Step | None = None) -> list[Step]:
    """A stream that breaks after these words."""
    return [*map(text, words), how or BROKEN]


async def test_the_sdk_reads_an_answer(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """Text, reason, usage, the model that answered, the request's id; the prompt arrives to the byte."""
    answer = await sdk.completions.create(model="first", prompt="Say hello.", max_tokens=5, echo=False)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello world.", "stop")
    assert (answer.model, answer.object) == ("first", "text_completion")
    assert answer.usage is not None
    assert answer.usage.total_tokens == USAGE["total_tokens"]
    assert answer.id == f"cmpl-{answer._request_id}"
    (ask,) = gateway.one.asks
    assert ask.operation is Operation.COMPLETIONS
    assert sent(ask)["prompt"] == b'"Say hello."'


async def test_the_sdk_reads_a_stream(sdk: AsyncOpenAI) -> None:
    """Pieces of text in order, one finish_reason, usage last."""
    stream = await sdk.completions.create(
        model="first", prompt="Say hello.", stream=True, stream_options={"include_usage": True}
    )
    chunks = [part async for part in stream]
    assert [choice.text for part in chunks for choice in part.choices] == ["Hello", " world.", ""]
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices
    assert [choice.finish_reason for part in chunks for choice in part.choices][-1] == "stop"


async def test_streamed_and_whole_are_the_same(gateway: Gateway) -> None:
    """With several prompts, log probabilities and a backend's own members."""
    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}], "text_offset": [0]}
    script: list[Step] = [
        *(text("a", index=index, logprobs=logprobs, own=1) for index in range(4)),
        *(text("b", index=index, finish="stop") for index in (3, 2, 1, 0)),
        json.dumps({"choices": [], "usage": USAGE}).encode(),
    ]
    gateway.one.scripts.extend([script, script])
    asked = {"prompt": ["x", "y"], "n": 2, "logprobs": 1}
    whole = (await gateway.complete(**asked)).json()
    streamed = await read(gateway, **asked)
    assert [choice["text"] for choice in whole["choices"]] == ["ab"] * 4
    for choice in whole["choices"]:
        parts = [
            each for event in streamed.chunks for each in event["choices"] if each["index"] == choice["index"]
        ]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["logprobs"] for part in parts if part["logprobs"]] == [choice["logprobs"]]
        assert [part["finish_reason"] for part in parts] == [None, choice["finish_reason"]]
        assert choice["own"] == 1
    assert streamed.usage == [whole["usage"]]
    assert (len(streamed.heads), streamed.done, streamed.models) == (1, 1, ["first"])


async def test_usage_only_when_asked_for(gateway: Gateway) -> None:
    """Without ``include_usage`` no chunk has it."""
    answer = await gateway.complete(stream=True)
    assert "usage" not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/completions/", "/completions", "/completions/"])
async def test_paths(gateway: Gateway, path: str) -> None:
    """As chat's: without ``/v1``, and with a slash at the end."""
    body = {"model": "first", "prompt": "x"}
    assert (await gateway.client.post(path, json=body)).status_code == 200


async def test_bad_requests(gateway: Gateway) -> None:
    """400 with the field, 404 with near names, 405 with what is allowed; nothing reaches a backend."""
    for fields, param in ({"prompt": []}, "prompt"), ({"n": 200}, "n"), ({"stream": "x"}, "stream"):
        answer = await gateway.complete(**fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    missing = await gateway.complete(model="firts")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    wrong = await gateway.client.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert not gateway.one.asks


async def test_keys() -> None:
    """A stranger is a 401, a model that is not the key's a 403."""
    async with Gateway(KEYS) as gateway:
        assert (await gateway.complete()).status_code == 401
        headers = {"authorization": "Bearer sk-one-1234567890"}
        body = {"model": "second", "prompt": "x"}
        answer = await gateway.client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 403


async def test_faults_are_retried_then_escalated(gateway: Gateway) -> None:
    """One more try on the tier, then the next tier, which says who it is."""
    gateway.one.scripts.extend([[BackendFault("boom")]] * 2)
    answer = await gateway.complete()
    assert answer.json()["model"] == "second"
    assert answer.headers["x-tierfall-attempts"] == "one=backend_fault;one=backend_fault;two=ok"


async def test_what_a_tier_cannot_do_goes_on(gateway: Gateway) -> None:
    """To the next tier; nowhere left, it is a 400 that names the field."""
    for _ in range(2):
        gateway.one.scripts.append([UnsupportedByTier("no echo here", param="echo")])
    assert (await gateway.complete(echo=True)).json()["model"] == "second"
    refused = await gateway.complete(model="alone", echo=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "echo")


async def test_other_errors_reach_the_client(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """With status, code and Retry-After, as the SDK's classes."""
    gateway.one.scripts.extend(
        [[RateLimited("slow down", retry_after=60)], [ContextLengthExceeded("long")], [InvalidRequest("no")]]
    )
    with pytest.raises(openai.RateLimitError) as limited:
        await sdk.completions.create(model="alone", prompt="x")
    assert limited.value.response.headers["retry-after"] == "60"
    with pytest.raises(openai.BadRequestError) as long:
        await sdk.completions.create(model="alone", prompt="x")
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        await sdk.completions.create(model="alone", prompt="x")


async def test_silence_escalates(gateway: Gateway) -> None:
    """No output within the first-token deadline, though an empty text came: 504 where there is one tier."""
    gateway.one.scripts.append([text(""), 60.0])
    gateway.two.scripts.append([60.0])
    answer = await gateway.complete(model="hurried")
    assert answer.json()["error"]["code"] == "budget_spent"
    await until(lambda: gateway.one.cancelled == 1)


async def test_hanging_up_stops_the_backend(gateway: Gateway) -> None:
    """In the middle of a stream."""
    gateway.one.scripts.append([*map(text, "abc"), 60.0])
    body = {"model": "first", "prompt": "x", "stream": True}
    async with gateway.client.stream("POST", "/v1/completions", json=body) as response:
        await anext(response.aiter_bytes())
    await until(lambda: gateway.one.cancelled == 1 and gateway.idle)


@pytest.mark.parametrize("cut", range(1, 5))
async def test_a_broken_stream_goes_on_from_prompt_and_text(gateway: Gateway, cut: int) -> None:
    """The prompt is made longer by what the client has, the limit smaller; usage is of the whole answer."""
    gateway.one.scripts.extend([broken(*WORDS[:cut]), writes(*WORDS[cut:])])
    got = await read(gateway, prompt="Count: ", max_tokens=20)
    assert (got.text, got.finishes, got.done, got.errors) == (TEXT, ["stop"], 1, [])
    assert (len(got.heads), got.models) == (1, ["first"])
    first, second = map(sent, gateway.one.asks)
    assert json.loads(second["prompt"]) == "Count: " + "".join(WORDS[:cut])
    assert (first["max_tokens"], json.loads(second["max_tokens"])) == (b"20", 20 - cut)
    assert got.usage[0]["prompt_tokens"] == USAGE["prompt_tokens"] - min(cut, USAGE["prompt_tokens"])


@pytest.mark.parametrize(
    "fields",
    [{}, {"max_tokens": 20, "echo": True}, {"max_tokens": 20, "prompt": [1, 2]}, {"max_tokens": 2}],
    ids=["no limit", "echo", "tokens", "nothing left"],
)
async def test_else_it_is_asked_anew(gateway: Gateway, fields: dict[str, Any]) -> None:
    """Where the text cannot go into the prompt, the answer is repeated and what the client has is skipped."""
    gateway.one.scripts.extend([broken(*WORDS[:2]), writes("O", "ne two th", "ree four", " five.")])
    got = await read(gateway, **fields)
    assert (got.text, got.finishes, got.done) == (TEXT, ["stop"], 1)
    first, second = map(sent, gateway.one.asks)
    assert first == second


async def test_the_next_tier_goes_on(gateway: Gateway) -> None:
    """Under its own name and the same id."""
    gateway.one.scripts.extend([broken(*WORDS[:3]), [BackendFault("500")], [BackendFault("500")]])
    gateway.two.scripts.append(writes(*WORDS[3:]))
    got = await read(gateway, max_tokens=20)
    assert (got.text, len(got.heads), got.models) == (TEXT, 1, ["first", "second"])


@pytest.mark.parametrize(
    "fields",
    [{"logprobs": 0}, {"logprobs": 2}, {"best_of": 2}, {"n": 2}, {"prompt": ["a", "b"]}],
    ids=range(5),
)
async def test_some_answers_are_not_resumed(gateway: Gateway, fields: dict[str, Any]) -> None:
    """They end in an error event, without ``[DONE]``."""
    gateway.one.scripts.append(broken("a"))
    got = await read(gateway, max_tokens=20, **fields)
    assert (got.errors, got.done, len(gateway.one.asks)) == (["stream_broken"], 0, 1)


async def test_a_backend_without_completions() -> None:
    """Its requests go to the next tier; nowhere left, the 400 names the path. Chat is not touched by it."""
    async with Gateway() as gateway:
        gateway.one.without(Operation.COMPLETIONS)
        answer = await gateway.complete()
        assert answer.headers["x-tierfall-attempts"] == "one=unsupported_operation;two=ok"
        refused = (await gateway.complete(model="alone")).json()["error"]
        assert refused["code"] == "unsupported_operation"
        assert "/v1/completions" in refused["message"]
        gateway.one.scripts.append([chunk("Hi", role="assistant"), chunk(finish="stop")])
        assert (await gateway.chat(model="alone")).status_code == 200


async def test_metrics_and_log(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """A completion counts as a request, an attempt and tokens; its log line is named after it."""
    with caplog.at_level("INFO", "tierfall.ingress"):
        await asyncio.gather(*(gateway.complete() for _ in range(3)))
    page = (await gateway.client.get("/metrics")).text
    assert 'litellm_proxy_total_requests_metric_total{requested_model="first"} 3.0' in page
    assert (
        f'tierfall_tokens_total{{kind="completion",model="first"}} {3 * USAGE["completion_tokens"]}.0' in page
    )
    assert [record.message for record in caplog.records if record.message == "completions"]
