"""What a user writes and what a model says stay between the two: in no log, no metric, no error message."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from fakes.gateway import BROKEN, KEYS, Gateway, asking
from fakes.polling import until
from fakes.raw_client import RawClient, chat_request
from fakes.scripted import Step, chunk, says
from tierfall.logs import HumanFormatter, JsonFormatter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CANARY = "canary7f3a"
KEY = "Authorization: Bearer sk-all-1234567890"
BAD_BODIES = [
    json.dumps(asking(CANARY)).encode()[:-1],
    json.dumps(asking(CANARY)).encode() + CANARY.encode(),
    json.dumps(asking(CANARY, stream=CANARY)).encode(),
    json.dumps(asking(CANARY, n=CANARY)).encode(),
    json.dumps(asking(CANARY, stream_options=CANARY, stream=True)).encode(),
    json.dumps(asking(CANARY, messages=[CANARY])).encode(),
    json.dumps(asking(CANARY, messages={"role": CANARY})).encode(),
    json.dumps(asking(CANARY)).encode().replace(b'"role"', b"NaN"),
    json.dumps(asking(CANARY)).encode().replace(b"user", b"\xff"),
    CANARY.encode(),
    json.dumps([CANARY]).encode(),
    json.dumps(CANARY).encode(),
]


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """All that is logged at INFO and above, in both forms."""
    told = io.StringIO()
    handlers = [logging.StreamHandler(told), logging.StreamHandler(told)]
    handlers[0].setFormatter(JsonFormatter("test"))
    handlers[1].setFormatter(HumanFormatter())
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    yield told
    for handler in handlers:
        root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture
async def gateway(written: io.StringIO) -> AsyncIterator[Gateway]:
    """A gateway with keys whose logs, metrics and pages hold no canary and no key at the end."""
    async with Gateway(KEYS) as running:
        yield running
        await until(lambda: running.idle)
        headers = {"Authorization": "Bearer sk-all-1234567890"}
        for path in ("/metrics", "/health", "/v1/models"):
            answer = await running.client.get(path, headers=headers)
            assert answer.status_code == 200
            assert CANARY not in answer.text
    lines = written.getvalue()
    assert "tierfall" in lines
    assert CANARY not in lines
    assert "sk-all" not in lines


async def ask(gateway: Gateway, **fields: Any) -> bytes:
    """One request with the canary in it, read to its end."""
    return (await gateway.raw(chat_request(asking(CANARY, **fields), KEY))).body


@pytest.mark.parametrize("stream", [True, False])
async def test_good_answers_are_not_written_down(
    gateway: Gateway, written: io.StringIO, stream: bool
) -> None:
    """Prompt, answer, reasoning, tool arguments: the client has them, the log has the request's outcome."""
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": CANARY}}
    gateway.one.scripts.append([chunk(reasoning_content=CANARY), chunk(tool_calls=[call]), *says(CANARY)])
    assert (await ask(gateway, stream=stream, user=CANARY, metadata={"a": CANARY})).count(b"canary") >= 3
    assert '"status":200' in written.getvalue()


async def test_a_refusal_quotes_nothing(gateway: Gateway) -> None:
    """The 400 says where and what is wrong, never what was there."""
    for raw in BAD_BODIES:
        answer = await gateway.raw(chat_request(raw, KEY))
        assert answer.status == 400, raw
        assert CANARY.encode() not in answer.body, raw


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "script",
    [
        [chunk(CANARY), BROKEN],
        [chunk(CANARY), CANARY.encode()],
        [json.dumps({"error": {"message": CANARY}}).encode()],
        [json.dumps({"choices": [{"delta": CANARY}]}).encode()],
        [chunk(CANARY), chunk(finish="stop"), json.dumps({"choices": [], "usage": [CANARY]}).encode()],
    ],
    ids=range(5),
)
async def test_a_failing_answer_is_not_written_down(
    gateway: Gateway, script: list[Step], stream: bool
) -> None:
    """A stream that breaks, garbles or reports an error tells its class and nothing of its text."""
    gateway.one.scripts.extend([script] * 2)
    body = await ask(gateway, model="honest", stream=stream)
    if b'"error"' in body:
        assert CANARY.encode() not in body[body.index(b'"error"') :]


async def test_a_defect_of_a_backend_is_not_written_down(gateway: Gateway, written: io.StringIO) -> None:
    """An exception nobody foresaw is logged with its traceback, which holds no local values."""

    async def chat(_: Any) -> AsyncIterator[bytes]:
        local = CANARY
        yield chunk(local)
        raise ZeroDivisionError

    gateway.one.chat = chat  # type: ignore[method-assign,assignment]  # a backend with a defect
    body = await ask(gateway, model="honest")
    assert b'"error"' in body
    assert "ZeroDivisionError" in written.getvalue()


async def test_what_is_sent_by_a_client_that_leaves_is_not_written_down(gateway: Gateway) -> None:
    """Hanging up is logged as an outcome."""
    gateway.one.scripts.append([chunk(CANARY), asyncio.Event()])
    async with RawClient(gateway.url) as client:
        await client.chat(asking(CANARY, stream=True), KEY)
        await client.head()
    await until(lambda: gateway.one.cancelled == 1)


async def test_an_unknown_model_is_no_label(gateway: Gateway) -> None:
    """A name that a client made up is shown to that client only."""
    assert CANARY.encode() in await ask(gateway, model=CANARY)
