"""What a client is told of its limits, and what a request is taken to come to before it is counted."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tierfall.ledger import Account, Limit, Metric, Window
from tierfall.ledger.account import Cell
from tierfall.protocol.operation import Operation
from tierfall_ingress.ask import parse_ask
from tierfall_ingress.estimate import ASSUMED_TOKENS, MEDIA_TOKENS, Estimate, estimate, usual
from tierfall_ingress.ratelimit import duration, rate_limit_headers

NOON = 1_700_000_000 // 86400 * 86400 + 43200
MINUTE = Limit(Metric.REQUESTS, 10, Window.MINUTE)
DAY = Limit(Metric.REQUESTS, 100, Window.DAY)
TOKENS = Limit(Metric.TOKENS, 5000, Window.TOTAL)
BUDGET = Limit(Metric.COST, 5000, Window.DAY)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (-3, "0s"),
        (0.0004, "1ms"),
        (0.012, "12ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9996, "1m0s"),
        (360, "6m0s"),
        (179.56, "2m59.56s"),
        (47_120, "13h5m20s"),
        (86_400, "24h0m0s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, shown: str) -> None:
    """Hours, minutes and seconds; below a second milliseconds."""
    assert duration(seconds) == shown


def test_the_window_with_the_least_left_is_told() -> None:
    """Limit, remaining and reset belong to the same window; used up is 0, never less."""
    account = Account(
        cells={
            MINUTE.key: [Cell(NOON - 30, 2), Cell(NOON - 10, 1)],
            DAY.key: [Cell(NOON - 43200, 40)],
            TOKENS.key: [Cell(0, 5001)],
        }
    )
    headers = dict(rate_limit_headers(account, (MINUTE, DAY, TOKENS, BUDGET), NOON))
    assert headers == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"7",
        b"x-ratelimit-reset-requests": b"54s",
        b"x-ratelimit-limit-tokens": b"5000",
        b"x-ratelimit-remaining-tokens": b"0",
    }
    account.cells[DAY.key] = [Cell(NOON - 43200, 95)]
    headers = dict(rate_limit_headers(account, (MINUTE, DAY), NOON))
    assert headers == {
        b"x-ratelimit-limit-requests": b"100",
        b"x-ratelimit-remaining-requests": b"5",
        b"x-ratelimit-reset-requests": b"12h0m0s",
    }


def test_limits_that_are_not_there_are_not_told() -> None:
    """A budget alone has no header of OpenAI's; nothing used is reset at once."""
    assert rate_limit_headers(Account(), (BUDGET,), NOON) == []
    assert dict(rate_limit_headers(Account(), (MINUTE,), NOON)) == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"10",
        b"x-ratelimit-reset-requests": b"0s",
    }


def estimated(content: Any = "x" * 4000, **fields: Any) -> Estimate:
    """The estimate of a chat request."""
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    return estimate(parse_ask(msgspec.json.encode(body)))


def test_the_prompt_is_estimated_by_its_length() -> None:
    """Four bytes of UTF-8 are a token, and the JSON around them stands for the template."""
    assert 1000 <= estimated().prompt <= 1030
    assert 3000 <= estimated("語" * 4000).prompt <= 3030


@pytest.mark.parametrize(
    ("fields", "most", "told"),
    [
        ({}, ASSUMED_TOKENS, False),
        ({"max_tokens": 50}, 50, True),
        ({"max_completion_tokens": 60}, 60, True),
        ({"max_tokens": 50, "max_completion_tokens": 50}, 50, True),
        ({"max_tokens": None, "max_completion_tokens": 60}, 60, True),
        ({"max_tokens": 50, "n": 3}, 150, True),
        ({"n": 2}, 2 * ASSUMED_TOKENS, False),
        ({"max_tokens": 5000.0}, 5000, True),
        ({"n_predict": 200}, 200, True),
        ({"options": {"num_predict": 200}}, 200, True),
        ({"max_tokens": -1}, ASSUMED_TOKENS, False),
        ({"max_tokens": 50, "best_of": 4, "n": 2}, 200, True),
        ({"max_tokens": 50, "min_tokens": 50, "ignore_eos": True}, 50, True),
    ],
)
def test_the_answer_is_what_the_client_allows(fields: dict[str, Any], most: int, *, told: bool) -> None:
    """``max_tokens`` of each choice counts; without it a length is assumed."""
    found = estimated(**fields)
    assert (found.most, found.told) == (most, told)
    assert 0 < usual(most) <= most


def test_embeddings_have_no_answer() -> None:
    """Whatever is embedded is prompt alone; a completion has an answer for each prompt."""
    body = msgspec.json.encode({"model": "m", "input": ["x" * 4000] * 3})
    assert estimate(parse_ask(body, Operation.EMBEDDINGS)) == Estimate(-(-len(body) // 4), 0, told=True)
    body = msgspec.json.encode({"model": "m", "prompt": ["x", "y"], "max_tokens": 30, "n": 2})
    assert estimate(parse_ask(body, Operation.COMPLETIONS)) == Estimate(-(-len(body) // 4), 120, told=True)


@pytest.mark.parametrize("tokens", ["[1,2,3,4]", "[[1,2],[3,4]]", "[ [ 1 , 2 , 3 ] , [ 4 ] ]"])
def test_listed_tokens_are_counted(tokens: str) -> None:
    """Not taken by their bytes, of which two can be a token."""
    many = tokens.replace("4", ",".join(["4"] * 997))
    body = f'{{"model":"m","input":{many}}}'.encode()
    assert estimate(parse_ask(body, Operation.EMBEDDINGS)).prompt == 1000
    body = f'{{"model":"m","max_tokens":1,"prompt":{many}}}'.encode()
    assert estimate(parse_ask(body, Operation.COMPLETIONS)).prompt == 1000


def test_only_a_chat_has_media() -> None:
    """What a completion calls messages is read by no backend, and may be anything."""
    body = msgspec.json.encode({"model": "m", "prompt": "x", "file": 1, "messages": [1]})
    assert estimate(parse_ask(body, Operation.COMPLETIONS)).prompt == -(-len(body) // 4)


def test_media_have_a_flat_rate() -> None:
    """A megabyte of base64 is not a quarter of a million tokens."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    found = estimated([{"type": "text", "text": "x" * 4000}, image, image])
    assert 1000 + 2 * MEDIA_TOKENS <= found.prompt <= 1050 + 2 * MEDIA_TOKENS
    assert estimated('an "image_url" in words').prompt < 50
    for kind in ({}, {"type": "input_text"}, {"type": None}):
        assert estimated([image, {**kind, "text": "x" * 80_000}]).prompt > 20_000
    assert estimated([{"type": "image_url"}, "image_url", 7]).prompt < 50 + MEDIA_TOKENS
