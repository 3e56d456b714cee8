"""A rogue NATS client that says anything to anybody: nobody else's request comes to harm."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.polling import until
from fakes.scripted import ScriptedBackend, Step, chunk, says
from fakes.stack import Stack
from tierfall.bus import Bus, BusOptions
from tierfall.errors import ClientGone, RateLimited
from tierfall.protocol import subjects
from tierfall.protocol.envelope import Envelope, pack
from tierfall.protocol.failure import Failure, pack_failure
from tierfall.protocol.frames import Kind, encode
from tierfall.protocol.presence import Beat, pack_beat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CONFIG: Final = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 4}
  b: {worker: ollama, base_url: http://127.0.0.1:1}
models:
  first: {tier: a, backend_model: model-a, fallbacks: [second]}
  second: {tier: b, backend_model: model-b}
"""
DEEP: Final = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
STATUSES: Final = (-1, 0, 99, 200, 302, 600, 10**30)
PAYLOADS: Final = st.one_of(
    st.binary(max_size=64),
    st.sampled_from(
        [b"vllm-x y", b"vllm-\r\nPUB x 0", b"*", b">", b"", b"{}", DEEP, b'{"slug":"\xff"}', b"v" * 5000]
    ),
    st.sampled_from(STATUSES).map(
        lambda status: json.dumps({"slug": "backend_fault", "message": "m", "status": status}).encode()
    ),
)
FRAMES: Final = st.builds(
    encode,
    st.sampled_from(Kind),
    st.integers(0, 2**64 - 1),
    st.one_of(st.integers(0, 3), st.just(2**32 - 1)),
    PAYLOADS,
)
MESSAGES: Final = st.one_of(
    st.lists(FRAMES, min_size=1, max_size=4).map(b"".join),
    st.binary(max_size=64),
    st.builds(bytes.__add__, FRAMES, st.binary(max_size=8)),
)


@asynccontextmanager
async def rogue_of(stack: Stack) -> AsyncIterator[Bus]:
    """One more client of the same NATS server."""
    bus = await Bus.connect(BusOptions(servers=stack.nats.url, name="rogue"))
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
async def backend() -> ScriptedBackend:
    """The backend of tier ``a``."""
    return ScriptedBackend()


@pytest.fixture
async def stack(backend: ScriptedBackend) -> AsyncIterator[Stack]:
    """The gateway; tier ``b`` has a backend of its own."""
    async with Stack(CONFIG, {"a": backend, "b": ScriptedBackend()}) as running:
        yield running


def envelope(**fields: Any) -> bytes:
    """A request as the ingress would publish it, but for ``fields``."""
    known: dict[str, Any] = {
        "stream": 1,
        "request_id": "r",
        "attempt": 1,
        "model": "first",
        "backend_model": "model-a",
        "answer_id": "id",
        "created": 1,
        "sent_at": 0.0,
        "signs_every_s": 1.0,
        "window": 1 << 18,
        "body_size": 2,
    }
    return pack(Envelope(**{**known, **fields}), b"{}")


def targets(stack: Stack) -> list[str]:
    """Every subject that this deployment listens on."""
    worker = stack.workers["a-0"].id
    base = stack.services.switchboard._base
    return [
        subjects.chat("a"),
        subjects.control(worker),
        subjects.presence("a", worker),
        subjects.presence("nobody", "x"),
        subjects.slot("a"),
        f"{base}.x",
        f"{base}.unknown",
        f"{stack.services.switchboard._leases}.{worker}",
        f"{stack.services.roster._pings}.{worker}",
        f"{stack.services.roster._pongs}.{worker}.0",
    ]


async def is_well(stack: Stack) -> None:
    """A request is answered by the first tier at the first try, and nothing stays open."""
    response = await stack.chat()
    assert response.status_code == 200, response.text
    assert response.headers["x-tierfall-attempts"] == "a=ok"
    await until(lambda: stack.services.switchboard.open_lines == 0)
    assert stack.services.switchboard._leasing is not None
    assert not stack.services.switchboard._leasing.done(), "nobody renews leases any longer"
    for process in stack.workers.values():
        assert process._sweeping is not None
        assert not process._sweeping.done(), "nobody looks after lapsed leases any longer"
    assert (await stack.client.get("/metrics")).status_code == 200
    assert (await stack.client.get("/health")).status_code == 200


