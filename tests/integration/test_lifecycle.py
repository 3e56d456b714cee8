"""What happens to requests when clients, workers, ingresses and NATS come and go."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.raw_client import RawClient, chat_request
from fakes.scripted import ScriptedBackend, chunk, says
from fakes.stack import ASK, Stack
from tierfall.bus import Bus, BusOptions, Message
from tierfall.bus.dialer import MIN_PAYLOAD_BYTES
from tierfall.protocol import subjects
from tierfall.protocol.frames import HEADER, Kind, encode
from tierfall.protocol.presence import unpack_beat
from tierfall.worker import process as worker_process
from tierfall_ingress import clocks, stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 4}
  b: {worker: ollama, base_url: http://127.0.0.1:1}
models:
  first: {tier: a, backend_model: model-a, deadlines: {first_token: 10s, idle: 10s}}
  both: {tier: a, backend_model: model-a, fallbacks: [second]}
  second: {tier: b, backend_model: model-b}
server: {max_body: 8MiB}
"""
STREAMING = pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])


@pytest.fixture
async def backend() -> ScriptedBackend:
    """The backend of tier ``a``."""
    return ScriptedBackend()


@pytest.fixture
async def stack(backend: ScriptedBackend) -> AsyncIterator[Stack]:
    """The gateway; tier ``b`` has a backend of its own."""
    async with Stack(CONFIG, {"a": backend, "b": ScriptedBackend()}) as running:
        yield running


