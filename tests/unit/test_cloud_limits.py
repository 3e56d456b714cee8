"""What a provider's headers say of limits, and how many tokens a request will come to."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierfall.ledger import Limit, Metric, Window
from tierfall_worker_cloud import said, tokens
from tierfall_worker_cloud.providers import GROQ, MISTRAL, OPENAI, PROVIDERS

DAY = Limit(Metric.REQUESTS, 1000, Window.DAY)
MINUTE = Limit(Metric.REQUESTS, 30, Window.MINUTE)
TOKENS = Limit(Metric.TOKENS, 6000, Window.MINUTE)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2m59.56s", 179.56),
        ("7.66s", 7.66),
        ("6ms", 0.006),
        ("1h0m0s", 3600),
        ("1d2h", 93_600),
        ("40", 40),
        ("0s", 0),
        ("1.5", 1.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """As Groq, OpenAI and Mistral write them."""
    assert said.seconds(text) == pytest.approx(seconds)


@given(st.text(max_size=30) | st.from_regex(r"[\dhms. -]{1,20}", fullmatch=True))
def test_any_duration_is_read_or_not_one(text: str) -> None:
    """No header breaks the reading; what is read is a time from now on."""
    found = said.seconds(text)
    assert found is None or 0 <= found < float("inf")


def words(gauges: Any, headers: dict[str, str], *limits: Limit) -> list[tuple[Limit, int, Any]]:
    """What was understood."""
    return [(word.limit, word.left, word.resets_in_s) for word in said.words(gauges, headers, limits)]


def test_groqs_headers() -> None:
    """Requests by the day, tokens by the minute, with the time until all is there again."""
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-requests": "14370",
        "x-ratelimit-remaining-tokens": "5997",
        "x-ratelimit-reset-requests": "2m59.56s",
        "x-ratelimit-reset-tokens": "7.66s",
    }
    assert words(GROQ.gauges, headers, DAY, MINUTE, TOKENS) == [
        (DAY, 14_370, pytest.approx(179.56)),
        (TOKENS, 5997, pytest.approx(7.66)),
    ]


def test_the_amount_tells_the_window() -> None:
    """OpenAI's headers speak of the day where the account is limited by it: the amount shows that."""
    headers = {"x-ratelimit-remaining-requests": "12"}
    assert words(OPENAI.gauges, headers, DAY, MINUTE) == [(MINUTE, 12, None)]
    headers["x-ratelimit-limit-requests"] = "1000"
    assert words(OPENAI.gauges, headers, DAY, MINUTE) == [(DAY, 12, None)]


def test_mistrals_headers() -> None:
    """Both generations of them, minute and month."""
    month = Limit(Metric.TOKENS, 10**9, Window.MONTH)
    headers = {
        "x-ratelimit-remaining-req-minute": "59",
        "x-ratelimit-remaining-tokens-minute": "47196",
        "x-ratelimit-remaining-tokens-month": "3950246",
    }
    assert words(MISTRAL.gauges, headers, MINUTE, TOKENS, month) == [
        (MINUTE, 59, None),
        (TOKENS, 47_196, None),
        (month, 3_950_246, None),
    ]
    old = {"x-ratelimitbysize-remaining-minute": "467993", "ratelimitbysize-reset": "40"}
    assert words(MISTRAL.gauges, old, MINUTE, TOKENS) == [(TOKENS, 467_993, 40)]


@given(
    st.sampled_from(list(PROVIDERS.values())),
    st.dictionaries(
        st.sampled_from(
            [
                "x-ratelimit-remaining-requests",
                "x-ratelimit-limit-requests",
                "x-ratelimit-reset-requests",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-remaining-req-minute",
            ]
        ),
        st.text(max_size=12) | st.integers().map(str),
    ),
)
def test_any_headers_are_understood_or_ignored(provider: Any, headers: dict[str, str]) -> None:
    """Whatever a provider sends, nothing breaks, and nothing negative is believed."""
    assert all(left >= 0 for _, left, _ in words(provider.gauges, headers, DAY, MINUTE, TOKENS))


def body(**members: Any) -> dict[str, msgspec.Raw]:
    """A request's members."""
    found = {"messages": [{"role": "user", "content": "x" * 360}], **members}
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in found.items()}


def test_what_a_request_may_come_to() -> None:
    """The prompt by its length, and the longest answer that the client allows, for each choice."""
    prompt = tokens.estimate(body(), 10**9).prompt
    assert 90 <= prompt <= 110
    assert tokens.estimate(body(max_tokens=50), 10**9).most == prompt + 50
    assert tokens.estimate(body(max_completion_tokens=50, n=3), 10**9).most == prompt + 150
    assert tokens.estimate(body(), 10**9).most == prompt + tokens.ANSWER_TOKENS
    assert tokens.estimate(body(), 10**9).likely == prompt + tokens.LIKELY_TOKENS


@pytest.mark.parametrize(("asked", "answers"), [("a", 2), ([1, 2], 2), (["a", "b", "c"], 6), ([[1], [2]], 4)])
def test_each_prompt_has_its_answers(asked: object, answers: int) -> None:
    """A completion of several prompts reserves for each of them; embeddings reserve no answer at all."""
    several = body(max_tokens=50, n=2, prompt=asked)
    found = tokens.estimate(several, 10**9)
    assert found.most == found.prompt + answers * 50
    none = tokens.estimate(several, 10**9, answers=False)
    assert none.most == none.prompt


def test_only_the_clients_own_wish_is_above_a_limit() -> None:
    """Our guess never keeps a request from being sent; what the client asks for may."""
    assert tokens.estimate(body(), 500).most == 500
    assert tokens.estimate(body(max_tokens=450), 500).most == 500
    assert tokens.estimate(body(max_tokens=501), 500).most > 500


def test_pictures_in_the_request_are_not_counted_as_text() -> None:
    """A megabyte of base64 is a picture, and no quarter of a million tokens."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    found = tokens.estimate(body(messages=[{"role": "user", "content": [picture]}]), 10**9)
    assert tokens.IMAGE_TOKENS < found.prompt < tokens.IMAGE_TOKENS + 100


@pytest.mark.parametrize(
    ("payload", "used"),
    [
        (b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":9}}', 9),
        (b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}', 7),
        (b'{"choices":[],"usage":null}', None),
        (b'{"choices":[{"delta":{"content":"\\"usage\\""}}]}', None),
        (b'{"usage":{"total_tokens":"nine"}}', None),
        (b'{"usage":', None),
    ],
)
def test_usage(payload: bytes, used: int | None) -> None:
    """The provider's count, thinking tokens included; nothing where there is none."""
    assert tokens.used(payload) == used
