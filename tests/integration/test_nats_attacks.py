"""A worker's machine in wrong hands: what it tries with its own NATS user, and what comes of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from fakes.guarded import Guarded
from fakes.polling import until
from fakes.scripted import chunk
from fakes.stack import ASK
from tierfall.errors import StoreUnavailable
from tierfall.keys import KeyRecord, digest, pack_record
from tierfall.protocol import subjects
from tierfall.protocol.frames import Kind, decode, encode
from tierfall.store import KEYS, QUOTA, Bucket, Entry, jetstream, names
from tierfall.store.feed import Feed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tierfall.bus import Bus, Message

SERVER: Final = """
server:
  stored_keys: true
  api_keys:
    - {key: sk-free, name: free}
    - {key: sk-tok, name: tok, limits: {requests: [2/d]}}
"""
ACCOUNT: Final = "client.config.tok"
NO_RESPONDERS: Final = b"NATS/1.0 503\r\n\r\n"
FORGED_KEY: Final = "sk-forged"


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Guarded]:
    """The whole gateway under permissions, with stored keys and a key with a limit."""
    async with Guarded(tmp_path, server=SERVER) as running:
        running.client.headers["authorization"] = "Bearer sk-free"
        yield running


def publish_raw(bus: Bus, subject: str, headers: bytes, payload: bytes = b"", reply: str = "") -> None:
    """Publishes with a header block as it stands, which the bus does not let its own callers do."""
    sizes = f"{len(headers)} {len(headers) + len(payload)}"
    bus._outbox.put(f"HPUB {subject} {reply} {sizes}\r\n".encode() + headers + payload + b"\r\n")


async def refused(bus: Bus, violations: int) -> None:
    """Returns when the server has refused this user so many things."""
    await until(lambda: bus.counters.permission_violations == violations)


@asynccontextmanager
async def half_told(stack: Guarded, model: str, go_on: asyncio.Event) -> AsyncIterator[list[str]]:
    """A streamed answer that is under way; at the end the rest of it is read, and it is whole."""
    backend = stack.one if model == "first" else stack.two
    backend.scripts.append([chunk("Hel", role="assistant"), go_on, chunk("lo"), chunk(finish="stop")])
    async with stack.stream(model=model) as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        yield seen
        go_on.set()
        seen += [line async for line in lines]
    assert seen[-2:] == ["data: [DONE]", ""]
    assert '"lo"' in "".join(seen)
    assert response.headers["x-tierfall-attempts"].count("=") == 1


async def test_a_worker_cannot_forge_no_responders(stack: Guarded) -> None:
    """It knows the victim's id and every subject that its own leases and pings show: nothing ends."""
    rogue = await stack.user("worker-vllm")
    seen: list[Message] = []
    await rogue.subscribe(subjects.control_of("vllm"), seen.append)
    victim = stack.workers["two-1"].id
    go_on = asyncio.Event()
    async with half_told(stack, "first", go_on), half_told(stack, "second", go_on):
        await stack.services.roster.confirm("one")
        frames: list[tuple[Message, bytes]] = []

        def both() -> bool:
            frames[:] = [(message, frame.payload) for message in seen for frame in decode(message.data)]
            kinds = {frame.kind for message in seen for frame in decode(message.data)}
            return kinds >= {Kind.LEASE, Kind.PING}

        await until(both)
        private = {message.reply.rpartition(".")[0] for message, _ in frames}
        answers = {payload.decode().partition(".unknown")[0].rpartition(".")[0] for _, payload in frames}
        for base in private:
            publish_raw(rogue, f"{base}.{victim}", NO_RESPONDERS)
        await until(lambda: rogue.counters.permission_violations == len(private) == 2)
        for base in answers | {stack.services.switchboard._base}:
            publish_raw(rogue, f"{base}.{victim}", NO_RESPONDERS)
            publish_raw(rogue, f"{base}.lease.{victim}", NO_RESPONDERS)
            for stream in stack.services.switchboard._lines:
                publish_raw(rogue, f"{base}.{stream:016x}", NO_RESPONDERS)
        await rogue.flush()
        await stack.services.bus.flush()
        assert rogue.counters.permission_violations == 2
        assert stack.state("two") == "up"
        assert stack.services.switchboard.open_lines == 2
    assert stack.violations == 0


async def test_a_pong_is_only_the_asked_workers(stack: Guarded) -> None:
    """One worker's answer to a ping does not pass for another's."""
    rogue = await stack.user("worker-vllm")
    seen: list[Message] = []
    own, victim = stack.workers["one-0"].id, stack.workers["two-1"].id
    await rogue.subscribe(subjects.control_of("vllm"), seen.append)
    roster = stack.services.roster
    await roster.confirm("one")
    await until(lambda: seen)
    (ping,) = decode(seen[0].data)
    pong = ping.payload.decode()
    assert own in pong
    rogue.publish(pong.replace(own, victim), b"")
    rogue.publish(pong.replace(own, f"{victim}.x"), b"")
    await rogue.flush()
    await stack.services.bus.flush()
    assert rogue.counters.permission_violations == 0
    assert set(roster._confirmed) == {own}
    await roster.confirm("two")
    assert set(roster._confirmed) == {own, victim}
    assert stack.violations == 0


