"""Credit for request bodies: bounded over all, fair, and given back."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from fakes.polling import until
from fakes.scripted import ScriptedBackend
from tierfall.errors import BodyLost
from tierfall.protocol.envelope import Envelope
from tierfall.worker import incoming
from tierfall.worker.incoming import AHEAD_BYTES, GRANT_BYTES, TOTAL_BYTES, BodyIntake, IncomingBody
from tierfall.worker.job import Job
from tierfall.worker.reply import Reply

FIRST = b"x" * 1000
SIZE = 10 * GRANT_BYTES


class Ingress:
    """Sends what it is granted, when the test says so."""

    def __init__(self, intake: BodyIntake, size: int = SIZE) -> None:
        self.body = IncomingBody(intake, FIRST, size, self.grant)
        self.allowed = self.sent = len(FIRST)
        self.parts = 0

    def grant(self, total: int) -> None:
        """BODY_CREDIT."""
        self.allowed = total

    @property
    def outstanding(self) -> int:
        """Granted and not sent."""
        return self.allowed - self.sent

    def send(self) -> None:
        """The next piece, as far as it is granted."""
        size = min(GRANT_BYTES, self.outstanding)
        self.body.add(self.parts, b"x" * size)
        self.parts += 1
        self.sent += size


async def test_what_is_granted_is_bounded_for_each_and_for_all() -> None:
    """However many bodies come at once; and all of them arrive."""
    intake = BodyIntake()
    senders = [Ingress(intake) for _ in range(20)]
    for sender in senders:
        sender.body.open()
    while pending := [sender for sender in senders if sender.outstanding]:
        assert all(sender.outstanding <= AHEAD_BYTES for sender in senders)
        assert sum(sender.outstanding for sender in senders) == intake.outstanding <= TOTAL_BYTES
        for sender in pending:
            sender.send()
    assert [len(await sender.body.read()) for sender in senders] == [SIZE] * 20
    assert not intake.outstanding


async def test_credit_goes_round() -> None:
    """A large body does not hold up the ones that came after it."""
    intake = BodyIntake()
    large, small = Ingress(intake, 1000 * GRANT_BYTES), Ingress(intake, 2 * GRANT_BYTES)
    large.body.open()
    small.body.open()
    for _ in range(3):
        large.send()
        small.send()
    assert small.body.is_whole
    assert not large.body.is_whole


async def test_a_body_that_is_given_up_gives_its_credit_back() -> None:
    """Also one that stands in line for more."""
    intake = BodyIntake()
    lost = [Ingress(intake) for _ in range(10)]
    for sender in lost:
        sender.body.open()
    last = Ingress(intake)
    last.body.open()
    assert not last.outstanding
    for sender in lost:
        sender.body.close()
    assert last.outstanding == intake.outstanding == AHEAD_BYTES


async def test_a_missing_part_fails_the_body() -> None:
    """And so does more than was granted."""
    intake = BodyIntake()
    gap, more = Ingress(intake), Ingress(intake)
    for sender in (gap, more):
        sender.body.open()
    gap.body.add(1, b"x")
    more.body.add(0, b"x" * (AHEAD_BYTES + 1))
    for sender in (gap, more):
        with pytest.raises(BodyLost):
            await sender.body.read()


async def test_a_granted_part_that_does_not_come_fails_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for credit is not late."""
    monkeypatch.setattr(incoming, "STALLED_AFTER_S", 0.05)
    intake = BodyIntake()
    silent = [Ingress(intake) for _ in range(TOTAL_BYTES // AHEAD_BYTES)]
    for sender in silent:
        sender.body.open()
    waiting = Ingress(intake)
    waiting.body.open()
    reading = asyncio.create_task(waiting.body.read())
    for sender in silent:
        with pytest.raises(BodyLost, match="did not come"):
            await sender.body.read()
    assert not reading.done()
    for sender in silent:
        sender.body.close()
    while waiting.outstanding:
        waiting.send()
    assert len(await reading) == SIZE


async def test_a_sender_that_knows_no_credit_sends_unasked() -> None:
    """An ingress of an older version."""
    body = IncomingBody(BodyIntake(), b"ab", 4, None)
    body.open()
    body.add(0, b"cd")
    assert await body.read() == b"abcd"


async def test_a_job_that_is_cancelled_before_it_runs_gives_its_credit_back() -> None:
    """Its task then never takes a step."""
    intake = BodyIntake()
    ingress = Ingress(intake)
    envelope = Envelope(
        stream=1,
        request_id="r",
        attempt=1,
        model="m",
        backend_model="m",
        answer_id="a",
        created=1,
        sent_at=0.0,
        signs_every_s=1.0,
        window=1,
        body_size=SIZE,
    )
    reply = mock.Mock(spec=Reply)
    job = Job(envelope, ingress.body, reply, ScriptedBackend())
    task = job.start()
    task.add_done_callback(lambda _: job.close())
    assert intake.outstanding
    job.cancel()
    await asyncio.wait([task])
    await until(lambda: not intake.outstanding)
    job.close()
    assert not intake.outstanding
