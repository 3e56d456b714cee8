"""The one limit of an answer: read under all its names, written under one, and what cannot be counted."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tierfall.chat.limit import ASSUMED_TOKENS, MOST_TOKENS, refuse_uncounted, write_limit
from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall.protocol.operation import Operation
from tierfall_ingress.ask import parse_ask
from tierfall_ingress.estimate import estimate

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "x"}


def members(fields: dict[str, Any]) -> dict[str, msgspec.Raw]:
    """Each field's bytes."""
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields.items()}


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": None, "max_completion_tokens": None, "n_predict": None, "options": None}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5}, 5),
        ({"n_predict": 5}, 5),
        ({"options": {"num_predict": 5, "top_k": 1}}, 5),
        ({"options": {"top_k": 1}}, None),
        ({"options": [1]}, None),
        ({"max_tokens": 5, "max_completion_tokens": 5.0, "n_predict": 5, "options": {"num_predict": 5}}, 5),
        ({"max_tokens": None, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 5e3}, 5000),
        ({"max_tokens": -1}, None),
        ({"max_tokens": -1.0, "options": {"num_predict": -1}}, None),
        ({"max_tokens": MOST_TOKENS}, MOST_TOKENS),
    ],
    ids=range(14),
)
def test_the_limit_is_read_under_all_its_names(fields: dict[str, Any], limit: int | None) -> None:
    """What one engine or another takes for it; null sets nothing, and -1 is how engines write no limit."""
    assert parse_ask(json.dumps({**CHAT, **fields}).encode()).max_tokens == limit
    assert parse_ask(json.dumps({**TEXT, **fields}).encode(), Operation.COMPLETIONS).max_tokens == limit


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 3000}, "max_tokens", "'max_completion_tokens'"),
        ({"max_tokens": 3000, "max_completion_tokens": 1}, "max_tokens", "'max_completion_tokens'"),
        ({"max_tokens": 1, "n_predict": 200}, "max_tokens", "'n_predict'"),
        ({"max_tokens": 1, "options": {"num_predict": -1}}, "max_tokens", "'options.num_predict'"),
        ({"max_completion_tokens": 1, "max_tokens": -1}, "max_tokens", "differ"),
        ({"max_tokens": "5000"}, "max_tokens", "whole number"),
        ({"max_completion_tokens": "5000"}, "max_completion_tokens", "whole number"),
        ({"max_tokens": 0.5}, "max_tokens", "whole number"),
        ({"max_tokens": True}, "max_tokens", "whole number"),
        ({"max_tokens": [1, {"a": 2}]}, "max_tokens", "whole number"),
        ({"max_tokens": list(range(5000))}, "max_tokens", "whole number"),
        ({"max_tokens": -2}, "max_tokens", "from"),
        ({"n_predict": -2}, "n_predict", "from"),
        ({"options": {"num_predict": -2}}, "options.num_predict", "from"),
        ({"max_tokens": MOST_TOKENS + 1}, "max_tokens", "from"),
        ({"max_tokens": 10**400}, "max_tokens", "whole number"),
        ({"best_of": 0}, "best_of", "from 1"),
        ({"best_of": 129}, "best_of", "from 1"),
        ({"best_of": "9"}, "best_of", "int"),
    ],
    ids=range(19),
)
def test_what_engines_would_read_differently_is_refused(
    fields: dict[str, Any], param: str, says: str
) -> None:
    """Two limits, and forms that one engine takes for a number and another for nothing: a 400 by name."""
    for good, operation in ((CHAT, Operation.CHAT), (TEXT, Operation.COMPLETIONS)):
        with pytest.raises(InvalidRequest) as caught:
            parse_ask(json.dumps({**good, **fields}).encode(), operation)
        assert caught.value.param == param
        assert says in caught.value.message


def test_of_a_repeated_limit_the_last_counts() -> None:
    """However its name is written; the worker's parser reads it the same way."""
    raw = b'{"model":"m","messages":[{}],"max_tokens":1,"max\\u005ftokens":7}'
    assert parse_ask(raw).max_tokens == 7