def feed_of_keys(stack: Guarded) -> tuple[str, str]:
    """Inbox and consumer of the ingress's feed of stored keys, as NATS's monitoring port shows them."""
    for subscription in stack.services.bus._subscriptions.values():
        feed = getattr(stack.services.bus._routes[subscription.sid], "__self__", None)
        if isinstance(feed, Feed) and feed._stream == names.stream(KEYS):
            return subscription.subject, feed.name
    raise AssertionError("the ingress does not follow the stored keys")


def forged_record() -> bytes:
    """A key that nobody made."""
    return pack_record(KeyRecord(id="0", digest=digest(FORGED_KEY).hex(), hint="sk-f", created_at=0))


async def status(stack: Guarded, key: str) -> int:
    """How a request with this key ends."""
    response = await stack.client.post(
        "/v1/chat/completions", json=ASK, headers={"authorization": f"Bearer {key}"}
    )
    return response.status_code


async def test_a_worker_cannot_forge_a_key(stack: Guarded) -> None:
    """It knows inbox and consumer of the ingress's feed, and may publish to neither them nor the bucket."""
    inbox, consumer = feed_of_keys(stack)
    for user in ("worker-vllm", "worker-cloud"):
        rogue = await stack.user(user)
        replies = ["a.b.c.d.e.1.1.f.0", f"$JS.ACK.KV_{KEYS}.{consumer}.1.1.1.1.0", ""]
        attempts = [(inbox, reply) for reply in replies] + [(f"$KV.{KEYS}.forged", "")]
        for count, (subject, reply) in enumerate(attempts, start=1):
            rogue.publish(subject, forged_record(), reply=reply)
            await refused(rogue, count)
    await stack.services.bus.flush()
    assert await status(stack, FORGED_KEY) == 401
    await Bucket(await stack.user("admin"), KEYS).put("alice", forged_record())
    await until(lambda: len(stack.services.stored or ()) == 1)
    assert await status(stack, FORGED_KEY) == 200


async def test_a_feed_believes_jetstream_alone(stack: Guarded) -> None:
    """Where a server lets a client publish to the inbox after all, no key comes of it."""
    inbox, consumer = feed_of_keys(stack)
    own = '"tierfall.v1.presence.one.*"'
    stack.nats.config = stack.nats.config.replace(own, f'"{inbox}", {own}')
    stack.nats.reload()
    await until(lambda: "Reloaded server configuration" in stack.nats.log)
    rogue = await stack.user("worker-vllm")
    for reply in ("a.b.c.d.e.1.1.f.0", f"$JS.ACK.KV_{KEYS}.{consumer}.1.1.1.1.0", ""):
        rogue.publish(inbox, forged_record(), reply=reply)
    await rogue.flush()
    await stack.services.bus.flush()
    assert rogue.counters.permission_violations == 1, "the server refuses replies of $JS.ACK by itself"
    assert await status(stack, FORGED_KEY) == 401
    assert feed_of_keys(stack) == (inbox, consumer)


