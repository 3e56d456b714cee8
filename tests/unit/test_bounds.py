"""What a body may hold: refused before an object is made of it, and what is read of a large good one."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest

from tierfall.errors import InvalidRequest
from tierfall.protocol.operation import Operation
from tierfall_ingress.ask import parse_ask, read_ask
from tierfall_ingress.bounds import (
    MAX_BESIDE_BYTES,
    MAX_BESIDE_VALUES,
    MAX_ITEMS,
    MAX_VALUES,
    SLICE_BYTES,
)
from tierfall_ingress.estimate import MEDIA_TOKENS, read_estimate

MB = 1024 * 1024
TURNS_LIMIT = 10
CHAT, TEXT, EMBED = Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS


def chat(messages: bytes, rest: bytes = b"") -> bytes:
    """A chat request with these bytes for messages, and members behind them."""
    return b'{"model":"m","messages":[' + messages + b"]" + rest + b"}"


def many(item: bytes, count: int) -> bytes:
    """So many of them, in a list."""
    return item + (b"," + item) * (count - 1)


def members(count: int) -> bytes:
    """So many members of an object, and a comma."""
    return b",".join(b'"k%d":1' % number for number in range(count)) + b","


def user(content: str) -> dict[str, Any]:
    """A message."""
    return {"role": "user", "content": content}


def refused(body: bytes, operation: Operation = CHAT) -> InvalidRequest:
    """The refusal."""
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(read_ask(body, operation))
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (chat(many(b'{"":1}', 4_500_000)), CHAT),
        (chat(many(b"{}", 8_000_000)), CHAT),
        (chat(b"{" + members(2_500_000) + b'"role":"user","content":"x"}'), CHAT),
        (chat(b'{"content":[' + many(b"{}", 8_000_000) + b"]}"), CHAT),
        (chat(b"{}", b',"tools":[' + many(b"[[]]", 4_000_000) + b"]"), CHAT),
        (chat(b"{}", b',"x":[' + many(b"[" * 900 + b"]" * 900, 2000) + b"]"), CHAT),
        (b'{"model":"m","prompt":[' + many(b'""', 7_000_000) + b"]}", TEXT),
        (b'{"model":"m","prompt":[' + many(b"1", 7_000_000) + b"]}", TEXT),
        (b'{"model":"m","input":[' + many(b'""', 7_000_000) + b"]}", EMBED),
        (b'{"model":"m",' + members(2_500_000) + b'"input":"x"}', EMBED),
    ],
    ids=range(10),
)
def test_a_body_of_millions_of_values_costs_nothing_but_its_bytes(body: bytes, operation: Operation) -> None:
    """It is refused before it is parsed, by a message that names the bound."""
    tracemalloc.start()
    try:
        error = refused(body, operation)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(MAX_VALUES) in error.message
    assert peak < 4 * MB


@pytest.mark.parametrize(
    ("body", "operation", "param", "bound"),
    [
        (chat(many(b"{}", MAX_ITEMS + 1)), CHAT, "messages", MAX_ITEMS),
        (chat(many(b"{}", 450_000)), CHAT, "messages", MAX_ITEMS),
        (chat(b'{"content":[' + many(b"{}", MAX_ITEMS + 1) + b"]}"), CHAT, "messages[0].content", MAX_ITEMS),
        (
            chat(many(b'{"content":[' + many(b'"x"', 3) + b"]}", MAX_ITEMS // 2)),
            CHAT,
            f"messages[{MAX_ITEMS // 3}].content",
            MAX_ITEMS,
        ),
        (
            chat(b'{},{"tool_calls":[' + many(b"{}", MAX_ITEMS + 1) + b"]}"),
            CHAT,
            "messages[1].tool_calls",
            MAX_ITEMS,
        ),
        (chat(b"{" + members(200_000) + b'"content":"x"}'), CHAT, "messages", MAX_BESIDE_BYTES),
        (chat(b"{}", b"," + members(MAX_BESIDE_VALUES) + b'"x":1'), CHAT, None, MAX_BESIDE_VALUES),
        (b'{"model":"m","prompt":[' + many(b'""', MAX_ITEMS + 1) + b"]}", TEXT, "prompt", MAX_ITEMS),
        (b'{"model":"m","prompt":[' + many(b'""', 1000) + b'],"n":128}', TEXT, "n", MAX_ITEMS),
        (b'{"model":"m","input":[' + many(b'""', MAX_ITEMS + 1) + b"]}", EMBED, "input", MAX_ITEMS),
    ],
    ids=range(10),
)
def test_each_kind_of_item_has_its_bound(
    body: bytes, operation: Operation, param: str | None, bound: int
) -> None:
    """A 400 that names the place and the bound, whatever the size of the body."""
    error = refused(body, operation)
    assert error.param == param
    assert str(bound) in error.message


@pytest.mark.parametrize(
    ("body", "operation", "choices"),
    [
        (json.dumps({"model": "m", "messages": [user("a, b. " * 10)] * MAX_ITEMS}).encode(), CHAT, 1),
        (json.dumps({"model": "m", "messages": [user("1,[{" * 300_000), user("é" * MB)]}).encode(), CHAT, 1),
        (b'{"model":"m","prompt":[' + many(b" 1234", 400_000) + b"]}", TEXT, 1),
        (b'{"model":"m","input":[' + many(b"[1,2]", MAX_ITEMS) + b"]}", EMBED, MAX_ITEMS),
        (chat(b"{}", b',"guided_choice":[' + many(b'"x"', 100_000) + b"]"), CHAT, 1),
    ],
    ids=range(5),
)
async def test_long_conversations_and_texts_pass(body: bytes, operation: Operation, choices: int) -> None:
    """As long as some model's context could hold; read with pauses or without, it is the same request."""
    found = await read_ask(body, operation)
    assert found == parse_ask(body, operation)
    assert (found.choices, found.body) == (choices, body)


@pytest.mark.parametrize("at", [0, 1, 2, SLICE_BYTES - 60, SLICE_BYTES - 1, 2 * SLICE_BYTES])
def test_bad_utf8_is_found_in_every_slice(at: int) -> None:
    """Also where a character lies across two slices; the error names the byte."""
    text = ("xé€\U0001f600" * (3 * SLICE_BYTES // 10)).encode()
    good = chat(b'{"content":"' + text + b'"}')
    assert parse_ask(good).model == "m"
    place = good.index(b"x", 30 + at)
    with pytest.raises(InvalidRequest) as caught:
        parse_ask(good[:place] + b"\xff" + good[place + 1 :])
    assert f"byte {place} " in caught.value.message


def test_a_large_body_leaves_the_loop_to_others() -> None:
    """Other work gets its turn many times while thirty megabytes are read."""
    body = chat(b'{"content":"' + ("é" * (15 * MB)).encode() + b'"}')

    async def count_turns() -> int:
        turns, reading = 0, asyncio.ensure_future(read_ask(body, CHAT))
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        assert reading.result().body is body
        return turns

    assert asyncio.run(count_turns()) > TURNS_LIMIT


def test_the_estimate_builds_nothing_of_a_large_body() -> None:
    """A key with limits makes a request cost about as much memory as another one."""
    image = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + b"A" * (20 * MB) + b'"}}'
    ask = parse_ask(chat(b'{"content":[{"type":"text","text":"x"},' + image + b"]}"))
    tracemalloc.start()
    try:
        found = asyncio.run(read_estimate(ask))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert MEDIA_TOKENS < found.prompt < MEDIA_TOKENS + 100
    assert peak < MB
