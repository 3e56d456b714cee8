"""Every fault of a provider through the real worker: a whole answer or an honest error, nothing left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from fakes.behaviour import TEXT, Answer
from fakes.fault_matrix import BEFORE_OUTPUT, ENDED, HARMLESS, RESUMED
from fakes.fault_stack import FaultStack
from fakes.faults import CutAfter, DoneThenSilence, Silence, StallAfter, Status
from fakes.kept import PADDING, no_collector, nothing_kept
from fakes.polling import until
from fakes.raw_client import RawClient
from fakes.stack import ASK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.client_view import ClientView
    from fakes.fault_matrix import Fault

# One gateway takes all the faults, one after the other: what one of them left behind would show in the next.
pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAMING = pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])


def rows(faults: tuple[Fault, ...]) -> pytest.MarkDecorator:
    """One test for each row of the matrix."""
    return pytest.mark.parametrize("fault", faults, ids=named)


def named(fault: Fault) -> str:
    """A test id without what a shell or pytest reads as something else."""
    return re.sub(r"[^a-z0-9]+", "_", fault.name.lower()).strip("_")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[FaultStack]:
    """The gateway of this file."""
    with no_collector():
        async with FaultStack() as running:
            yield running


@pytest_asyncio.fixture(loop_scope="module")
async def stack(gateway: FaultStack) -> FaultStack:
    """Both tiers up and well, nothing asked yet."""
    await gateway.reset()
    return gateway


async def play(stack: FaultStack, fault: Fault, *, stream: bool) -> ClientView:
    """Asks while the fault lasts, checks that nothing is left of it and that the tier serves again.

    The collector is off: what a request leaves in a reference cycle would stay until it comes, body and all.
    """
    await fault.set_up(stack)
    async with nothing_kept():
        got = await stack.ask(stream=stream, model=fault.model, **fault.fields, padding=PADDING)
        await stack.settled()
        for request in (*stack.first.chats, *stack.second.chats):
            request.raw = b""
    await stack.recover()
    again = await stack.ask(stream=stream)
    assert (again.attempts, again.text) == ("first=ok", TEXT)
    return got


def expect_attempts(got: ClientView, fault: Fault, *, stream: bool) -> None:
    """The way over the tiers is the one that the row names."""
    expected = fault.attempts if stream else fault.whole_attempts or fault.attempts
    assert re.fullmatch(expected, got.attempts), got.attempts


def expect_answer(got: ClientView, fault: Fault) -> None:
    """One whole answer with its usage."""
    assert got.whole, got.error
    assert (got.text, len(got.usage)) == (fault.text, 1)


@STREAMING
@rows(BEFORE_OUTPUT)
async def test_before_the_first_output(stack: FaultStack, fault: Fault, stream: bool) -> None:
    """A fault before the first output costs an attempt, never the answer, and never shows in it."""
    got = await play(stack, fault, stream=stream)
    expect_attempts(got, fault, stream=stream)
    if fault.code:
        assert (got.status, got.error["code"]) == (fault.status, fault.code)
        assert not stack.second.chats
    else:
        expect_answer(got, fault)
        assert len(got.models) == 1


@STREAMING
@rows(RESUMED)
async def test_in_mid_stream(stack: FaultStack, fault: Fault, stream: bool) -> None:
    """A stream that breaks goes on without a seam, and an answer in one piece is asked for anew."""
    got = await play(stack, fault, stream=stream)
    expect_attempts(got, fault, stream=stream)
    expect_answer(got, fault)


@STREAMING
@rows(ENDED)
async def test_what_cannot_go_on_says_so(stack: FaultStack, fault: Fault, stream: bool) -> None:
    """A stream that nobody may go on with ends in an error frame; an answer in one piece is asked anew."""
    got = await play(stack, fault, stream=stream)
    expect_attempts(got, fault, stream=stream)
    if stream:
        assert (got.status, got.error["code"]) == (200, fault.code)
        assert TEXT.startswith(got.text)
    elif got.attempts.endswith("ok"):
        expect_answer(got, fault)
    else:
        assert got.status >= 400
        assert got.error["code"] == fault.code


@STREAMING
@rows(HARMLESS)
async def test_odd_but_whole(stack: FaultStack, fault: Fault, stream: bool) -> None:
    """What only looks like a fault is passed on whole, from the first tier and at once."""
    got = await play(stack, fault, stream=stream)
    expect_attempts(got, fault, stream=stream)
    expect_answer(got, fault)
    assert (got.models, len(stack.first.chats), stack.second.chats) == ([fault.model], 2, [])


@STREAMING
async def test_a_short_idle_deadline_does_not_cost_a_whole_answer(stack: FaultStack, stream: bool) -> None:
    """An engine that has its finish_reason out is not waited for longer than the idle deadline allows."""
    stack.first.plan(DoneThenSilence(Answer(done=False)))
    got = await stack.ask(stream=stream, model="hasty")
    assert (got.whole, got.attempts, got.text, len(got.usage)) == (True, "first=ok", TEXT, 1)
    await stack.settled()


async def test_a_stall_is_resumed_on_the_only_tier_that_lives(stack: FaultStack) -> None:
    """Where no other tier can go on with a stalled stream, its own one is asked."""
    await stack.second.refuse()
    await until(lambda: stack.state("second") == "down")
    stack.first.plan(StallAfter(3))
    got = await stack.ask(stream=True, model="hasty")
    assert (got.whole, got.text, got.models, len(stack.first.chats)) == (True, TEXT, ["hasty"], 2)
    await stack.settled()


@pytest.mark.parametrize("owned_by", ["vllm", "llamacpp", "fake"])
async def test_resumed_by_prefill(owned_by: str) -> None:
    """An engine that can go on from a given beginning does, and the client sees the same as without."""
    async with FaultStack(owned_by=owned_by) as stack:
        stack.first.plan(CutAfter(3))
        got = await stack.ask(stream=True)
        assert (got.whole, got.text, len(got.usage)) == (True, TEXT, 1)
        messages = stack.first.chats[1].json["messages"]
        begun = [{"role": "assistant", "content": "one two three "}] if owned_by != "fake" else []
        assert messages[1:] == begun
        assert got.usage[0]["completion_tokens"] == 10
        await stack.settled()


async def test_another_answer_is_never_spliced(stack: FaultStack) -> None:
    """When the tier that is to go on says something else, the client keeps what it has and is told."""
    stack.first.default = CutAfter(3)
    stack.second.default = Answer("one two four")
    got = await stack.ask(stream=True)
    assert (got.whole, got.text, got.finish) == (False, "one two three ", "")
    await stack.settled()


@STREAMING
async def test_every_tier_fails(stack: FaultStack, stream: bool) -> None:
    """When no tier can answer, one error tells what each of them did."""
    stack.first.default = stack.second.default = CutAfter(0)
    got = await stack.ask(stream=stream)
    assert (got.status, got.error["code"]) == (502, "stream_broken")
    assert got.attempts == ";".join(["first=stream_broken"] * 2 + ["second=stream_broken"] * 2)
    await stack.settled()


async def test_a_tier_known_to_be_down_is_not_asked(stack: FaultStack) -> None:
    """A backend that refused once is passed over, without a connection to it, until a probe finds it."""
    await stack.first.refuse()
    for _ in range(3):
        assert (await stack.ask(stream=False)).attempts == "first=backend_down;second=ok"
    assert not stack.first.chats
    await stack.recover()
    assert (await stack.ask(stream=False)).attempts == "first=ok"


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_our_own_misconfiguration_is_loud(
    stack: FaultStack, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A provider that refuses our key or model is logged as an error that says what to check, and counted."""
    refused = 'tierfall_attempts_total{outcome="provider_refused",tier="first"}'
    before = await stack.metric(refused)
    stack.first.plan(Status(status))
    assert (await stack.ask(stream=False)).whole
    await stack.settled()
    assert await stack.metric(refused) == before + 1
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert re.search(rf"tier first: .*\({status}\): check ", errors[0])


@STREAMING
async def test_the_client_hangs_up_on_a_fault(stack: FaultStack, stream: bool) -> None:
    """A client that leaves while a provider is silent, before or after its first output, leaves nothing."""
    for silence in (Silence(), StallAfter(3)):
        stack.first.plan(silence)
        async with RawClient(stack.url) as client:
            await client.chat({**ASK, "stream": stream})
            await until(lambda: stack.first.chats)
        await stack.settled()
        assert stack.first.chats[0].closed.is_set()
        stack.first.forget()
    assert not stack.second.chats
