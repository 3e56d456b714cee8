"""Quotas and several keys in the config: what is read, and what is refused with a word on what is right."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest

from tierfall.cli import check
from tierfall.config import CloudTier, Quota, Rate, Secret, notes, parse
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """
tiers:
  groq: {worker: cloud, provider: groq, KEYS, quota: {TIER}}
  gpu: {worker: vllm, base_url: http://127.0.0.1:8000/v1}
models:
  groq/llama: {tier: groq, backend_model: llama, quota: {MODEL}}
  llama: {tier: groq, backend_model: llama, quota: {TWIN}}
  own: {tier: gpu, backend_model: own, quota: {OWN}}
"""
KEYS = "api_keys: ['${A}', '${B}']"


def text(keys: str = KEYS, tier: str = "", model: str = "", twin: str | None = None, own: str = "") -> str:
    """A config with a piece put in."""
    found = TEXT.replace("KEYS", keys).replace("{TIER}", f"{{{tier}}}").replace("{OWN}", f"{{{own}}}")
    return found.replace("{MODEL}", f"{{{model}}}").replace(
        "{TWIN}", f"{{{model if twin is None else twin}}}"
    )


def test_a_quota_is_read() -> None:
    """Every key of a quota arrives in the config, on a tier and on a model."""
    model = "requests: [30/m, 6000/d], tokens: [6000/m], timezone: Europe/Berlin, smooth: 4/m"
    config = parse(text(tier="requests: [60/m]", model=model), {"A": "1", "B": "2"}, "home.yaml")
    tier = config.tiers["groq"]
    assert isinstance(tier, CloudTier)
    assert tier.keys == (Secret("1", "A"), Secret("2", "B"))
    assert tier.quota == Quota(requests=(Rate(60, "minute"),))
    assert config.models["groq/llama"].quota == Quota(
        requests=(Rate(30, "minute"), Rate(6000, "day")),
        tokens=(Rate(6000, "minute"),),
        timezone="Europe/Berlin",
        smooth=Rate(4, "minute"),
    )
    assert not config.models["own"].quota


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (text("api_key: a, api_keys: [b]"), "tiers.groq.api_key: stands beside api_keys"),
        (text("max_in_flight: 1"), "tiers.groq.api_key: is missing"),
        (text("api_keys: []"), "tiers.groq.api_key: is missing"),
        (text("api_keys: ['${A}', '${A}']"), r"tiers.groq.api_keys\[1\]: stands in the list already"),
        (text(tier="requests: [30]"), r'tiers.groq.quota.requests\[0\]: is "30", must be an amount and m'),
        (text(tier="requests: 30/m"), "tiers.groq.quota.requests: is a single value, must be a list"),
        (
            text(model="tokens: [9/m, 8/m]"),
            r"quota.tokens\[1\]: is a second limit by min",
        ),
        (text(model="requests: [9/d], timezone: PST"), 'quota.timezone: "PST" is no time zone'),
        (text(model="smooth: 4/d"), 'quota.smooth: is "4/d", must be so many a minute, such as 4/m'),
        (text(tier="smooth: 9/m", model="smooth: 4/m"), 'smooth: stands beside that of tier "groq"'),
        (
            text(model="requests: [9/d]", twin="requests: [8/d]"),
            'llama.quota: differs from that of "gro',
        ),
        (text(own="requests: [9/d]"), 'models.own.quota: has no meaning on tier "gpu"'),
        (text(tier="request: [9/d]"), 'quota.request: unknown key; did you mean "requests"'),
    ],
)
def test_what_is_wrong_with_a_quota(bad: str, expected: str) -> None:
    """Every mistake is refused with its path and what would be right."""
    with pytest.raises(ConfigError, match=expected):
        parse(bad, {"A": "1", "B": "2"}, "home.yaml")


def test_one_of_several_keys_may_be_missing() -> None:
    """A tier with one key of two goes on with that; with none it cannot answer. Both are noted."""
    some = notes(parse(text(), {"A": "1"}, "home.yaml"))
    assert "tiers.groq.api_keys[1]: B is not set, so this tier goes without it" in some
    none = notes(parse(text(), {}, "home.yaml"))
    assert "tiers.groq.api_keys[0]: A is not set, so this tier cannot answer" in none


def test_check_tells_the_quotas(tmp_path: Path) -> None:
    """``tierfall check`` lists each limit once: what all models of a tier share, and what one has alone."""
    path, out = tmp_path / "home.yaml", io.StringIO()
    path.write_text(text(tier="requests: [60/m]", model="requests: [6000/d], smooth: 4/m"))
    assert check.run(str(path), out, {"A": "1", "B": "2"}) == 0
    rows = [re.split(r" {2,}", line) for line in out.getvalue().splitlines()]
    assert ["all of tier groq", "60 requests a minute", "A, B", "UTC"] in rows
    assert ["groq/llama", "6000 requests a day", "A, B", "UTC"] in rows
    assert ["llama", "one each 15s", "A, B", "UTC"] in rows
    assert sum(row[0] == "all of tier groq" for row in rows) == 1