async def hang_up_while(stack: Stack, condition: Any, *, stream: bool) -> None:
    """Sends a request on a connection of its own and closes it once ``condition`` holds."""
    body = json.dumps({**ASK, "stream": stream}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.client.base_url.port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await until(condition)
    writer.close()
    await writer.wait_closed()
    del reader


@STREAMING
async def test_hanging_up_before_the_first_token_stops_the_backend(
    stack: Stack, backend: ScriptedBackend, stream: bool
) -> None:
    """A client that leaves before any output leaves no work behind."""
    backend.scripts.append([asyncio.Event()])
    await hang_up_while(stack, lambda: backend.running == 1, stream=stream)
    await until(lambda: backend.cancelled == 1)
    await until(lambda: stack.services.switchboard.open_lines == 0)


@STREAMING
async def test_hanging_up_in_the_middle_stops_the_backend(
    stack: Stack, backend: ScriptedBackend, stream: bool
) -> None:
    """A client that leaves in the middle of its answer leaves no work behind."""
    said = asyncio.Event()
    backend.scripts.append([chunk("Hel", role="assistant"), _Mark(said), asyncio.Event()])
    await hang_up_while(stack, said.is_set, stream=stream)
    await until(lambda: backend.cancelled == 1)
    await until(lambda: stack.services.switchboard.open_lines == 0)


class _Mark(asyncio.Event):
    """A step that notes that it was reached."""

    def __init__(self, reached: asyncio.Event) -> None:
        super().__init__()
        self.set()
        self._reached = reached

    async def wait(self) -> bool:  # type: ignore[override]  # asyncio's is Literal[True]
        self._reached.set()
        return True


async def test_hanging_up_in_line_gives_the_place_away(stack: Stack, backend: ScriptedBackend) -> None:
    """A client that leaves while it waits for a slot is no longer waited for."""
    release = asyncio.Event()
    backend.scripts.extend([[release, *says("x")]] * 4)
    held = [asyncio.create_task(stack.chat()) for _ in range(4)]
    await until(lambda: backend.running == 4)
    room = stack.services.rooms["a"]
    await hang_up_while(stack, lambda: len(room) == 1, stream=True)
    await until(lambda: len(room) == 0)
    release.set()
    assert {(await task).status_code for task in held} == {200}
    assert len(backend.asks) == 4


async def test_a_silent_ingress_loses_its_lease(
    stack: Stack, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose ingress says nothing any more stops the backend by itself."""
    monkeypatch.setattr(worker_process, "LEASE_LAPSES_S", 0.2)
    backend.scripts.append([asyncio.Event()])
    pending = asyncio.create_task(stack.chat())
    await until(lambda: backend.running == 1)
    assert stack.services.switchboard._leasing is not None
    stack.services.switchboard._leasing.cancel()
    await until(lambda: backend.cancelled == 1)
    pending.cancel()


async def test_a_worker_may_have_thousands_of_streams(backend: ScriptedBackend) -> None:
    """Their leases are renewed, though one message could not carry them all."""
    release = asyncio.Event()
    backend.scripts.append([release, *says("x")])
    async with (
        NatsServer(f"max_payload: {MIN_PAYLOAD_BYTES}") as nats,
        Stack(CONFIG, {"a": backend}, nats=nats) as stack,
    ):
        held = asyncio.create_task(stack.chat())
        await until(lambda: backend.running == 1)
        board, (job,) = stack.services.switchboard, stack.workers["a-0"]._jobs.values()
        (line,) = board._lines.values()
        board._lines.update(dict.fromkeys(range(2000), line))
        leased_at, now = job.leased_at, asyncio.get_running_loop().time()
        await until(lambda: job.leased_at > max(leased_at, now))
        for stream in range(2000):
            del board._lines[stream]
        release.set()
        assert (await held).status_code == 200


async def test_a_worker_that_was_frozen_keeps_its_streams(
    stack: Stack, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leases that came meanwhile are still to be read when its clock says that they lapsed."""
    monkeypatch.setattr(worker_process, "LEASE_LAPSES_S", 1.0)
    release = asyncio.Event()
    backend.scripts.append([release, *says("whole")])
    held = asyncio.create_task(stack.chat())
    await until(lambda: any(line.accepted for line in stack.services.switchboard._lines.values()))
    time.sleep(2)  # noqa: ASYNC251 - this is the freeze
    swept = asyncio.get_running_loop().time() + 1.5 * worker_process.SWEEP_EVERY_S
    await until(lambda: asyncio.get_running_loop().time() > swept)
    release.set()
    answer = await held
    assert answer.headers["x-tierfall-attempts"] == "a=ok"
    assert answer.json()["choices"][0]["message"]["content"] == "whole"


async def test_a_lease_for_an_unknown_stream_is_answered(stack: Stack, backend: ScriptedBackend) -> None:
    """A request whose worker no longer knows it ends in an error, not in silence."""
    backend.scripts.extend([[asyncio.Event()], [asyncio.Event()]])
    pending = asyncio.create_task(stack.chat(model="both"))
    jobs = stack.workers["a-0"]._jobs

    def accepted() -> bool:
        return any(line.accepted for line in stack.services.switchboard._lines.values())

    for tries in (1, 2):  # a fault is retried once
        await until(lambda: len(backend.asks) == tries and jobs and accepted())  # noqa: B023 - in the same turn
        for job in list(jobs.values()):
            job.cancel()
    assert (await pending).headers["x-tierfall-attempts"] == "a=worker_lost;a=worker_lost;b=ok"


@STREAMING
async def test_a_large_body_travels_in_parts(stack: Stack, backend: ScriptedBackend, stream: bool) -> None:
    """A body above NATS's max_payload reaches the backend whole and byte for byte."""
    image = "data:image/png;base64," + "QUJD" * 700_000
    content = [{"type": "image_url", "image_url": {"url": image}}]
    response = await stack.chat(messages=[{"role": "user", "content": content}], stream=stream)
    assert response.status_code == 200
    sent = json.loads(bytes(backend.asks[0].body["messages"]))
    assert sent[0]["content"] == content


@STREAMING
async def test_a_large_answer_travels_in_parts(stack: Stack, backend: ScriptedBackend, stream: bool) -> None:
    """An answer with pieces above NATS's max_payload reaches the client whole."""
    text = "0123456789" * 150_000
    backend.scripts.append([chunk(text, role="assistant"), chunk(finish="stop")])
    response = await stack.chat(stream=stream)
    assert text in response.text


async def test_the_smallest_max_payload_is_enough(backend: ScriptedBackend) -> None:
    """Bodies and answers of some hundred messages pass a server with the least ``max_payload`` allowed."""
    text = "0123456789" * 150_000
    backend.scripts.append([chunk(text, role="assistant"), chunk(finish="stop")])
    async with (
        NatsServer(f"max_payload: {MIN_PAYLOAD_BYTES}") as nats,
        Stack(CONFIG, {"a": backend}, nats=nats) as stack,
    ):
        response = await stack.chat(messages=[{"role": "user", "content": text}])
    assert response.status_code == 200
    assert text in response.text
    assert json.loads(bytes(backend.asks[0].body["messages"]))[0]["content"] == text


async def test_a_slow_reader_bounds_what_is_piled_up(stack: Stack, backend: ScriptedBackend) -> None:
    """A client that does not read stops its own backend, after a bounded number of bytes."""
    piece = "x" * 10_000
    pieces = 2_000
    sent = 0

    class Counting(bytes):
        """A chunk that counts how often it is taken."""

    async def endless(_: object) -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(pieces):
            sent += 1
            yield Counting(chunk(piece, role="assistant" if sent == 1 else None))
        yield chunk(finish="stop")

    backend.chat = endless  # type: ignore[assignment,method-assign]  # this test's own script
    async with stack.stream() as response:
        received = 0
        chunks = response.aiter_raw()
        received += len(await anext(chunks))
        await _settled(lambda: sent)
        assert sent < pieces / 2
        async for data in chunks:
            received += len(data)
    assert sent == pieces
    assert received > pieces * len(piece)


async def test_a_client_that_stops_reading_is_given_up(
    stack: Stack, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads nothing for a while loses its connection, and its backend is stopped."""
    monkeypatch.setattr(stall, "STALLED_S", 0.2)
    backend.scripts.append(
        [chunk("x" * 10_000, role="assistant"), *[chunk("x" * 10_000)] * 2_000, asyncio.Event()]
    )
    async with stack.stream() as response:
        events = response.aiter_raw()
        await anext(events)
        await until(lambda: backend.cancelled == 1)
    await until(lambda: stack.services.switchboard.open_lines == 0)


async def test_a_long_pause_is_not_silent(
    stack: Stack, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a stream a silent backend's client gets comments; before its first output nothing."""
    monkeypatch.setattr(clocks, "PAUSE_S", 0.05)
    late = asyncio.Event()
    backend.scripts.append([0.2, chunk("One", role="assistant"), late, *says(" two")[1:]])
    async with stack.stream() as response:
        events = response.aiter_raw()
        seen = await anext(events)
        assert seen.startswith(b"data: ")
        while b": still here\n\n" not in seen:
            seen += await anext(events)
        late.set()
        seen += b"".join([data async for data in events])
    lines = [line for line in seen.decode().split("\n\n") if line.startswith("data: {")]
    text = "".join(
        c["delta"].get("content") or "" for e in map(json.loads, (x[6:] for x in lines)) for c in e["choices"]
    )
    assert text == "One two"


async def _settled(value: Any) -> None:
    """Waits until ``value()`` has not changed for a while."""
    last, same = value(), 0
    while same < 20:
        await asyncio.sleep(0.02)
        same = same + 1 if value() == last else 0
        last = value()


async def test_drain_finishes_what_is_in_flight(stack: Stack, backend: ScriptedBackend) -> None:
    """A worker that is told to stop answers what it holds, takes nothing new, and says goodbye."""
    release = asyncio.Event()
    backend.scripts.append([release, *says("held")])
    held = asyncio.create_task(stack.chat(model="both"))
    await until(lambda: backend.running == 1)
    stopping = asyncio.create_task(stack.stop_worker("a-0"))
    await until(lambda: stack.state("a") == "no_workers")
    other = await stack.chat(model="both")
    assert other.headers["x-tierfall-attempts"] == "a=no_workers;b=ok"
    release.set()
    assert (await held).json()["choices"][0]["message"]["content"] == "held"
    await stopping
    assert backend.closed


async def test_a_reload_opens_nothing_in_a_worker_that_drains(stack: Stack, backend: ScriptedBackend) -> None:
    """What it opened would take requests that end with the process."""
    release = asyncio.Event()
    backend.scripts.append([release, *says("held")])
    held = asyncio.create_task(stack.chat())
    await until(lambda: backend.running == 1)
    process = stack.workers["a-0"]
    stopping = asyncio.create_task(stack.stop_worker("a-0"))
    await until(lambda: stack.state("a") == "no_workers")
    await process.apply(stack.parse(CONFIG.replace("max_in_flight: 4", "max_in_flight: 5")))
    assert process.backends() == {}
    release.set()
    assert (await held).status_code == 200
    await stopping


@STREAMING
async def test_nats_comes_back(stack: Stack, stream: bool) -> None:
    """After a restart of NATS the next requests are answered; while it is away they get a 503."""
    await stack.nats.kill()
    await until(lambda: not stack.services.bus.connected)
    refused = await stack.chat(stream=stream)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "bus_down")
    assert refused.headers["retry-after"]
    assert (await stack.client.get("/health/readiness")).status_code == 503
    await stack.nats.start()
    await until(lambda: stack.services.bus.connected)
    await until(lambda: all(bus.connected for bus in stack._buses.values()))
    assert (await stack.chat(stream=stream)).status_code == 200


async def test_a_request_waits_for_nats(stack: Stack) -> None:
    """A request that comes while NATS restarts is answered as soon as it is back."""
    await stack.nats.kill()
    await until(lambda: not stack.services.bus.connected)
    pending = asyncio.create_task(stack.chat())
    await stack.nats.start()
    assert (await pending).status_code == 200


async def test_a_stream_survives_nats_or_breaks_honestly(stack: Stack, backend: ScriptedBackend) -> None:
    """A NATS restart in mid-stream loses no text silently: the answer is whole, or it says that it broke."""
    words = [f"{number} " for number in range(200)]
    script: list[Any] = [chunk("", role="assistant")]
    for word in words:
        script += [chunk(word), 0.005]
    backend.scripts.append([*script, chunk(finish="stop")])
    async with stack.stream() as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        await stack.nats.restart()
        seen += [line async for line in lines]
    events = [json.loads(line[6:]) for line in seen if line.startswith("data: {")]
    text = "".join(c["delta"].get("content") or "" for e in events for c in e.get("choices", ()))
    assert "".join(words).startswith(text)
    if seen[-2] == "data: [DONE]":
        assert text == "".join(words)
    else:
        assert "error" in events[-1]


async def test_two_workers_share_a_tier(stack: Stack, backend: ScriptedBackend) -> None:
    """A second worker of a tier takes what the first has no slots for."""
    second = ScriptedBackend()
    await stack.add_worker("a", second)
    await until(lambda: len(stack.services.roster.standing("a").workers) == 2)
    release = asyncio.Event()
    for each in (backend, second):
        each.scripts.extend([[release, *says("x")]] * 4)
    held = [asyncio.create_task(stack.chat()) for _ in range(8)]
    await until(lambda: backend.running + second.running == 8)
    release.set()
    assert {(await task).status_code for task in held} == {200}


async def test_reload_changes_the_next_request(stack: Stack, backend: ScriptedBackend) -> None:
    """A new config holds for the next request; one under way ends as it began."""
    release = asyncio.Event()
    backend.scripts.append([release, *says("old")])
    held = asyncio.create_task(stack.chat())
    await until(lambda: backend.running == 1)
    stack.services.apply(stack.parse(CONFIG.replace("first:", "renamed:")))
    assert (await stack.chat()).status_code == 404
    assert (await stack.chat(model="renamed")).status_code == 200
    release.set()
    assert (await held).json()["model"] == "first"


async def test_reload_while_a_body_comes_changes_nothing_for_it(stack: Stack) -> None:
    """A request lives by the config that it began with, though its model is gone once its body is there."""
    request = chat_request(ASK)
    async with RawClient(stack.url) as client:
        await client.send(request[:-1])
        await until(lambda: stack.services.meters.in_flight == 1)
        stack.services.apply(stack.parse(CONFIG.replace("first:", "renamed:")))
        await client.send(request[-1:])
        answer = await client.answer()
    assert (answer.status, answer.json["model"]) == (200, "first")


@pytest.mark.parametrize("again", [False, True], ids=["changed", "taken out and put back"])
async def test_a_changed_tier_is_served_while_its_old_station_drains(
    stack: Stack, backend: ScriptedBackend, again: bool
) -> None:
    """Also once that one has ended: it says nothing that would be taken for the new one's word."""
    release, worker = asyncio.Event(), stack.workers["a-0"]
    backend.scripts.append([release, *says("old")])
    held = asyncio.create_task(stack.chat())
    await until(lambda: backend.running == 1)
    if again:
        await worker.apply(stack.parse(CONFIG.replace("  a: {", "  c: {").replace("tier: a", "tier: c")))
        await until(lambda: stack.state("a") == "no_workers")
    await worker.apply(stack.parse(CONFIG.replace("max_in_flight: 4", "max_in_flight: 5")))
    await until(lambda: stack.state("a") == "up")
    said: list[Message] = []
    bus = stack.services.bus
    heard = await bus.subscribe(subjects.presence("a", worker.id), said.append)
    await until(lambda: len(said) >= 3)
    release.set()
    assert (await held).status_code == 200
    await until(lambda: not worker._leaving)
    await bus.flush()
    assert (await stack.chat()).headers["x-tierfall-attempts"] == "a=ok"
    beats = [beat for message in said if (beat := unpack_beat(message.data)) is not None]
    assert {(beat.slots, beat.draining, beat.gone) for beat in beats} == {(5, False, False)}
    await heard.close()


async def test_a_worker_says_goodbye_after_its_last_request(stack: Stack, backend: ScriptedBackend) -> None:
    """Also where that one is at a station that another one has replaced."""
    release, worker = asyncio.Event(), stack.workers["a-0"]
    backend.scripts.append([release, *says("old")])
    held = asyncio.create_task(stack.chat())
    await until(lambda: backend.running == 1)
    await worker.apply(stack.parse(CONFIG.replace("max_in_flight: 4", "max_in_flight: 5")))
    stopping = asyncio.create_task(stack.stop_worker("a-0"))
    await until(lambda: not stack.services.roster.has_workers("a"))
    assert not stack.services.roster.is_away(worker.id, since=float("-inf"))
    release.set()
    assert (await held).status_code == 200
    await stopping
    assert stack.services.roster.is_away(worker.id, since=float("-inf"))


async def test_a_worker_drains_though_a_reload_waits_for_nats(stack: Stack, backend: ScriptedBackend) -> None:
    """A cancelled reload leaves nothing behind: the old station serves on, or drains."""
    process = stack.workers["a-0"]
    await stack.nats.kill()
    await until(lambda: not process._bus.connected)
    second = ScriptedBackend()
    process._build = lambda *_: second
    applying = asyncio.create_task(
        process.apply(stack.parse(CONFIG.replace("max_in_flight: 4", "max_in_flight: 5")))
    )
    await until(process._applying.locked)
    applying.cancel()
    await stack.nats.start()
    await until(lambda: second.closed)
    await until(lambda: stack.services.bus.connected and process._bus.connected)
    assert (await stack.chat()).status_code == 200
    assert len(backend.asks) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00",
        b"not a frame at all",
        encode(Kind.CHUNK, 1, 0, b"x")[:-1],
        HEADER.pack(99, 1, 0, 0),
        HEADER.pack(Kind.CHUNK, 1, 0, 0xFFFFFFFF),
        struct.pack("!I", 4) + b"{}  ",
        struct.pack("!I", 0xFFFFFFFF),
        struct.pack("!I", 2) + b"{}",
    ],
)
async def test_rogue_messages_harm_nobody(stack: Stack, garbage: bytes) -> None:
    """Bytes that are no frames, on every subject there is, change nothing for anybody."""
    rogue = await Bus.connect(BusOptions(servers=stack.nats.url, name="rogue"))
    worker = next(iter(stack.workers.values())).id
    for subject in (
        subjects.chat("a"),
        subjects.control(worker),
        subjects.presence("a", worker),
        subjects.slot("a"),
        subjects.slot("nobody"),
        f"{stack.services.switchboard._base}.x",
        f"{stack.services.switchboard._base}.0000000000000001",
        f"{stack.services.switchboard._leases}.nobody",
    ):
        rogue.publish(subject, garbage, reply=rogue.inbox())
        rogue.publish(subject, garbage)
    await rogue.flush()
    await rogue.close()
    assert (await stack.chat()).headers["x-tierfall-attempts"] == "a=ok"


async def test_many_clients_that_vanish_leave_nothing(stack: Stack, backend: ScriptedBackend) -> None:
    """Two hundred clients that hang up leave no line, no slot, no task and no place in line."""
    backend.scripts.extend([[asyncio.Event()]] * 200)
    tasks_before = len(asyncio.all_tasks())
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=stack.url, limits=limits, trust_env=False) as client:
        pending = [asyncio.create_task(client.post("/v1/chat/completions", json=ASK)) for _ in range(200)]
        await until(lambda: len(stack.services.rooms["a"]) == 196)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    await until(lambda: backend.running == 0)
    await until(lambda: len(stack.services.rooms["a"]) == 0)
    await until(lambda: stack.services.switchboard.open_lines == 0)
    await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
    backend.scripts.clear()
    assert (await stack.chat()).status_code == 200
