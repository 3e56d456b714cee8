"""The escalation table, row by row, for clients that stream and clients that do not."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from fakes.polling import until
from fakes.scripted import ScriptedBackend, Step, chunk, says
from fakes.stack import Stack
from tierfall.errors import (
    BackendDown,
    BackendFault,
    ContentFiltered,
    ContextLengthExceeded,
    InvalidRequest,
    ProviderRefused,
    QuotaExhausted,
    RateLimited,
    StreamBroken,
    TierfallError,
    UnsupportedByTier,
)
from tierfall.worker import Health, Progress

if TYPE_CHECKING:
    import httpx

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 2}
  b: {worker: ollama, base_url: http://127.0.0.1:1, max_in_flight: 2}
  c: {worker: vllm, base_url: http://127.0.0.1:1/v1}
models:
  first:
    tier: a
    backend_model: model-a
    deadlines: {first_token: 300ms, idle: 400ms, total: 5s, budget: 8s}
    fallbacks: [second]
    context_window: 100
  second: {tier: b, backend_model: model-b, deadlines: {first_token: 2s}, context_window: 100}
  three:
    tier: a
    backend_model: model-a
    fallbacks: [second, large]
    context_window: 100
  large: {tier: c, backend_model: model-c, context_window: 1000}
  alone: {tier: a, backend_model: model-a, deadlines: {first_token: 100ms, total: 2s}}
  waits: {tier: a, backend_model: model-a, fallbacks: [second], when_full: wait(10s)}
  loads:
    tier: a
    backend_model: model-a
    deadlines: {first_token: 100ms, load: 10s}
    fallbacks: [second]
  strict:
    tier: a
    backend_model: model-a
    deadlines: {idle: 400ms}
    fallbacks: [second]
    on_stream_failure: error
  hurried: {tier: a, backend_model: model-a, deadlines: {first_token: 300ms, budget: 300ms}}
"""
STREAMING = pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])


class Tiers(Stack):
    """The stack of this file: three tiers, each with a scripted backend."""

    def __init__(self) -> None:
        self.a, self.b, self.c = ScriptedBackend(), ScriptedBackend(), ScriptedBackend()
        super().__init__(CONFIG, {"a": self.a, "b": self.b, "c": self.c})

    async def answer(self, *, stream: bool, **fields: Any) -> Answered:
        """One request, read to its end."""
        response = await self.chat(stream=stream, **fields)
        return Answered(response, stream=stream)


class Answered:
    """An answer, read as its client would."""

    def __init__(self, response: httpx.Response, *, stream: bool) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.attempts = response.headers.get("x-tierfall-attempts", "")
        self.tier = response.headers.get("x-tierfall-tier", "")
        self.events: list[dict[str, Any]] = []
        if stream and self.status == 200:
            lines = [line for line in response.text.split("\n\n") if line]
            self.done = lines[-1] == "data: [DONE]"
            self.events = [json.loads(line.removeprefix("data: ")) for line in lines if "[DONE]" not in line]
            self.models = {event["model"] for event in self.events if "model" in event}
            self.text = "".join(
                choice["delta"].get("content") or "" for e in self.events for choice in e.get("choices", ())
            )
            errors = [event["error"] for event in self.events if "error" in event]
        else:
            body = response.json()
            errors = [body["error"]] if "error" in body else []
            if not errors:
                self.models = {body["model"]}
                self.text = body["choices"][0]["message"]["content"]
        self.error: dict[str, Any] = errors[0] if errors else {}


@STREAMING
async def test_the_first_tier_answers(stream: bool) -> None:
    """A healthy first tier answers, and the answer says so in its model and headers."""
    async with Tiers() as tiers:
        got = await tiers.answer(stream=stream)
        assert (got.status, got.text, got.models) == (200, "Hello world.", {"first"})
        assert (got.tier, got.attempts) == ("a", "a=ok")
        assert got.headers["x-tierfall-worker"].startswith("vllm-")


@STREAMING
async def test_no_responders(stream: bool) -> None:
    """A tier without a worker costs nothing: the next one answers at once, under its own name."""
    async with Tiers() as tiers:
        await tiers.stop_worker("a-0")
        got = await tiers.answer(stream=stream)
        assert (got.text, got.models, got.attempts) == ("Hello world.", {"second"}, "a=no_workers;b=ok")


@STREAMING
async def test_a_killed_worker_is_known_to_be_gone_at_once(stream: bool) -> None:
    """A worker that vanished leaves its last beat behind; the next request is not fooled by it."""
    async with Tiers() as tiers:
        await tiers.kill_worker("a-0")
        got = await tiers.answer(stream=stream)
        assert got.attempts == "a=no_workers;b=ok"


