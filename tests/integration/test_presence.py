"""Workers that do not answer, that cannot read a request, and requests that come late."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.polling import until
from fakes.scripted import ScriptedBackend, says
from fakes.stack import Stack
from tierfall.bus import Bus, BusOptions, Message
from tierfall.protocol import age, subjects
from tierfall.protocol.presence import BEAT_EVERY_S, BEAT_STALE_S
from tierfall.worker import station as worker_station
from tierfall_ingress.roster import SILENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tierfall.worker.backend import Health
    from tierfall.worker.process import WorkerProcess

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 4}
  b: {worker: ollama, base_url: http://127.0.0.1:1}
models:
  first: {tier: a, backend_model: model-a, fallbacks: [second]}
  second: {tier: b, backend_model: model-b}
  alone: {tier: a, backend_model: model-a}
"""


class Tiers(Stack):
    """Two tiers with a worker each."""

    def __init__(self) -> None:
        self.a, self.b = ScriptedBackend(), ScriptedBackend()
        super().__init__(CONFIG, {"a": self.a, "b": self.b})

    async def attempts(self, model: str = "first") -> str:
        """One request's story."""
        return (await self.chat(model=model)).headers["x-tierfall-attempts"]

    def deafen(self, key: str) -> WorkerProcess:
        """A worker hears nothing from now on, and says nothing, though NATS has its connection."""
        bus = self._buses[key]
        for sid in list(bus._routes):
            bus._routes[sid] = lambda _: None
        process = self.workers[key]
        for _, station in process._stations.values():
            station._tending[0].cancel()
        return process


@pytest.fixture
async def tiers() -> AsyncIterator[Tiers]:
    """Both tiers up."""
    async with Tiers() as running:
        yield running


@contextlib.contextmanager
def sent_by(bus: Bus, change: Any) -> Iterator[list[str]]:
    """Changes what a bus publishes, by subject and payload; the subjects so far."""
    publish, subjects_seen = bus.publish, []

    def changed(subject: str, payload: bytes, **rest: Any) -> None:
        subjects_seen.append(subject)
        publish(subject, change(subject, payload), **rest)

    bus.publish = changed  # type: ignore[method-assign]
    try:
        yield subjects_seen
    finally:
        del bus.publish


async def test_a_silent_worker_costs_one_request_a_moment(tiers: Tiers) -> None:
    """The next tier answers; the requests after it do not ask the silent worker, until it is heard again."""
    tiers.deafen("a-0")
    assert await tiers.attempts() == "a=no_workers;b=ok"
    with sent_by(tiers.services.bus, lambda _, payload: payload) as subjects_seen:
        assert await tiers.attempts() == "a=no_workers;b=ok"
    assert not any(subject.startswith(subjects.chat("a")) for subject in subjects_seen)
    assert tiers.state("a") == "no_workers"
    reason = (await tiers.client.get("/health")).json()["tiers"]["a"]["reason"]
    assert reason == f"no answer from {tiers.workers['a-0'].id}"


async def test_a_first_sign_brings_it_back(tiers: Tiers) -> None:
    """A late answer to a ping or a beat, whatever comes first."""
    roster, worker = tiers.services.roster, tiers.workers["a-0"].id
    roster._note_silent(worker)
    assert tiers.state("a") == "no_workers"
    await until(lambda: tiers.state("a") == "up")
    roster._note_silent(worker)
    roster._ping(worker)
    await until(lambda: tiers.state("a") == "up", timeout_s=BEAT_EVERY_S)
    assert await tiers.attempts() == "a=ok"


async def test_requests_go_past_a_silent_member_of_the_queue_group(tiers: Tiers) -> None:
    """NATS would give it every second request; they are addressed to the other worker."""
    await tiers.add_worker("a")
    await until(lambda: len(tiers.services.roster.standing("a").workers) == 2)
    tiers.deafen("a-0")
    live = tiers.workers["a-2"].id
    for _ in range(12):
        response = await tiers.chat()
        assert response.headers["x-tierfall-attempts"] == "a=ok"
        assert response.headers["x-tierfall-worker"] == live
    assert tiers.services.roster.must_detour("a")