def test_any_messages_on_every_subject_harm_nobody() -> None:
    """Generated frames and bytes, on every subject there is, change nothing for the next request."""
    with asyncio.Runner() as runner:
        stack = Stack(CONFIG, {"a": ScriptedBackend(), "b": ScriptedBackend()})
        runner.run(stack.__aenter__())
        rogue = runner.run(Bus.connect(BusOptions(servers=stack.nats.url, name="rogue")))

        async def send(messages: list[bytes]) -> None:
            for subject in targets(stack):
                for message in messages:
                    rogue.publish(subject, message)
                    rogue.publish(subject, message, reply=rogue.inbox())
            await rogue.flush()
            await is_well(stack)

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(MESSAGES, min_size=1, max_size=3))
        def property_(messages: list[bytes]) -> None:
            runner.run(send(messages))

        try:
            property_()
        finally:
            runner.run(rogue.close())
            runner.run(stack.__aexit__())


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": -1},
        {"stream": 2**64},
        {"window": -1},
        {"body_size": 10**12},
        {"created": 10**30},
        {"signs_every_s": -1.0},
    ],
)
@pytest.mark.parametrize("answerable", [True, False], ids=["reply", "no-reply"])
async def test_odd_envelopes_harm_no_neighbour(
    stack: Stack, backend: ScriptedBackend, fields: dict[str, Any], answerable: bool
) -> None:
    """A request that the ingress would never send leaves a stream beside it whole."""
    go_on = asyncio.Event()
    backend.scripts.append([chunk("Hel", role="assistant"), go_on, chunk("lo"), chunk(finish="stop")])
    async with rogue_of(stack) as rogue, stack.stream() as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        rogue.publish(subjects.chat("a"), envelope(**fields), reply=rogue.inbox() if answerable else "")
        await rogue.flush()
        go_on.set()
        seen += [line async for line in lines]
    assert said(seen) == "Hello"
    assert seen[-2] == "data: [DONE]"
    await is_well(stack)


def said(lines: list[str]) -> str:
    """The text of a stream."""
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


