"""What ``tierfall doctor`` says of client keys that NATS keeps, and of limits."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.scripted import ScriptedBackend
from fakes.stack import Stack
from tierfall.cli.doctor import Request, run
from tierfall.config import Limits
from tierfall.keys import KeyStore
from tierfall.store import KEYS, QUOTA, Bucket

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
server:
  stored_keys: true
  api_keys: [{key: sk-1, name: plain}, {key: sk-2, name: ci, limits: {requests: [9/m]}}]
tiers: {one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}}
models: {first: {tier: one, backend_model: tiny}}
"""


async def findings(folder: Path, stack: Stack, config: str = CONFIG, subject: str = "jetstream") -> list[Any]:
    """Runs the doctor on this config; what it found about one thing."""
    path = folder / "tierfall.yaml"
    path.write_text(f"nats: {{url: '{stack.nats.url}'}}\n{config}")
    out = io.StringIO()
    request = Request(config=path, url=stack.url, json=True, trial=False)
    await asyncio.to_thread(run, request, {}, out)
    return [one for one in json.loads(out.getvalue())["findings"] if one["subject"] == subject]


async def test_stored_keys_are_counted(tmp_path: Path) -> None:
    """How many there are, those that cannot be read, and a config that lets none of them in."""
    nats = NatsServer(jetstream=True)
    async with nats, Stack(CONFIG, {"one": ScriptedBackend()}, nats=nats) as stack:
        await KeyStore(stack.services.bus).create("alice", None, Limits())
        (found,) = await findings(tmp_path, stack)
        assert (found["level"], found["text"]) == ("ok", "keeps tierfall_keys: 1 client key")
        await Bucket(stack.services.bus, KEYS).put("future", b"{}")
        ok, unreadable = await findings(tmp_path, stack)
        assert (ok["level"], unreadable["level"]) == ("ok", "warn")
        assert unreadable["command"].endswith(" future")
        closed = CONFIG.replace("stored_keys: true", "stored_keys: false")
        assert [one["level"] for one in await findings(tmp_path, stack, closed)] == ["ok", "warn", "warn"]
        (asked,) = await findings(tmp_path, stack, subject="keys")
        assert asked["text"] == "takes plain"


async def test_an_account_that_cannot_be_read_is_found(tmp_path: Path) -> None:
    """Whose it is, what that costs, and what to type."""
    nats = NatsServer(jetstream=True)
    async with nats, Stack(CONFIG, {"one": ScriptedBackend()}, nats=nats) as stack:
        quota = await Bucket.open(stack.services.bus, QUOTA)
        await quota.put("client.config.ci", b"garbage")
        await quota.put("client.config.plain", b"garbage")
        found = [one for one in await findings(tmp_path, stack) if one["level"] == "fail"]
        assert [one["command"] for one in found] == ["nats kv del tierfall_quota client.config.ci"]
        assert "ci is answered 503: the ledger's account client.config.ci cannot be read" in found[0]["text"]


async def test_a_missing_jetstream_is_told_with_its_price(tmp_path: Path) -> None:
    """Which keys are answered 503 because of it, and what to switch on; nothing where nothing needs it."""
    async with Stack(CONFIG, {"one": ScriptedBackend()}) as stack:
        stored = stack.services.stored
        assert stored is not None
        await until(lambda: stored.problem)
        (found,) = await findings(tmp_path, stack)
        assert found["level"] == "fail"
        assert found["text"].endswith(
            "Without it no stored key is let in and keys with limits are answered 503: ci"
        )
        assert found["command"].startswith("jetstream { store_dir: ")
        bare = CONFIG.partition("tiers:")
        assert await findings(tmp_path, stack, f"server: {{api_keys: [sk-1]}}\n{''.join(bare[1:])}") == []