async def test_a_full_worker_beside_a_silent_one_is_waited_for(tiers: Tiers) -> None:
    """On the last tier no request fails because the one worker that answers is full."""
    await tiers.add_worker("a")
    await until(lambda: len(tiers.services.roster.standing("a").workers) == 2)
    tiers.deafen("a-0")
    release = asyncio.Event()
    tiers.a.scripts.extend([[release, *says("x")]] * 4)
    asked = [asyncio.create_task(tiers.chat(model="alone")) for _ in range(12)]
    await until(lambda: len(tiers.services.rooms["a"]) == 8)
    release.set()
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 12
    assert len(tiers.a.asks) == 12


async def test_a_dead_member_of_a_worker_that_lives_is_avoided(tiers: Tiers) -> None:
    """A worker dialled again and NATS keeps its old connection: pings are answered, requests are lost."""
    ghost = await Bus.connect(BusOptions(servers=tiers.nats.url, name="ghost"))
    lost: list[Message] = []
    await ghost.subscribe(subjects.chat("a"), lost.append, queue=subjects.QUEUE_GROUP)
    for _ in range(20):
        assert await tiers.attempts() == "a=ok"
        if lost:
            break
    assert len(lost) == 1
    for _ in range(20):
        assert await tiers.attempts() == "a=ok"
    assert len(lost) == 1
    await ghost.close()


async def test_users_without_the_new_subject_are_reached(tiers: Tiers) -> None:
    """Workers that may not subscribe to requests of their own still get those of the queue group."""
    for _, station in tiers.workers["a-0"]._stations.values():
        assert station._direct is not None
        await station._direct.close()
    tiers.services.roster.detour("a")
    assert await tiers.attempts() == "a=ok"


async def test_a_busy_last_worker_is_waited_for(tiers: Tiers) -> None:
    """Where there is no other tier, a worker that is held up for a moment fails no request."""
    tiers.services.roster._note_silent(tiers.workers["a-0"].id)
    pending = asyncio.create_task(tiers.chat(model="alone"))
    await until(lambda: len(tiers.services.rooms["a"]) == 1)
    assert (await pending).status_code == 200