@STREAMING
async def test_backend_marked_down(stream: bool) -> None:
    """A worker whose backend is down leaves its tier, and its reason is told when nobody else answers."""
    async with Tiers() as tiers:
        tiers.a.health = Health("down", "nothing listens at 127.0.0.1:8000")
        await until(lambda: tiers.state("a") == "down")
        got = await tiers.answer(stream=stream)
        assert got.attempts == "a=backend_down;b=ok"
        tiers.b.health = tiers.a.health
        await until(lambda: tiers.state("b") == "down")
        got = await tiers.answer(stream=stream)
        assert got.status == 503
        assert "is down: nothing listens at [hidden]" in got.error["message"]
        told = (await tiers.client.get("/health")).json()["tiers"]["a"]["reason"]
        assert told == "nothing listens at 127.0.0.1:8000"
        assert got.headers["retry-after"]


@STREAMING
async def test_refused_connection_takes_the_backend_out(stream: bool) -> None:
    """A refused connection escalates at once and marks the backend down until a probe finds it up again."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([BackendDown("connection refused")])
        got = await tiers.answer(stream=stream)
        assert got.attempts == "a=backend_down;b=ok"
        await until(lambda: tiers.state("a") == "down")
        await until(lambda: tiers.state("a") == "up")
        assert (await tiers.answer(stream=stream)).attempts == "a=ok"


@STREAMING
async def test_first_token_deadline(stream: bool) -> None:
    """Silence is cut at the deadline, the silent worker is told to stop, and the tier is not asked again."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([asyncio.Event()])
        got = await tiers.answer(stream=stream)
        assert (got.text, got.attempts) == ("Hello world.", "a=first_token_deadline;b=ok")
        await until(lambda: tiers.a.cancelled == 1)
        assert len(tiers.a.asks) == 1


@STREAMING
async def test_a_role_alone_is_no_output(stream: bool) -> None:
    """A backend that says its role and then nothing has not begun to answer."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([chunk("", role="assistant"), asyncio.Event()])
        got = await tiers.answer(stream=stream)
        assert got.attempts == "a=first_token_deadline;b=ok"
        assert got.models == {"second"}


@STREAMING
@pytest.mark.parametrize("delta", [{"reasoning_content": "hm"}, {"tool_calls": [{"index": 0, "id": "x"}]}])
async def test_reasoning_and_tool_calls_are_output(stream: bool, delta: dict[str, Any]) -> None:
    """The first-token clock is stopped by reasoning and by tool calls as well as by content."""
    async with Tiers() as tiers:
        # With total at 5 s and idle at 400 ms, 350 ms more of silence is only fatal to the first-token clock.
        tiers.a.scripts.append([chunk(role="assistant", **delta), 0.35, chunk("done", finish="stop")])
        assert (await tiers.answer(stream=stream)).attempts == "a=ok"


@STREAMING
async def test_a_long_healthy_answer_is_not_cut(stream: bool) -> None:
    """An answer that takes many times the first-token deadline arrives whole while tokens keep coming."""
    async with Tiers() as tiers:
        script: list[Step] = [chunk("", role="assistant")]
        for _ in range(6):
            script += [chunk("x"), 0.2]
        tiers.a.scripts.append([*script, chunk(finish="stop")])
        got = await tiers.answer(stream=stream)
        assert (got.text, got.attempts) == ("xxxxxx", "a=ok")


@STREAMING
@pytest.mark.parametrize(
    "fault", [BackendFault("HTTP 500"), StreamBroken("reset"), BackendFault("error in a 200")]
)
async def test_a_fault_is_retried_once(stream: bool, fault: TierfallError) -> None:
    """A fault gets one more try on the same tier; a second one goes to the next tier."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([fault])
        assert (await tiers.answer(stream=stream)).attempts == f"a={fault.slug};a=ok"
        tiers.a.scripts.extend([[fault], [fault]])
        assert (await tiers.answer(stream=stream)).attempts == f"a={fault.slug};a={fault.slug};b=ok"


@STREAMING
async def test_a_late_fault_is_not_retried(stream: bool) -> None:
    """The retry shares the tier's deadline: a fault after it goes straight to the next tier."""
    async with Tiers() as tiers:
        tiers.b.health = Health("down", "so that the deadline does not cut")
        await until(lambda: tiers.state("b") == "down")
        tiers.a.scripts.append([0.4, BackendFault("HTTP 500")])
        got = await tiers.answer(stream=stream)
        assert got.attempts == "a=backend_fault;b=backend_down"


@STREAMING
async def test_an_answer_without_finish_reason_is_broken(stream: bool) -> None:
    """A backend that closes in good order without any output or finish_reason has failed."""
    async with Tiers() as tiers:
        tiers.a.scripts.extend([[chunk("", role="assistant")], []])
        assert (await tiers.answer(stream=stream)).attempts == "a=stream_broken;a=stream_broken;b=ok"


