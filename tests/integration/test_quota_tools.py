"""``tierfall quota`` and what ``tierfall doctor`` says of quotas, on a real nats-server."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from fakes.nats_server import NatsServer
from tierfall.bus import Bus, BusOptions
from tierfall.cli import quota
from tierfall.cli.doctor import quotas
from tierfall.config import parse
from tierfall.errors import BusError
from tierfall.ledger import Ledger, Metric, Wish
from tierfall.quota import plans
from tierfall.store import QUOTA, Bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tierfall.config import Config

CONFIG = """
tiers:
  groq: {worker: cloud, provider: groq, api_keys: ['${K1}', '${K2}'], quota: {requests: [100/total]}}
models:
  a: {tier: groq, backend_model: one, quota: {requests: [10/total, 9/m], tokens: [900/d]}}
  b: {tier: groq, backend_model: two}
"""

BARE = """
tiers: {x: {worker: ollama, base_url: 'http://127.0.0.1:1'}}
models: {m: {tier: x, backend_model: m}}
"""


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    """A nats-server with JetStream."""
    async with NatsServer(jetstream=True) as server:
        yield server


@pytest.fixture
def path(tmp_path: Path, nats_server: NatsServer) -> Path:
    """The config's file."""
    found = tmp_path / "tierfall.yaml"
    found.write_text(f"nats: {{url: '{nats_server.url}'}}\n{CONFIG}")
    return found


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """A connected bus."""
    found = await Bus.connect(BusOptions(servers=nats_server.url, name="test"))
    yield found
    await found.close()


def read(path: Path) -> Config:
    """The config."""
    return parse(path.read_text(), {}, str(path))


async def use(bus: Bus, path: Path, requests: int, key: int = 0) -> None:
    """Uses up some of a key's quota for model ``a``."""
    plan = plans(read(path))["a"]
    ledger = Ledger(await Bucket.open(bus, QUOTA))
    amounts = {Metric.REQUESTS: requests, Metric.TOKENS: 30}
    limits = tuple(limit for limit in plan.limits if limit.window != "minute")
    await ledger.reserve(plan.scopes[key], Wish(limits=limits, amounts=amounts))
    await ledger.close()


async def told(path: Path, **options: Any) -> str:
    """What ``tierfall quota`` prints."""
    out = io.StringIO()
    status = await asyncio.to_thread(lambda: quota.run(path, {}, out, **options))
    assert status == 0
    return out.getvalue()


async def test_the_table(bus: Bus, path: Path) -> None:
    """Each window of each key: used, left, reset; what all models share is told once."""
    await use(bus, path, 4)
    lines = [line.split("  ") for line in (await told(path)).splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows[0] == ["MODEL", "KEY", "WINDOW", "USED", "LEFT", "RESET"]
    assert ["(all of the key)", "K1", "requests/total", "4 of 100", "96"] in rows
    assert ["a", "K1", "requests/total", "4 of 10", "6"] in rows
    assert ["a", "K1", "requests/minute", "0 of 9", "9"] in rows
    (day,) = [row for row in rows if row[:3] == ["a", "K1", "tokens/day"]]
    assert day[3:5] == ["30 of 900", "870"]
    assert day[5].endswith("00:00 UTC")
    assert ["a", "K2", "requests/total", "0 of 10", "10"] in rows
    assert sum(row[0] == "(all of the key)" for row in rows) == 2


async def test_a_spent_key_says_why(bus: Bus, path: Path) -> None:
    """What cannot be used now stands below the table, with the reason."""
    await use(bus, path, 10)
    text = await told(path)
    assert "a cannot be used with K1: the limit of 10 requests in total for one is spent" in text
    assert "with K2" not in text


async def test_json(bus: Bus, path: Path) -> None:
    """The same as ``GET /v1/quotas``, for scripts."""
    await use(bus, path, 10)
    data = json.loads(await told(path, as_json=True))["data"]
    assert [each["model"] for each in data] == ["a", "b"]
    assert data[0]["keys"][0]["windows"][1] | {"resets_at": None} == {
        "metric": "requests",
        "window": "total",
        "of": "one",
        "limit": 10,
        "used": 10,
        "left": 0,
        "resets_at": None,
    }


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A config without a quota."""
    found = tmp_path / "bare.yaml"
    found.write_text(BARE)
    return found


async def test_before_anything_was_used(path: Path, bare: Path) -> None:
    """Without a bucket nothing is used; a config without quotas says so and asks nobody."""
    assert "0 of 100" in await told(path)
    assert "has no quota" in await told(bare)


async def test_nats_away_or_without_jetstream_is_an_error(path: Path, nats_server: NatsServer) -> None:
    """The command ends with what is wrong, and with nothing that looks like an answer."""
    await nats_server.stop()
    nats_server._jetstream = False
    await nats_server.start()
    with pytest.raises(BusError, match="JetStream"):
        await told(path)


async def test_the_doctor_warns_of_what_is_spent_or_soon_will_be(bus: Bus, path: Path) -> None:
    """Fine, nearly spent with one key, spent with both: each in its own words."""
    config = read(path)

    async def findings() -> dict[str, tuple[str, str]]:
        found = await quotas.examine(config, bus, path)
        return {one.subject: (one.level.value, one.text) for one in found}

    assert await findings() == {"quota a": ("ok", "has some left"), "quota b": ("ok", "has some left")}
    await use(bus, path, 10)
    level, text = (await findings())["quota a"]
    assert level == "warn"
    assert text.startswith("K1: the limit of 10 requests in total for one is spent")
    await use(bus, path, 10, key=1)
    level, text = (await findings())["quota a"]
    assert (level, text.startswith("is spent. K1: the limit")) == ("warn", True)
    assert (await findings())["quota b"][0] == "ok"


async def test_the_doctor_finds_that_quotas_cannot_be_counted(path: Path, nats_server: NatsServer) -> None:
    """Without JetStream the models with a quota do not answer: a failure that names them and the cure."""
    await nats_server.stop()
    nats_server._jetstream = False
    await nats_server.start()
    bus = await Bus.connect(BusOptions(servers=nats_server.url, name="doctor"))
    (found,) = await quotas.examine(read(path), bus, path)
    await bus.close()
    assert found.level.value == "FAIL"
    assert "nothing is sent to a, b: NATS has no JetStream" in found.text
