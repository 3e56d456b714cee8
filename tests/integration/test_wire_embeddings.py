"""``POST /v1/embeddings``: the rules that chat has, with vectors in the place of an answer."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

from fakes.gateway import KEYS, Gateway, sent
from fakes.polling import until
from fakes.scripted import vectors
from fakes.texts import VECTOR, packed
from tierfall.errors import BackendFault, ContextLengthExceeded, RateLimited, UnsupportedByTier
from tierfall.protocol.operation import Operation
from tierfall.worker import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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


async def test_the_sdk_asks_for_base64_by_itself(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """And gets it from a backend that only knows numbers; its users see numbers, usage and the model."""
    answer = await sdk.embeddings.create(model="first", input="Hello.")
    assert sent(gateway.one.asks[0])["encoding_format"] == b'"base64"'
    assert answer.data[0].embedding == VECTOR
    assert (answer.model, answer.object, answer.usage.total_tokens) == ("first", "list", 3)
    assert answer._request_id


async def test_the_sdk_asks_for_numbers(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """And gets them from a backend that only knows base64."""
    gateway.one.scripts.append([vectors(1, packed(VECTOR))])
    answer = await sdk.embeddings.create(model="first", input="Hello.", encoding_format="float")
    assert answer.data[0].embedding == VECTOR


@pytest.mark.parametrize(
    ("asked", "count"), [(["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2)], ids=range(3)
)
async def test_inputs(gateway: Gateway, asked: Any, count: int) -> None:
    """Texts and tokens travel as they are; each input has its vector, in its place."""
    gateway.one.scripts.append([vectors(count)])
    answer = (await gateway.embed(input=asked, dimensions=3, extra={"a": 1})).json()
    assert [datum["index"] for datum in answer["data"]] == list(range(count))
    arrived = sent(gateway.one.asks[0])
    assert json.loads(arrived["input"]) == asked
    assert (arrived["dimensions"], arrived["extra"]) == (b"3", b'{"a":1}')


async def test_an_answer_of_many_megabytes(gateway: Gateway) -> None:
    """Five hundred vectors of 1536 numbers come through whole, in either form."""
    numbers = [0.5 + index / 4096 for index in range(1536)]
    for form, expected in (("float", numbers), ("base64", packed(numbers))):
        gateway.one.scripts.append([vectors(500, numbers)])
        answer = await gateway.embed(input=["x"] * 500, encoding_format=form)
        assert answer.status_code == 200, answer.text
        assert [datum["embedding"] for datum in answer.json()["data"]] == [expected] * 500


@pytest.mark.parametrize("path", ["/v1/embeddings/", "/embeddings", "/embeddings/"])
async def test_paths(gateway: Gateway, path: str) -> None:
    """As chat's: without ``/v1``, and with a slash at the end."""
    body = {"model": "first", "input": "x"}
    assert (await gateway.client.post(path, json=body)).status_code == 200


async def test_bad_requests(gateway: Gateway) -> None:
    """400 with the field, 404 for a model that is not there, 405; nothing reaches a backend."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"encoding_format": "md5"}, "encoding_format"),
        ({"stream": True}, "stream"),
    ]
    for fields, param in wrong:
        answer = await gateway.embed(**fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await gateway.embed(model="nope")).status_code == 404
    assert (await gateway.client.get("/v1/embeddings")).status_code == 405
    assert not gateway.one.asks


async def test_keys() -> None:
    """A stranger is a 401, a model that is not the key's a 403."""
    async with Gateway(KEYS) as gateway:
        assert (await gateway.embed()).status_code == 401
        headers = {"authorization": "Bearer sk-one-1234567890"}
        body = {"model": "second", "input": "x"}
        answer = await gateway.client.post("/v1/embeddings", json=body, headers=headers)
        assert answer.status_code == 403


@pytest.mark.parametrize(
    "script",
    [[BackendFault("boom")], [vectors(2)], [b"nonsense"], [b'{"error":{"message":"x"}}'], []],
    ids=["fault", "too many", "garbage", "error in a 200", "nothing"],
)
async def test_faults_are_retried_then_escalated(gateway: Gateway, script: list[Any]) -> None:
    """One more try on the tier, then the next one, which says who it is."""
    gateway.one.scripts.extend([script, script])
    answer = await gateway.embed()
    assert (answer.status_code, answer.json()["model"]) == (200, "second")
    assert answer.headers["x-tierfall-tier"] == "two"
    assert len(gateway.one.asks) == 2


async def test_errors_reach_the_client(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """Too long an input, a field that the tier cannot honour, a rate limit."""
    gateway.one.scripts.extend(
        [
            [ContextLengthExceeded("too long")],
            [UnsupportedByTier("no dimensions", param="dimensions")],
            [RateLimited("slow down", retry_after=60)],
        ]
    )
    with pytest.raises(openai.BadRequestError) as long:
        await sdk.embeddings.create(model="alone", input="x")
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unsupported:
        await sdk.embeddings.create(model="alone", input="x", dimensions=5)
    assert unsupported.value.param == "dimensions"
    with pytest.raises(openai.RateLimitError):
        await sdk.embeddings.create(model="alone", input="x")


async def test_silence_escalates(gateway: Gateway) -> None:
    """The first-token deadline is the answer's, since it comes in one piece."""
    held = asyncio.Event()
    gateway.one.scripts.append([Progress("prefilling"), held])
    answer = await gateway.embed(model="hurried")
    assert answer.json()["error"]["code"] == "budget_spent"
    await until(lambda: gateway.one.cancelled == 1)


async def test_hanging_up_stops_the_backend(gateway: Gateway) -> None:
    """While it works."""
    gateway.one.scripts.append([60.0])
    asked = asyncio.create_task(gateway.embed())
    await until(lambda: gateway.one.running == 1)
    asked.cancel()
    await until(lambda: gateway.one.cancelled == 1 and gateway.idle)


async def test_a_backend_without_embeddings(gateway: Gateway) -> None:
    """Its requests go to the next tier; nowhere left, the 400 names the path."""
    gateway.one.without(Operation.EMBEDDINGS)
    answer = await gateway.embed()
    assert answer.headers["x-tierfall-attempts"] == "one=unsupported_operation;two=ok"
    refused = (await gateway.embed(model="alone")).json()["error"]
    assert refused["code"] == "unsupported_operation"
    assert "/v1/embeddings" in refused["message"]


async def test_tokens_are_counted(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """The prompt's, which are all that there are, in metrics and in the log."""
    with caplog.at_level("INFO", "tierfall.ingress"):
        await gateway.embed()
    page = (await gateway.client.get("/metrics")).text
    assert 'tierfall_tokens_total{kind="prompt",model="first"} 3.0' in page
    assert 'tierfall_requests_total{model="first",operation="embeddings",status="200"} 1.0' in page
    assert "tierfall_first_output_seconds_count" not in page  # they have no first token
    (line,) = [record for record in caplog.records if record.message == "embeddings"]
    assert line.fields["prompt_tokens"] == 3  # type: ignore[attr-defined]  # ours
