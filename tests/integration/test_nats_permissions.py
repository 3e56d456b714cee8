"""A user per service on a real nats-server: everything that Tierfall does works, and nothing else."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import stat
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.guarded import TIERS, Guarded, write_users
from fakes.nats_jwt import operator_and_creds
from fakes.nats_server import NatsServer
from fakes.polling import POLL_S, until
from fakes.scripted import Step, chunk
from tierfall.bus import Bus, BusOptions, Message, nkey
from tierfall.cli.main import main
from tierfall.cli.nats_config import run, user_names
from tierfall.errors import BackendFault, BusDown, ConfigError, StoreUnavailable
from tierfall.protocol import subjects
from tierfall.store import KEYS, QUOTA, Bucket, Entry, jetstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WAIT_S = 10.0
LONG_TEXT = "secret " * 300_000
"""2.1 MB: more than one message holds, so it goes in parts over the worker's control subject."""


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Guarded]:
    """The whole gateway under permissions."""
    async with Guarded(tmp_path) as running:
        yield running


async def text_of(stack: Guarded, **fields: object) -> str:
    """What a streamed answer says."""
    async with stack.stream(**fields) as response:
        assert response.status_code == 200
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    deltas = [choice["delta"] for line in lines[:-1] for choice in json.loads(line[6:])["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def refused(bus: Bus, violations: int) -> None:
    """Returns when the server has refused this user so many things."""
    await until(lambda: bus.counters.permission_violations == violations)


async def test_everything_the_gateway_does_is_allowed(stack: Guarded) -> None:
    """Streamed and whole answers, a body in parts, an escalation, a drain: the server refuses none of it."""
    assert await text_of(stack) == "Hello world."
    assert (await stack.chat()).json()["choices"][0]["message"]["content"] == "Hello world."
    assert (await stack.chat(messages=[{"role": "user", "content": LONG_TEXT}])).status_code == 200
    stack.services.roster.detour("one")
    assert (await stack.chat()).headers["x-tierfall-attempts"] == "one=ok"
    stack.one.scripts.extend([[BackendFault("broken")], [BackendFault("broken")]])
    assert (await stack.chat()).headers["x-tierfall-tier"] == "two"
    await stack.stop_worker("one-0")
    assert (await stack.chat()).headers["x-tierfall-tier"] == "two"
    assert stack.violations == 0


async def test_an_answer_outlives_its_connections(stack: Guarded) -> None:
    """After a reconnect a worker may go on answering what it was asked before."""
    go_on = asyncio.Event()
    stack.one.scripts.append([chunk("Hel", role="assistant"), go_on, chunk("lo."), chunk(finish="stop")])
    async with stack.stream() as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        await stack.nats.restart()
        buses = [stack.services.bus, *stack._buses.values()]
        await until(lambda: all(bus.connected and bus.counters.reconnects for bus in buses))
        go_on.set()
        seen += [line async for line in lines]
    assert '"lo."' in "".join(seen)
    assert seen[-2] == "data: [DONE]"
    assert response.headers["x-tierfall-attempts"] == "one=ok"
    assert stack.violations == 0


async def test_cloud_workers_are_in_an_account_of_their_own(stack: Guarded) -> None:
    """Across it all is as ever: answers, large bodies, discovery, streams over a restart, a death at once."""
    assert await text_of(stack, model="third") == "Hello world."
    body = [{"role": "user", "content": LONG_TEXT}]
    assert (await stack.chat(model="third", messages=body)).status_code == 200
    admin = await stack.user("admin", inbox_prefix="_INBOX.r")
    found = await admin.request("$SRV.PING.tierfall-worker-cloud", b"", timeout_s=WAIT_S)
    assert json.loads(found.data)["metadata"]["worker"] == stack.workers["paid-2"].id
    go_on = asyncio.Event()
    script: list[Step] = [chunk("Hel", role="assistant"), go_on, chunk("lo."), chunk(finish="stop")]
    stack.paid.scripts.append(script)
    async with stack.stream(model="third") as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        await stack.nats.restart()
        buses = [stack.services.bus, *stack._buses.values()]
        await until(lambda: all(bus.connected and bus.counters.reconnects for bus in buses))
        go_on.set()
        seen += [line async for line in lines]
    assert seen[-2] == "data: [DONE]"
    await until(lambda: not stack.services.recovering_s)
    stack.paid.scripts.append([chunk("Hel", role="assistant"), asyncio.Event()])
    async with stack.stream(model="third") as response:
        lines = response.aiter_lines()
        await anext(lines)
        await stack.kill_worker("paid-2")
        assert '"code":"worker_lost"' in "".join([line async for line in lines])
    assert (await stack.chat(model="third")).json()["error"]["code"] == "no_workers"
    assert stack.violations == 0


async def test_a_worker_reads_nothing_of_the_others(stack: Guarded) -> None:
    """Another's inbox, requests and body parts, its own tier's beyond its turn, everything: all refused."""
    spy = await stack.user("worker-ollama")
    stolen: list[Message] = []
    ingress_inbox = f"{stack.services.switchboard._base}.>"
    forbidden = [
        (ingress_inbox, ""),
        ("_INBOX.>", ""),
        (subjects.chat("one"), subjects.QUEUE_GROUP),
        (subjects.chat("one"), ""),
        (subjects.chat("two"), ""),
        (subjects.chat("two"), "spies"),
        (subjects.control_of("vllm"), ""),
        (subjects.direct_of("one", "vllm"), ""),
        (subjects.direct_of("two", "*"), ""),
        (subjects.PRESENCE_ALL, ""),
        ("tierfall.>", ""),
        (">", ""),
    ]
    for count, (subject, queue) in enumerate(forbidden, start=1):
        await spy.subscribe(subject, stolen.append, queue=queue)
        await refused(spy, count)
    assert await text_of(stack) == "Hello world."
    assert await text_of(stack, model="second") == "Hello world."
    assert (await stack.chat(messages=[{"role": "user", "content": LONG_TEXT}])).status_code == 200
    await spy.flush()
    assert stolen == []


async def test_a_machine_reads_nothing_of_the_others(tmp_path: Path) -> None:
    """With a user of its own a machine's worker serves as ever, and hears nothing of its kind elsewhere."""
    here = subjects.machine_of(socket.gethostname())
    machines = (f"vllm@{here}", f"ollama@{here}", f"cloud@{here}", "vllm@elsewhere")
    async with Guarded(tmp_path, machines, here) as stack:
        spy = await stack.user("worker-vllm@elsewhere")
        stolen: list[Message] = []
        worker = stack.workers["one-0"].id
        forbidden = (
            subjects.control(worker),
            subjects.control_of("vllm", here),
            subjects.control_of("vllm"),
            subjects.direct("one", worker),
            subjects.direct_of("one", "vllm", here),
            subjects.direct_of("one", "vllm"),
        )
        for count, subject in enumerate(forbidden, start=1):
            await spy.subscribe(subject, stolen.append)
            await refused(spy, count)
        long = [{"role": "user", "content": LONG_TEXT}]
        for model, tier in (("first", "one"), ("third", "paid")):
            response = await stack.chat(model=model, messages=long)
            assert response.headers["x-tierfall-attempts"] == f"{tier}=ok"
        assert await text_of(stack, model="second") == "Hello world."
        await spy.flush()
        assert stolen == []
        await spy.subscribe(subjects.control("vllm-elsewhere-0001"), stolen.append)
        await spy.subscribe(subjects.direct("one", "vllm-elsewhere-0001"), stolen.append)
        await spy.flush()
        assert spy.counters.permission_violations == len(forbidden)
        assert stack.violations == 0


async def test_a_worker_asks_nothing(stack: Guarded) -> None:
    """It publishes no request, commands no worker, and does not speak for another tier."""
    rogue = await stack.user("worker-vllm")
    worker = stack.workers["two-1"].id
    forbidden = [
        subjects.chat("one"),
        subjects.chat("two"),
        subjects.control(worker),
        subjects.presence("two", worker),
        subjects.slot("two"),
        "$SRV.PING",
    ]
    for count, subject in enumerate(forbidden, start=1):
        rogue.publish(subject, b"x", reply=rogue.inbox())
        await refused(rogue, count)
    assert await text_of(stack, model="second") == "Hello world."
    assert len(stack.two.asks) == 1


async def test_an_ingress_takes_no_requests(stack: Guarded) -> None:
    """An ingress cannot listen to what others ask, nor pretend to be a worker."""
    ingress = await stack.user("ingress")
    stolen: list[Message] = []
    await ingress.subscribe(subjects.chat("one"), stolen.append, queue=subjects.QUEUE_GROUP)
    await refused(ingress, 1)
    ingress.publish(subjects.slot("one"), b"x")
    await refused(ingress, 2)
    assert await text_of(stack) == "Hello world."
    await ingress.flush()
    assert stolen == []


async def test_two_ingresses_have_inboxes_of_their_own(tmp_path: Path) -> None:
    """Ingresses with a user each cannot read each other's answers."""
    async with NatsServer(write_users(tmp_path, ingresses=2)) as server:
        first, second = [
            await Bus.connect(BusOptions(servers=server.url, name=name, nkey=str(tmp_path / name / "nkey")))
            for name in ("ingress-0", "ingress-1")
        ]
        stolen: list[Message] = []
        await first.subscribe(f"{second.inbox().rpartition('.')[0]}.>", stolen.append)
        await refused(first, 1)
        await second.subscribe(second.inbox(), stolen.append)
        assert second.counters.permission_violations == 0
        await first.close()
        await second.close()


async def test_permissions_that_come_later_count(stack: Guarded) -> None:
    """A refused subscription works once the server allows it, in both accounts, without a reconnect."""
    workers = {"three": await stack.user("worker-vllm"), "four": await stack.user("worker-cloud")}
    got: set[str] = set()

    def take(message: Message) -> None:
        got.add(message.subject)

    for tier, worker in workers.items():
        await worker.subscribe(subjects.chat(tier), take, queue=subjects.QUEUE_GROUP)
        await refused(worker, 1)
    allowed = stack.nats.config.replace("chat.one workers", "chat.three workers")
    allowed = allowed.replace("chat.paid", "chat.four")
    assert "chat.three workers" in allowed
    assert allowed.count("chat.four") == 6, "both subjects: the user's permission, an export and an import"
    stack.nats.config = allowed
    stack.nats.reload()
    admin = await stack.user("admin")

    async def taken() -> bool:
        for tier in workers:
            admin.publish(subjects.chat(tier), b"anybody there?")
        await admin.flush()
        return got == {subjects.chat(tier) for tier in workers}

    async with asyncio.timeout(WAIT_S):
        while not await taken():  # noqa: ASYNC110 - a server that has reloaded sets no event
            await asyncio.sleep(POLL_S)
    assert not any(worker.counters.reconnects for worker in workers.values())


async def test_what_lasts_is_open_to_whom_it_concerns(
    stack: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ingress makes and follows both buckets, people and cloud workers write what is theirs."""
    ingress, admin = await stack.user("ingress"), await stack.user("admin")
    cloud = await stack.user("worker-cloud")
    quota, keys = await Bucket.open(ingress, QUOTA), await Bucket.open(ingress, KEYS)
    told: list[Entry] = []
    watches = [bucket.watch(told.append) for bucket in (quota, keys)]
    await (await Bucket.open(cloud, QUOTA)).put("provider.groq", b"1", expected=0)
    await (await Bucket.open(admin, KEYS)).put("key", b"2", expected=0)
    await quota.put("client.a", b"3")
    await until(lambda: {entry.key for entry in told} == {"provider.groq", "key", "client.a"})
    seen: list[Entry] = []
    watches.append(Bucket(admin, QUOTA).watch(seen.append))
    await until(lambda: len(seen) == 2)
    for watch in watches:
        await watch.close()
    assert not sum(bus.counters.permission_violations for bus in (ingress, admin, cloud))

    monkeypatch.setattr(jetstream, "TIMEOUT_S", 0.3)
    vllm = await stack.user("worker-vllm")
    tap = msgspec.json.encode({"name": "KV_tierfall_quota", "subjects": [subjects.chat(">")]})
    forbidden = [
        (ingress, Bucket(ingress, KEYS).put("mine", b"4")),
        (ingress, Bucket(ingress, QUOTA).put("provider.groq", b"4")),
        (cloud, Bucket(cloud, QUOTA).put("client.a", b"4")),
        (cloud, Bucket(cloud, QUOTA).delete("client.a")),
        (cloud, jetstream.ask(cloud, "$JS.API.STREAM.PURGE.KV_tierfall_quota", b"")),
        (cloud, jetstream.ask(cloud, "$JS.API.STREAM.DELETE.KV_tierfall_quota", b"")),
        (cloud, jetstream.ask(cloud, "$JS.API.STREAM.MSG.DELETE.KV_tierfall_quota", b'{"seq": 1}')),
        (cloud, Bucket(cloud, KEYS).get("key")),
        (cloud, jetstream.ask(cloud, "$JS.API.STREAM.UPDATE.KV_tierfall_quota", tap)),
        (cloud, jetstream.ask(cloud, "$JS.API.CONSUMER.CREATE.KV_tierfall_quota.a", b"{}")),
        (cloud, jetstream.ask(cloud, "$JS.API.STREAM.CREATE.TAP", tap)),
        (admin, jetstream.ask(admin, "$JS.API.STREAM.UPDATE.KV_tierfall_quota", tap)),
        (admin, jetstream.ask(admin, "$JS.API.STREAM.CREATE.TAP", tap)),
        (vllm, Bucket(vllm, QUOTA).get("provider.groq")),
        (vllm, Bucket(vllm, QUOTA).put("provider.groq", b"0")),
    ]
    for bus, doing in forbidden:
        before = bus.counters.permission_violations
        with pytest.raises(StoreUnavailable, match="NATS does not allow this user"):
            await doing
        assert bus.counters.permission_violations > before
    found = await Bucket(admin, KEYS).get("key")
    assert found is not None
    assert found.value == b"2"


async def test_people_see_who_is_there_and_no_prompts(stack: Guarded) -> None:
    """``admin`` finds the workers with the ``nats`` command, may ask, and reads no requests."""
    admin = await stack.user("admin", inbox_prefix="_INBOX.r")
    found = await admin.request("$SRV.PING.tierfall-worker-vllm", b"", timeout_s=WAIT_S)
    assert json.loads(found.data)["metadata"]["worker"] == stack.workers["one-0"].id
    beats: list[Message] = []
    await admin.subscribe(subjects.PRESENCE_ALL, beats.append)
    await until(lambda: beats)
    await admin.subscribe(subjects.chat(">"), beats.append)
    await refused(admin, 1)


async def test_nobody_gets_in_without_a_seed(stack: Guarded, tmp_path: Path) -> None:
    """No key, and a key that the server does not know, are refused; the message says so, without the seed."""
    stranger = tmp_path / "stranger"
    seed = nkey.new_seed()
    stranger.write_text(seed)
    for path in ("", str(stranger)):
        with pytest.raises(BusDown, match="Authorization Violation") as caught:
            await Bus.connect(BusOptions(servers=stack.nats.url, name="t", nkey=path, connect_timeout_s=1.0))
        assert seed not in caught.value.message


@pytest.mark.parametrize(
    "text",
    ["", "SUAAA", "hello", nkey.new_seed()[:-1] + "!", nkey.new_seed().lower()],
    ids=["empty", "short", "words", "mistyped", "lower-case"],
)
async def test_a_file_without_a_seed_is_named_and_not_shown(tmp_path: Path, text: str) -> None:
    """A seed that is none is refused before anything is sent."""
    path = tmp_path / "nkey"
    path.write_text(text)
    with pytest.raises(BusDown, match=r"nkey .*begins with SU") as caught:
        await Bus.connect(BusOptions(servers="nats://127.0.0.1:1", name="t", nkey=str(path)))
    assert not text or text not in caught.value.message
    with pytest.raises(BusDown, match=r"nats\.nkey: cannot read"):
        await Bus.connect(BusOptions(servers="nats://127.0.0.1:1", name="t", nkey=str(tmp_path / "none")))


async def test_a_creds_file_lets_in(tmp_path: Path) -> None:
    """A server with an operator's JWTs takes the creds file of its user; one without a JWT in it is named."""
    server_config, creds = operator_and_creds()
    path = tmp_path / "user.creds"
    path.write_text(creds)
    async with NatsServer(server_config) as server:
        bus = await Bus.connect(BusOptions(servers=server.url, name="t", creds=str(path)))
        await bus.subscribe("work", lambda message: bus.publish(message.reply, b"done"))
        assert (await bus.request("work", b"", timeout_s=WAIT_S)).data == b"done"
        await bus.close()
        path.write_text(creds.replace("BEGIN NATS USER JWT", "BEGIN SOMETHING"))
        with pytest.raises(BusDown, match=r"nats\.creds: .*user\.creds is not a creds file"):
            await Bus.connect(BusOptions(servers=server.url, name="t", creds=str(path)))


def test_seeds_are_private_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only their owner can read the seeds; a second run keeps them and follows a changed config."""
    config = tmp_path / "tierfall.yaml"
    config.write_text(TIERS)
    out = tmp_path / "out"
    assert main(["nats-config", "--out", str(out), "--config", str(config)]) == 0
    paths = [out / name / "nkey" for name in user_names(1)]
    seeds = [path.read_text() for path in paths]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
    assert len(set(seeds)) == len(seeds) == 5
    users = (out / "nats" / "users.conf").read_text()
    assert "chat.one workers" in users
    assert not any(seed.strip() in users + capsys.readouterr().out for seed in seeds)

    config.write_text(TIERS.replace("one", "three"))
    assert main(["nats-config", "--out", str(out), "--config", str(config)]) == 0
    assert [path.read_text() for path in paths] == seeds
    assert "chat.three workers" in (out / "nats" / "users.conf").read_text()


def test_without_a_config_any_tier_is_allowed(tmp_path: Path) -> None:
    """The allow-lists then hold the tier's place open, and the queue group all the same."""
    run(tmp_path, None, 1, io.StringIO())
    users = (tmp_path / "nats" / "users.conf").read_text()
    assert users.count('"tierfall.v1.chat.* workers"') == 3


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A folder that cannot be made, a file that is no seed and no ingress at all are refused by name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out: cannot write"):
        run(tmp_path / "file", None, 1, io.StringIO())
    (tmp_path / "ingress").mkdir()
    (tmp_path / "ingress" / "nkey").write_text("no seed")
    with pytest.raises(ConfigError, match="ingress/nkey is not the seed"):
        run(tmp_path, None, 1, io.StringIO())
    with pytest.raises(ConfigError, match="--ingresses is 0"):
        run(tmp_path, None, 0, io.StringIO())