@STREAMING
async def test_rate_limit_that_fits_is_waited_out(stream: bool) -> None:
    """A 429 whose Retry-After fits the deadline is waited out on the same tier."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([RateLimited("slow down", retry_after=0.25)])
        assert (await tiers.answer(stream=stream, model="three")).attempts == "a=rate_limited;a=ok"


@STREAMING
@pytest.mark.parametrize("retry_after", [None, 60.0])
async def test_rate_limit_that_does_not_fit_escalates(stream: bool, retry_after: float | None) -> None:
    """A 429 with a long Retry-After, or none, goes to the next tier at once."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([RateLimited("slow down", retry_after=retry_after)])
        assert (await tiers.answer(stream=stream, model="three")).attempts == "a=rate_limited;b=ok"


@STREAMING
async def test_rate_limit_for_ever_is_not_hammered(stream: bool) -> None:
    """A provider that answers 429 for ever gets a handful of tries, not a flood."""
    async with Tiers() as tiers:
        tiers.a.scripts.extend([[RateLimited("slow down", retry_after=0.0)]] * 50)
        got = await tiers.answer(stream=stream, model="three")
        assert got.attempts.endswith("b=ok")
        assert len(tiers.a.asks) <= 4


@STREAMING
@pytest.mark.parametrize("error", [ProviderRefused("401 from the provider"), QuotaExhausted("spent")])
async def test_our_own_misconfiguration_escalates(stream: bool, error: TierfallError) -> None:
    """A provider's 401, 403, 404 or spent quota is not the caller's fault: the next tier answers."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([error])
        assert (await tiers.answer(stream=stream)).attempts == f"a={error.slug};b=ok"


@STREAMING
async def test_context_length_goes_to_a_larger_window(stream: bool) -> None:
    """A prompt that is too long skips tiers that are no larger."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([ContextLengthExceeded("too long")])
        got = await tiers.answer(stream=stream, model="three")
        assert (got.attempts, got.models) == ("a=context_length_exceeded;c=ok", {"large"})
        assert not tiers.b.asks


@STREAMING
async def test_context_length_without_a_larger_window(stream: bool) -> None:
    """With no larger tier the provider's own error is returned, and no smaller tier is tried."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([ContextLengthExceeded("maximum context length is 100", param="messages")])
        got = await tiers.answer(stream=stream)
        assert (got.status, got.error["code"]) == (400, "context_length_exceeded")
        assert got.error["message"] == "maximum context length is 100"
        assert not tiers.b.asks


@STREAMING
@pytest.mark.parametrize(
    "error", [ContentFiltered("no"), InvalidRequest("temperature is 9", param="temperature")]
)
async def test_the_clients_own_errors_are_returned(stream: bool, error: TierfallError) -> None:
    """What is wrong with the request stays wrong on every tier: it is returned as it is."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([error])
        got = await tiers.answer(stream=stream)
        assert (got.status, got.error["message"], got.error["param"]) == (400, error.message, error.param)
        assert not tiers.b.asks


@STREAMING
async def test_what_one_tier_cannot_do_another_may(stream: bool) -> None:
    """A parameter that a backend cannot honour goes to the next tier; with none, a 400 names it."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([UnsupportedByTier("no n here", param="n")])
        assert (await tiers.answer(stream=stream)).attempts == "a=unsupported_by_tier;b=ok"
        tiers.a.scripts.append([UnsupportedByTier("no n here", param="n")])
        got = await tiers.answer(stream=stream, model="alone")
        assert (got.status, got.error["param"], got.error["code"]) == (400, "n", "unsupported_parameter")


@STREAMING
async def test_the_last_live_tier_is_not_cut(stream: bool) -> None:
    """Nobody is left to do better: a late first token is still an answer."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([0.5, *says("late")])
        got = await tiers.answer(stream=stream, model="alone")
        assert (got.text, got.attempts) == ("late", "a=ok")


@STREAMING
async def test_the_last_live_tier_ends_at_its_total(stream: bool) -> None:
    """The last tier's silence ends with its total, in an error that tells the story."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([asyncio.Event()])
        got = await tiers.answer(stream=stream, model="alone")
        assert (got.status, got.error["code"], got.attempts) == (504, "total_deadline", "a=total_deadline")
        await until(lambda: tiers.a.cancelled == 1)


@STREAMING
async def test_the_budget_bounds_the_whole_ladder(stream: bool) -> None:
    """A request never takes longer than its budget, whatever its tiers are doing."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([asyncio.Event()])
        got = await tiers.answer(stream=stream, model="hurried")
        assert (got.status, got.error["code"]) == (504, "budget_spent")
        await until(lambda: tiers.a.cancelled == 1)