FORGERIES: Final[dict[str, Callable[[int], bytes]]] = {
    "chunk in the row": lambda stream: encode(Kind.CHUNK, stream, 2, b"data: forged\n\n"),
    "chunk out of row": lambda stream: encode(Kind.CHUNK, stream, 9, b"data: forged\n\n"),
    "end out of row": lambda stream: encode(Kind.END, stream, 7, b"{}"),
    "replayed acceptance": lambda stream: encode(Kind.ACCEPTED, stream, 0, b"vllm-x-1"),
    "acceptance by nobody": lambda stream: encode(Kind.ACCEPTED, stream, 2, b"no such\r\nworker"),
    "a failure that cannot be read": lambda stream: encode(Kind.ERROR, stream, 2, DEEP),
    "a failure with status 200": lambda stream: encode(
        Kind.ERROR, stream, 2, json.dumps({"slug": "invalid_request", "message": "m", "status": 200}).encode()
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forged_frame_harms_its_stream_alone(
    stack: Stack, backend: ScriptedBackend, forgery: str
) -> None:
    """Frames forged for one live stream, whose id its forger must know, leave its neighbour whole."""
    go_on = asyncio.Event()
    script: list[Step] = [chunk("Hel", role="assistant"), go_on, chunk("lo"), chunk(finish="stop")]
    backend.scripts.extend([script, script])

    async def read() -> list[str]:
        async with stack.stream() as response:
            return [line async for line in response.aiter_lines()]

    neighbour = asyncio.create_task(read())
    lines = stack.services.switchboard._lines
    await until(lambda: [line for line in lines.values() if line.output_at])
    (spared,) = lines
    victim = asyncio.create_task(read())
    await until(lambda: len([line for line in lines.values() if line.output_at]) == 2)
    (stream,) = set(lines) - {spared}
    async with rogue_of(stack) as rogue:
        rogue.publish(f"{stack.services.switchboard._base}.x", FORGERIES[forgery](stream))
        await rogue.flush()
        await stack.services.bus.flush()
        go_on.set()
        whole = await neighbour
        assert said(whole) == "Hello"
        assert whole[-2] == "data: [DONE]"
        await victim
    await is_well(stack)


@pytest.mark.parametrize("slug", ["client_gone", "config_error", "internal", "no_workers", "tier_busy"])
@pytest.mark.parametrize("status", STATUSES)
async def test_a_failure_that_no_worker_has_is_still_answered(
    stack: Stack, backend: ScriptedBackend, slug: str, status: int
) -> None:
    """Whatever class and status an error frame names, the client gets an answer or an error."""
    go_on = asyncio.Event()
    backend.scripts.append([go_on, *says("late")])
    pending = asyncio.create_task(stack.chat())
    await until(lambda: backend.running == 1)
    (stream,) = stack.services.switchboard._lines
    failure = json.dumps({"slug": slug, "message": "m", "status": status, "retry_after": 1e300}).encode()
    async with rogue_of(stack) as rogue:
        rogue.publish(f"{stack.services.switchboard._base}.x", encode(Kind.ERROR, stream, 1, failure))
        response = await pending
    go_on.set()
    if response.status_code == 200:
        assert response.json()["object"] == "chat.completion"
    else:
        assert response.status_code >= 400
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    await is_well(stack)


async def test_body_parts_after_the_body_change_nothing(stack: Stack, backend: ScriptedBackend) -> None:
    """Parts for a request whose body is whole neither stop it nor grow it."""
    go_on = asyncio.Event()
    backend.scripts.append([go_on, *says("whole")])
    pending = asyncio.create_task(stack.chat())
    await until(lambda: backend.running == 1)
    process = stack.workers["a-0"]
    (stream,) = process._jobs
    async with rogue_of(stack) as rogue:
        for seq in (0, 1, 5):
            rogue.publish(subjects.control(process.id), encode(Kind.BODY, stream, seq, b"x" * 1000))
        for payload in (b"", b"\xff" * 7, b"\xff" * 8, b"\xff" * 9):
            rogue.publish(subjects.control(process.id), encode(Kind.CREDIT, stream, 0, payload))
        await rogue.flush()
    await until(lambda: stack._buses["a-0"].connected)
    await stack._buses["a-0"].flush()
    go_on.set()
    assert (await pending).json()["choices"][0]["message"]["content"] == "whole"
    await is_well(stack)


async def test_a_replayed_request_does_not_mix_answers(stack: Stack, backend: ScriptedBackend) -> None:
    """The same envelope twice at one worker is one request: its answer is not told twice."""
    go_on = asyncio.Event()
    backend.scripts.append([chunk("Hel", role="assistant"), go_on, chunk("lo"), chunk(finish="stop")])
    async with rogue_of(stack) as rogue, stack.stream() as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        (stream,) = stack.services.switchboard._lines
        reply = f"{stack.services.switchboard._base}.{stream:016x}"
        rogue.publish(subjects.chat("a"), envelope(stream=stream), reply=reply)
        await rogue.flush()
        await stack._buses["a-0"].flush()
        go_on.set()
        seen += [line async for line in lines]
    assert said(seen) == "Hello"
    assert seen[-2] == "data: [DONE]"
    assert len(backend.asks) == 1
    await is_well(stack)


@pytest.mark.parametrize("worker", ["a b", "a\r\nb", "*", ">", "", "w" * 5000, "\u00e9"])
async def test_a_worker_that_cannot_be_addressed_is_not_believed(stack: Stack, worker: str) -> None:
    """Beats that name no possible worker, another tier's or another worker's, are not counted."""
    beat = pack_beat(Beat(worker=worker, tier="b", kind="x", slots=10**300, in_flight=0, backend="up"))
    gone = pack_beat(
        Beat(
            worker=stack.workers["b-1"].id, tier="b", kind="x", slots=1, in_flight=0, backend="up", gone=True
        )
    )
    await stack.stop_worker("a-0")
    known = len(stack.services.roster.standing("b").workers)
    async with rogue_of(stack) as rogue:
        for payload in (beat, gone):
            rogue.publish(subjects.presence("b", "x-y"), payload)
            rogue.publish(subjects.presence("a", "x-y"), payload)
        await rogue.flush()
    await stack.services.bus.flush()
    assert len(stack.services.roster.standing("b").workers) == known
    response = await stack.chat()
    assert response.headers["x-tierfall-attempts"] == "a=no_workers;b=ok"
    assert (await stack.client.get("/metrics")).status_code == 200


async def test_beats_of_many_names_are_forgotten(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that beat once and never again take no memory for ever."""
    monkeypatch.setattr("tierfall_ingress.roster.BEAT_STALE_S", 0.2)
    async with rogue_of(stack) as rogue:
        for number in range(2000):
            beat = Beat(worker=f"x-{number}", tier=f"t{number}", kind="x", slots=1, in_flight=0, backend="up")
            rogue.publish(subjects.presence(beat.tier, beat.worker), pack_beat(beat))
        await rogue.flush()
    await until(lambda: sum(map(len, stack.services.roster._beats.values())) < 10)


async def test_an_answer_to_a_failure_keeps_its_class(stack: Stack, backend: ScriptedBackend) -> None:
    """The guard against forged failures leaves a real one as it is."""
    backend.scripts.append([RateLimited("slow down", retry_after=0.25)])
    assert (await stack.chat()).headers["x-tierfall-attempts"] == "a=rate_limited;a=ok"
    assert Failure.__struct_fields__[0] == "slug"
    assert b"client_gone" in pack_failure(ClientGone("x"))