def test_no_token_at_all() -> None:
    """A completion may ask for nothing but its prompt's echo; what engines make of it is not known here."""
    ask = parse_ask(json.dumps({**TEXT, "max_tokens": 0}).encode(), Operation.COMPLETIONS)
    assert ask.max_tokens == 0
    assert estimate(ask).most == ASSUMED_TOKENS
    with pytest.raises(InvalidRequest):
        parse_ask(json.dumps({**CHAT, "max_tokens": 0}).encode())


@pytest.mark.parametrize(
    ("fields", "limit", "written"),
    [
        ({"max_tokens": 5, "x": 1}, 5, {"max_tokens": 5, "x": 1}),
        ({"max_completion_tokens": 5}, 5, {"max_completion_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 5, {"max_tokens": 5}),
        ({"max_tokens": None, "max_completion_tokens": 5.0}, 5, {"max_completion_tokens": 5}),
        ({"n_predict": 5}, 5, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "n_predict": 5}, 5, {"max_completion_tokens": 5}),
        ({"options": {"num_predict": 5}}, 5, {"options": {"num_predict": 5}, "max_tokens": 5}),
        ({"max_tokens": -1, "x": 1}, None, {"x": 1}),
        ({"max_tokens": None}, None, {"max_tokens": None}),
    ],
    ids=range(9),
)
def test_one_limit_travels(fields: dict[str, Any], limit: int | None, written: dict[str, Any]) -> None:
    """As a whole number, under one name that the endpoint knows."""
    body = members(fields)
    write_limit(body, limit, Operation.CHAT)
    assert {name: json.loads(bytes(raw)) for name, raw in body.items()} == written
    assert not any(b"." in bytes(body[name]) for name in written if name.startswith("max"))


def test_a_completion_has_one_name_for_it() -> None:
    """The newer one is ignored there by vLLM."""
    body = members({"max_completion_tokens": 5})
    write_limit(body, 5, Operation.COMPLETIONS)
    assert {name: bytes(raw) for name, raw in body.items()} == {"max_tokens": b"5"}


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_new_tokens": 5}, 1),
        ({"max_length": 5}, 1),
        ({"num_predict": -1}, 1),
        ({"n_cmpl": 8}, 1),
        ({"num_return_sequences": 8}, 1),
        ({"MAX_TOKENS": 5000}, 1),
        ({"N_Predict": 5000}, 1),
        ({"N": 100}, 1),
        ({"max_token\u017f": 5000}, 1),
        ({"max_to\u212aens": 5000}, 1),
        ({"models": ["dear"]}, 1),
        ({"fallbacks": ["dear"]}, 1),
        ({"Model": "dear"}, 1),
        ({"ignore_eos": True}, None),
        ({"min_tokens": 100_000}, None),
        ({"min_tokens": "100000"}, None),
        ({"min_tokens": list(range(100))}, None),
    ],
    ids=range(17),
)
def test_what_cannot_be_counted_is_refused_where_tokens_are(
    fields: dict[str, Any], limit: int | None
) -> None:
    """Engines' own names of limits and counts, in any case, and answers that are made to be long."""
    with pytest.raises(InvalidRequest) as caught:
        refuse_uncounted(members(fields), limit)
    assert not isinstance(caught.value, UnsupportedByTier)
    assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"n": 2, "max_tokens": 5, "best_of": 2, "options": {}, "top_k": 5}, 5),
        ({"ignore_eos": True, "min_tokens": 3}, 5),
        ({"ignore_eos": False, "min_tokens": 3}, None),
        ({"ignore_eos": None, "min_tokens": None, "max_length": None}, None),
    ],
    ids=range(4),
)
def test_what_can_be_counted_passes(fields: dict[str, Any], limit: int | None) -> None:
    """Also what asks for nothing."""
    refuse_uncounted(members(fields), limit)