@STREAMING
async def test_loading_runs_its_own_clock(stream: bool) -> None:
    """A cold model that says it is loading gets the load deadline; one that says nothing does not."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([Progress("loading"), 0.4, *says("warm")])
        assert (await tiers.answer(stream=stream, model="loads")).attempts == "a=ok"
        tiers.a.scripts.append([0.4, *says("warm")])
        assert (await tiers.answer(stream=stream, model="loads")).attempts == "a=first_token_deadline;b=ok"


async def test_a_cut_stream_never_says_it_succeeded() -> None:
    """After the first output a failure is an error frame: no [DONE], no finish_reason."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([chunk("Hel", role="assistant"), StreamBroken("reset")])
        got = await tiers.answer(stream=True, model="strict")
        assert (got.status, got.text, got.done) == (200, "Hel", False)
        assert got.error["code"] == "stream_broken"
        assert all(choice["finish_reason"] is None for e in got.events for choice in e.get("choices", ()))


async def test_a_stalled_stream_ends_at_the_idle_deadline() -> None:
    """Between outputs the idle clock runs by itself."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([chunk("Hel", role="assistant"), asyncio.Event()])
        got = await tiers.answer(stream=True, model="strict")
        assert (got.error["code"], got.done) == ("idle_deadline", False)
        await until(lambda: tiers.a.cancelled == 1)


async def test_a_broken_whole_answer_escalates_even_after_output() -> None:
    """A client that does not stream has seen nothing yet: another tier may still answer it."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([chunk("Hel", role="assistant"), asyncio.Event()])
        got = await tiers.answer(stream=False)
        assert (got.text, got.attempts) == ("Hello world.", "a=idle_deadline;b=ok")


@STREAMING
async def test_the_last_error_tells_the_story(stream: bool) -> None:
    """Nowhere left to go: one error, the most telling attempt's status, every tier's reason in it."""
    async with Tiers() as tiers:
        await tiers.stop_worker("a-0")
        tiers.b.scripts.append([RateLimited("provider says slow down", retry_after=7.0)])
        got = await tiers.answer(stream=stream)
        assert (got.status, got.error["code"], got.headers["retry-after"]) == (
            429,
            "rate_limit_exceeded",
            "7",
        )
        assert "a: no worker serves tier 'a'" in got.error["message"]
        assert "b: provider says slow down" in got.error["message"]
        assert got.attempts == "a=no_workers;b=rate_limited"


@STREAMING
async def test_all_full_escalates_at_once(stream: bool) -> None:
    """Where the model does not say wait, a full tier is passed by."""
    async with Tiers() as tiers:
        release = asyncio.Event()
        tiers.a.scripts.extend([[release, *says("one")], [release, *says("two")]])
        held = [asyncio.create_task(tiers.chat(model="alone", stream=stream)) for _ in range(2)]
        await until(lambda: tiers.a.running == 2)
        assert (await tiers.answer(stream=stream)).attempts == "a=tier_busy;b=ok"
        release.set()
        assert [(await task).status_code for task in held] == [200, 200]


@STREAMING
async def test_a_full_tier_is_waited_for(stream: bool) -> None:
    """Where the model says wait, a request stands in line and takes the first slot that frees."""
    async with Tiers() as tiers:
        release = asyncio.Event()
        tiers.a.scripts.extend([[release, *says("one")], [release, *says("two")]])
        held = [asyncio.create_task(tiers.chat(model="alone", stream=stream)) for _ in range(2)]
        await until(lambda: tiers.a.running == 2)
        waiting = asyncio.create_task(tiers.answer(stream=stream, model="waits"))
        await until(lambda: len(tiers.services.rooms["a"]) == 1)
        release.set()
        assert (await waiting).attempts == "a=ok"
        await asyncio.gather(*held)
        assert len(tiers.services.rooms["a"]) == 0


@STREAMING
async def test_more_requests_than_slots_are_all_answered(stream: bool) -> None:
    """On the last live tier a burst beyond its slots waits its turn; nobody is refused or lost."""
    async with Tiers() as tiers:
        got = await asyncio.gather(*(tiers.answer(stream=stream, model="alone") for _ in range(40)))
        assert [answer.status for answer in got] == [200] * 40
        assert tiers.services.switchboard.open_lines == 0
        assert len(tiers.a.asks) == 40


@STREAMING
async def test_killed_worker_with_requests_in_flight(stream: bool) -> None:
    """A worker that dies before its first output is noticed by its lease, and another tier answers."""
    async with Tiers() as tiers:
        tiers.a.scripts.append([asyncio.Event()])
        pending = asyncio.create_task(tiers.answer(stream=stream, model="three"))
        lines = tiers.services.switchboard._lines
        await until(lambda: any(line.accepted for line in lines.values()))
        await tiers.kill_worker("a-0")
        assert (await pending).attempts == "a=worker_lost;a=no_workers;b=ok"