async def test_a_slow_probe_delays_no_beat(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that takes its time for its health must not make its worker look dead."""
    asked = asyncio.Event()

    async def slow() -> Health:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(worker_station, "PROBE_TIMEOUT_S", 60.0)
    monkeypatch.setattr(tiers.a, "probe", slow)
    await asked.wait()
    began = time.monotonic()
    beats: list[Message] = []
    bus = await Bus.connect(BusOptions(servers=tiers.nats.url, name="listener"))
    await bus.subscribe(subjects.presence("a", "*"), beats.append)
    await until(lambda: len(beats) >= 2)
    assert time.monotonic() - began < BEAT_STALE_S
    await bus.close()


async def test_a_late_request_is_not_executed(tiers: Tiers) -> None:
    """What NATS delivers after its ingress gave it up is refused; the ingress has no use for the refusal."""
    assert await tiers.attempts() == "a=ok"
    kept: list[tuple[Any, Any]] = []
    sent_at = age.clock()
    bus = tiers.services.bus
    publish = bus.publish

    def keep(subject: str, payload: bytes, **rest: Any) -> None:
        if subject == subjects.chat("a") and not kept:
            kept.append(((subject, payload), rest))
        else:
            publish(subject, payload, **rest)

    bus.publish = keep  # type: ignore[method-assign]
    assert await tiers.attempts() == "a=ok"
    bus.publish = publish  # type: ignore[method-assign]
    before = len(tiers.a.asks)
    await until(lambda: age.clock() - sent_at > 2 * age.LATE_S)
    publish(*kept[0][0], **kept[0][1])
    await bus.flush()
    assert await tiers.attempts() == "a=ok"
    assert len(tiers.a.asks) == before + 1


@pytest.mark.parametrize("ahead_s", [-5.0, 5.0, 3600.0, -86400.0])
async def test_a_clock_that_jumps_costs_nothing_but_a_round_trip(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Also where it jumps by days; the time of day is not looked at at all."""
    assert await tiers.attempts() == "a=ok"
    now, wall = age.clock, time.time
    monkeypatch.setattr(age, "clock", lambda: now() + ahead_s)  # the workers'; the ingress's stays
    monkeypatch.setattr(time, "time", lambda: wall() + ahead_s)
    with sent_by(tiers.services.bus, lambda _, payload: payload) as subjects_seen:
        for _ in range(3):
            assert await tiers.attempts() == "a=ok"
    sent = subjects_seen.count(subjects.chat("a"))
    assert sent == (4 if ahead_s > 0 else 3)
    assert len(tiers.a.asks) == 4


def unreadable(subject: str, payload: bytes) -> bytes:
    """A request as a newer ingress would send it."""
    return (
        payload.replace(b'"attempt":', b'"attempt":[],"x":')
        if subject.startswith(subjects.chat("a"))
        else payload
    )


async def test_a_request_that_no_worker_can_read_goes_on_at_once(tiers: Tiers) -> None:
    """An ingress of another version hears it, and asks the next tier."""
    with sent_by(tiers.services.bus, unreadable):
        assert await tiers.attempts() == "a=unreadable;b=ok"
    assert not tiers.a.asks


async def test_a_worker_that_can_read_it_is_found(tiers: Tiers) -> None:
    """In the middle of an upgrade the tier has workers of both versions."""
    await tiers.add_worker("a")
    await until(lambda: len(tiers.services.roster.standing("a").workers) == 2)
    _, station = tiers.workers["a-0"]._stations["a"]
    routes = tiers._buses["a-0"]._routes

    def garble(message: Message, take: Any = station._on_request) -> None:
        take(Message(message.subject, message.reply, unreadable(subjects.chat("a"), message.data)))

    for subscription in (station._subscription, station._direct):
        assert subscription is not None
        routes[subscription.sid] = garble
    for _ in range(12):
        assert await tiers.attempts() == "a=ok"


@pytest.mark.parametrize("token", ["x", "-1", "10000000000000000"])
async def test_an_unreadable_request_without_a_stream_is_dropped(tiers: Tiers, token: str) -> None:
    """Where there is nothing to answer to, nothing is sent."""
    rogue = await Bus.connect(BusOptions(servers=tiers.nats.url, name="rogue"))
    heard: list[Message] = []
    base = rogue.inbox()
    await rogue.subscribe(f"{base}.>", heard.append)
    rogue.publish(subjects.chat("a"), b"no request", reply=f"{base}.{token}")
    assert await tiers.attempts() == "a=ok"
    await rogue.flush()
    assert not heard
    await rogue.close()


async def test_a_wrong_clock_is_named(tiers: Tiers, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, in ``/health`` and as a metric; requests do not mind."""
    roster, worker = tiers.services.roster, tiers.workers["a-0"].id
    beat = next(beat for beat in roster.standing("a").workers)

    def hear(ahead_s: float) -> None:
        for late_s in (0.0, 3.0, 0.0, 1.0, 4.0):
            roster.skews.note(msgspec.structs.replace(beat, time=time.time() + ahead_s - late_s))

    hear(5.2)
    assert f"clock of worker {worker} is 5.2 s ahead of this ingress" in caplog.text
    health = (await tiers.client.get("/health")).json()
    assert health["tiers"]["a"]["workers"][0]["clock_ahead_s"] == pytest.approx(5.2, abs=0.1)
    metrics = (await tiers.client.get("/metrics")).text
    assert re.search(r'tierfall_tier_clock_skew_seconds\{tier="a"\} 5\.[12]', metrics)
    assert await tiers.attempts() == "a=ok"
    hear(-3.3)
    assert roster.skews.ahead_s(worker) == pytest.approx(-3.3, abs=0.1)
    with caplog.at_level("INFO"):
        hear(0.0)
    assert f"clock of worker {worker} agrees with this ingress again" in caplog.text
    roster.drop(worker)
    assert roster.skews.ahead_s(worker) is None


async def test_a_frozen_nats_makes_no_worker_look_dead(tiers: Tiers) -> None:
    """Pings are unanswered as well then, and that tells nothing of workers."""
    tiers.nats.pause()
    pending = asyncio.create_task(tiers.attempts())
    await asyncio.sleep(2 * SILENCE_S)  # the pings are due by then
    tiers.nats.resume()
    assert await pending == "a=ok"
    assert not tiers.services.roster.must_detour("a")
