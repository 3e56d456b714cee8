"""``tierfall keys`` against a real nats-server: what it prints, stores, and says when it cannot."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import pytest

from fakes.guarded import write_users
from fakes.nats_server import NatsServer
from tierfall.bus import Bus, BusOptions
from tierfall.cli.main import main
from tierfall.keys import KeyStore, digest, ledger_limits
from tierfall.ledger import Ledger, Metric, Wish
from tierfall.store import KEYS, QUOTA, Bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fakes.buses import Buses

TEXT = """
server: {stored_keys: true, api_keys: ["${NOT_SET_HERE}"]}
nats: {url: '%s'}
tiers: {one: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}}
models:
  first: {tier: one, backend_model: tiny}
  second: {tier: one, backend_model: tiny}
"""


class Command:
    """Runs the command for one config; what it printed is in ``out`` and ``err``."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._path = path
        self._capsys = capsys
        self.out = self.err = ""

    async def __call__(self, doing: str, *arguments: str) -> int:
        """Its exit status."""
        status = await asyncio.to_thread(main, ["keys", doing, "--config", str(self._path), *arguments])
        self.out, self.err = self._capsys.readouterr()
        return status


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    """A nats-server with JetStream."""
    async with NatsServer(jetstream=True) as server:
        yield server


@pytest.fixture
def keys(nats_server: NatsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, for a config with this server."""
    path = tmp_path / "tierfall.yaml"
    path.write_text(TEXT % nats_server.url)
    return Command(path, capsys)


async def test_a_key_is_shown_once_and_kept_hashed(keys: Command, bus_factory: Buses) -> None:
    """The key alone is on stdout, and neither it nor a part that matters is in the bucket or in the list."""
    assert (
        await keys("create", "--name", "alice", "--model", "first", "--requests", "60/m", "--budget", "1/d")
        == 0
    )
    key = keys.out.strip()
    assert key.startswith("sk-tf-")
    assert "shown this once" in keys.err
    bucket = await Bucket.open(await bus_factory(), KEYS)
    entry = await bucket.get("alice")
    assert entry is not None
    assert json.loads(entry.value)["digest"] == digest(key).hex()
    assert key[10:].encode() not in entry.value

    assert await keys("create", "--name", "bob") == 0
    assert await keys("list") == 0
    lines = keys.out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "alice", "bob"]
    assert lines[1].endswith("first   requests 0 of 60/m; budget 0 of 1/d")
    assert lines[2].endswith("all     no limits")
    assert key[:10] in lines[1]
    assert key[10:] not in keys.out
    assert await keys("list", "--json") == 0
    listed = json.loads(keys.out)
    assert [each["name"] for each in listed] == ["alice", "bob"]
    assert listed[0]["limits"] == {"requests": ["60/m"], "budget": ["1/d"]}
    assert "digest" not in listed[0]
    assert [use["of"] for use in listed[0]["used"]] == ["60/m", "1/d"]


async def test_the_list_tells_what_is_used(keys: Command, bus_factory: Buses) -> None:
    """Each limit of a key with what counts towards it now; money in the currency."""
    assert (
        await keys(
            "create", "--name", "alice", "--requests", "9/m", "--tokens", "500/d", "--budget", "2/total"
        )
        == 0
    )
    bus = await bus_factory()
    (record,) = (await KeyStore(bus).all())[0].values()
    ledger = Ledger(await Bucket.open(bus, QUOTA))
    amounts = {Metric.REQUESTS: 1, Metric.TOKENS: 90, Metric.COST: 1_250_000}
    await ledger.reserve(record.scope, Wish(limits=ledger_limits(record.limits), amounts=amounts))
    await ledger.close()
    assert await keys("list") == 0
    assert keys.out.rstrip().endswith("requests 1 of 9/m; tokens 90 of 500/d; budget 1.25 of 2/total")
    assert await keys("list", "--json") == 0
    assert [use["used"] for use in json.loads(keys.out)[0]["used"]] == [1, 90, 1.25]


async def test_a_name_is_taken_once(keys: Command) -> None:
    """A second key of a name is refused until the first is revoked; the new one is another key."""
    assert await keys("create", "--name", "alice") == 0
    first = keys.out
    assert await keys("create", "--name", "alice") == 1
    assert "there is a key named alice already" in keys.err
    assert keys.out == ""
    assert await keys("revoke", "alice") == 0
    assert await keys("create", "--name", "alice") == 0
    assert keys.out != first


async def test_revoking(keys: Command, bus_factory: Buses) -> None:
    """What is revoked is gone, and what it has used with it; a name that is not there is said."""
    bus = await bus_factory()
    bucket, quota = await Bucket.open(bus, KEYS), await Bucket.open(bus, QUOTA)
    assert await keys("create", "--name", "alice", "--requests", "1/m") == 0
    entry = await bucket.get("alice")
    assert entry is not None
    scope = f"client.{json.loads(entry.value)['id']}"
    await quota.put(scope, b"{}")
    assert await keys("revoke", "alcie", "alice") == 1
    assert 'no key named "alcie"; did you mean "alice"?' in keys.err
    assert "alice is revoked" in keys.err
    assert await bucket.get("alice") is None
    assert await quota.get(scope) is None
    assert await keys("list") == 0
    assert "no keys; make one" in keys.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "frist"], '--model: "frist" is not a model of .*; did you mean "first"'),
        (["--requests", "60"], '--requests: is "60", must be an amount and m'),
        (["--tokens", "9/m", "--tokens", "8/m"], "--tokens: is a second limit by minute"),
        (["--budget", "€5/d"], '--budget: is "€5", must be an amount such as'),
        (["--timezone", "Mars"], '--timezone: "Mars" is no time zone'),
        (["--name", "a b"], '--name: is "a b", must be up to 64 of letters'),
        (["--name", "a" * 65], "--name: is .* must be up to 64 of letters"),
    ],
)
async def test_mistakes_are_told_by_flag(keys: Command, arguments: list[str], expected: str) -> None:
    """Nothing is made, and the message says what would be right."""
    assert await keys("create", "--name", "carol", *arguments) == 1
    assert re.match(expected, keys.err)
    await keys("list")
    assert "no keys" in keys.out


async def test_a_record_of_another_version_is_listed_apart(keys: Command, bus_factory: Buses) -> None:
    """It can be seen and revoked, though it cannot be read."""
    bucket = await Bucket.open(await bus_factory(), KEYS)
    await bucket.put("future", b'{"version":2}')
    assert await keys("list") == 0
    assert "future was made by another version" in keys.err
    assert await keys("revoke", "future") == 0
    assert await bucket.get("future") is None


async def test_an_ingress_that_lets_none_in_is_told(
    keys: Command, nats_server: NatsServer, tmp_path: Path
) -> None:
    """A config without the switch is worth a word, as the key would not work."""
    (tmp_path / "tierfall.yaml").write_text((TEXT % nats_server.url).replace("stored_keys: true, ", ""))
    assert await keys("create", "--name", "alice") == 0
    assert "has no server.stored_keys: true" in keys.err


async def test_without_jetstream_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No JetStream and no NATS at all are said in one line each."""
    path = tmp_path / "tierfall.yaml"
    async with NatsServer() as server:
        path.write_text(TEXT % server.url)
        command = Command(path, capsys)
        for doing in (("create", "--name", "alice"), ("list",), ("revoke", "alice")):
            assert await command(*doing) == 1
            assert command.err.startswith("NATS has no JetStream: add `jetstream")
            assert command.err.count("\n") == 1


async def test_the_admin_makes_keys_where_users_are_guarded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the admin's seed it works once an ingress has made the bucket, and before says what is missing."""
    async with NatsServer(write_users(tmp_path), jetstream=True) as server:
        path = tmp_path / "tierfall.yaml"
        path.write_text(TEXT % server.url)
        command, admin = Command(path, capsys), ("--nkey", str(tmp_path / "admin" / "nkey"))
        assert await command("create", "--name", "alice", *admin) == 1
        assert "start an ingress with server.stored_keys: true" in command.err
        options = BusOptions(servers=server.url, name="t", nkey=str(tmp_path / "ingress" / "nkey"))
        bus = await Bus.connect(options)
        await Bucket.open(bus, KEYS)
        await bus.close()
        assert await command("create", "--name", "alice", *admin) == 0
        assert await command("list", *admin) == 0
        assert "alice" in command.out
        assert await command("revoke", "alice", *admin) == 0