async def test_a_cloud_worker_cannot_touch_clients_budgets(
    stack: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resets, exhausts, corrupts, deletes and wipes: the count stays as it was."""
    assert [await status(stack, "sk-tok") for _ in range(3)] == [200, 200, 429]
    monkeypatch.setattr(jetstream, "TIMEOUT_S", 0.3)
    cloud = await stack.user("worker-cloud")
    bucket = Bucket(cloud, QUOTA)
    before = await bucket.get(ACCOUNT)
    for value in (b"{}", b"99999999", b"garbage"):
        with pytest.raises(StoreUnavailable, match="NATS does not allow this user"):
            await bucket.put(ACCOUNT, value)
    with pytest.raises(StoreUnavailable, match="NATS does not allow this user"):
        await bucket.delete(ACCOUNT)
    for rollup in ("all", "sub"):
        with pytest.raises(jetstream.Refused, match="rollup not permitted"):
            await jetstream.ask(cloud, names.entry(QUOTA, "provider.x.y"), b"{}", {"Nats-Rollup": rollup})
    assert await bucket.get(ACCOUNT) == before
    assert await status(stack, "sk-tok") == 429
    assert await bucket.put("provider.x.y", b"{}", expected=0)


async def test_a_cloud_worker_cannot_have_the_server_write_for_it(stack: Guarded) -> None:
    """The answers to what it may ask go to a client's account, a stored key, an inbox: they do not arrive."""
    assert [await status(stack, "sk-tok") for _ in range(3)] == [200, 200, 429]
    admin, cloud = await stack.user("admin"), await stack.user("worker-cloud")
    quota, keys = Bucket(admin, QUOTA), Bucket(admin, KEYS)
    await keys.put("alice", forged_record())
    before = await quota.get(ACCOUNT), await keys.get("alice")
    heard: list[Message] = []
    await stack.services.bus.subscribe(tap := stack.services.bus.inbox(), heard.append)
    read = b'{"last_by_subj": "$KV.tierfall_quota.provider.x.y"}'
    asked = [
        (names.entry(QUOTA, "provider.x.y"), b"{}"),
        (names.info(QUOTA), b""),
        (names.read(QUOTA), read),
    ]
    for reply in (names.entry(QUOTA, ACCOUNT), names.entry(KEYS, "alice"), names.entry(KEYS, "bob"), tap):
        for subject, payload in asked:
            cloud.publish(subject, payload, reply=reply)
            # Behind it on the same connection: the server has answered the first by then.
            await cloud.request(subject, payload, timeout_s=10.0)
    assert (await quota.get(ACCOUNT), await keys.get("alice")) == before
    assert set(await keys.entries()) == {"alice"}
    await stack.services.bus.flush()
    assert heard == []
    assert cloud.counters.permission_violations == 0
    assert await status(stack, "sk-tok") == 429


async def test_an_account_that_cannot_be_read_is_named(stack: Guarded) -> None:
    """It is neither a defect of ours nor an empty one: 503 with its name, until it is deleted or mended."""
    assert await status(stack, "sk-tok") == 200
    by_hand = Bucket(await stack.user("admin"), QUOTA)
    for garbage in (b"garbage", b"99999999", b'{"cells": 1}', b"\xff", b""):
        await by_hand.put(ACCOUNT, garbage)
        response = await stack.client.post(
            "/v1/chat/completions", json=ASK, headers={"authorization": "Bearer sk-tok"}
        )
        assert response.status_code == 503
        error = response.json()["error"]
        assert error["code"] == "store_unavailable"
        assert ACCOUNT in error["message"]
        assert (await by_hand.get(ACCOUNT) or Entry("", b"?", 0)).value == garbage
    assert await status(stack, "sk-free") == 200
    await by_hand.delete(ACCOUNT)
    assert [await status(stack, "sk-tok") for _ in range(3)] == [200, 200, 429]


async def test_a_worker_cannot_answer_for_a_stream_that_it_was_not_sent(stack: Guarded) -> None:
    """Frames of every kind for streams whose ids it can only guess find nothing."""
    rogue = await stack.user("worker-vllm")
    go_on = asyncio.Event()
    async with half_told(stack, "second", go_on):
        (stream,) = stack.services.switchboard._lines
        for guess in (0, 1, stream ^ 1, 2**64 - 1):
            for kind in Kind:
                rogue.publish(f"{stack.services.switchboard._base}.x", encode(kind, guess, 2, b"data: x\n\n"))
        await rogue.flush()
        await stack.services.bus.flush()
        assert rogue.counters.permission_violations == 0
    assert stack.violations == 0


async def test_workers_ids_cannot_be_tried_out(stack: Guarded) -> None:
    """They end in 48 random bits."""
    ends = [process.id.rpartition("-")[2] for process in stack.workers.values()]
    assert all(len(end) == 12 and int(end, 16) >= 0 for end in ends)
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("user", ["worker-vllm", "worker-ollama", "worker-cloud"])
async def test_discovery_shows_a_worker_its_own_service_alone(stack: Guarded, user: str) -> None:
    """It answers for its kind and for all; what is asked of other kinds it does not even hear."""
    worker, admin = await stack.user(user), await stack.user("admin", inbox_prefix="_INBOX.r")
    heard: list[Message] = []
    other = subjects.service("vllm" if user != "worker-vllm" else "ollama")
    await worker.subscribe("$SRV.>", heard.append)
    await worker.subscribe(f"$SRV.PING.{other}", heard.append)
    await until(lambda: worker.counters.permission_violations == 2)
    found = await admin.request(f"$SRV.INFO.{subjects.service('ollama')}", b"", timeout_s=10.0)
    assert json.loads(found.data)["metadata"]["worker"] == stack.workers["two-1"].id
    assert heard == []


async def test_the_plain_inbox_of_people_is_private_too(stack: Guarded) -> None:
    """What the ``nats`` command asks JetStream is answered where no worker may publish."""
    rogue, admin = await stack.user("worker-cloud"), await stack.user("admin")
    got: list[Message] = []
    await admin.subscribe("_INBOX.>", got.append)
    own = admin.inbox()
    await admin.subscribe(own, got.append)
    for count, subject in enumerate(("_INBOX.a", "_INBOX.a.b", own), start=1):
        rogue.publish(subject, b"forged")
        await refused(rogue, count)
    rogue.publish("_INBOX.r.a", b"answer")
    rogue.publish(admin.reply_inbox(), b"answer")
    await rogue.flush()
    await until(lambda: got)
    assert [message.subject for message in got] == ["_INBOX.r.a"]
    assert rogue.counters.permission_violations == 3
