"""Every way in which a provider fails, and what a client of the gateway is to see of it.

Used by the tests, which hold the gateway to it, and by ``bench/faults.py``, which measures what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fakes import faults, torn
from fakes.behaviour import DONE, TEXT, Answer, error_body, event

if TYPE_CHECKING:
    from fakes.behaviour import Behaviour
    from fakes.fault_stack import FaultStack

LONG_S = 60.0
"""Longer than any deadline of the tests."""
WORDS = 10
"""Output chunks of a good answer."""
CONTEXT = error_body("This model's maximum context length is 100 tokens.", "BadRequestError", 400)
FILTERED = error_body("The prompt was filtered.", "invalid_request_error", "content_filter")
LOADING = error_body("Loading model", "unavailable_error", 503)
LIMITED = error_body("Rate limit reached", "rate_limit_error", 429)
PAGE = b"<html><body>Bad gateway</body></html>"
FAULT = event(error_body("EngineCore encountered an issue.", "InternalServerError", 500))

ONCE_MORE = r"first={0};first=ok"
TWICE = r"first={0};first={0};second=ok"
NEXT = r"first={0};second=ok"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row: what the first tier's provider does, and what the client gets.

    Attributes:
        name: For people.
        plays: The behaviours of the first requests; a good answer follows them.
        for_ever: The last of ``plays`` is repeated instead.
        refused: The provider does not listen at all.
        vanished: Not even a refusal comes back, as from a machine that is switched off.
        model: The model asked for.
        attempts: Pattern of ``x-tierfall-attempts``; a stream tells it when it begins.
        whole_attempts: Where it differs for a client that does not stream.
        code: The error's code, where an error is what the client is to get.
        status: Its HTTP status, or 200 for an error frame.
        fields: Further members of the request.
        text: The answer's, where one is to come.
    """

    name: str
    plays: tuple[Behaviour, ...] = ()
    for_ever: bool = False
    refused: bool = False
    vanished: bool = False
    model: str = "first"
    attempts: str = "first=ok"
    whole_attempts: str = ""
    code: str = ""
    status: int = 400
    fields: dict[str, Any] = field(default_factory=dict)
    text: str = TEXT

    async def set_up(self, stack: FaultStack) -> None:
        """Makes the first provider fail like this."""
        if self.refused:
            await stack.first.refuse()
        elif self.vanished:
            await stack.first.vanish()
        stack.first.plan(*self.plays)
        if self.for_ever:
            stack.first.default = self.plays[-1]


def retried(name: str, behaviour: Behaviour, slug: str = "backend_fault") -> list[Fault]:
    """A fault that deserves another try: once, and for ever."""
    return [
        Fault(name=f"{name}, once", plays=(behaviour,), attempts=ONCE_MORE.format(slug)),
        Fault(name=f"{name}, for ever", plays=(behaviour,), for_ever=True, attempts=TWICE.format(slug)),
    ]


def escalated(name: str, behaviour: Behaviour, slug: str) -> Fault:
    """A fault that sends the request on at once."""
    return Fault(name=name, plays=(behaviour,), for_ever=True, attempts=NEXT.format(slug))


def silent(name: str, behaviour: Behaviour) -> Fault:
    """Nothing comes: the first-token deadline ends it."""
    return Fault(
        name=name,
        plays=(behaviour,),
        for_ever=True,
        model="hasty",
        attempts=NEXT.format("first_token_deadline"),
    )


BEFORE_OUTPUT: tuple[Fault, ...] = (
    Fault(name="429, once", plays=(faults.Status(429),), attempts=NEXT.format("rate_limited")),
    escalated("429, for ever", faults.Status(429), "rate_limited"),
    Fault(
        name="429 with Retry-After: 1, once",
        plays=(faults.Status(429, retry_after=1),),
        attempts=ONCE_MORE.format("rate_limited"),
    ),
    Fault(
        name="429 with Retry-After: 0.3, for ever",
        plays=(faults.Status(429, retry_after=0.3),),
        for_ever=True,
        attempts="(first=rate_limited;){4}second=ok",
    ),
    escalated("429 with Retry-After: 60", faults.Status(429, retry_after=60), "rate_limited"),
    *retried("500", faults.Status(500)),
    *retried("502 with a web page", faults.Status(502, body=PAGE, content_type="text/html")),
    *retried("503", faults.Status(503, body=b"")),
    escalated("503 while the model loads", faults.Status(503, body=LOADING), "backend_down"),
    escalated("401", faults.Status(401), "provider_refused"),
    escalated("403", faults.Status(403), "provider_refused"),
    escalated("404", faults.Status(404), "provider_refused"),
    escalated("302", faults.Status(302, headers={"Location": "/elsewhere"}), "provider_refused"),
    escalated("a web page with status 200", faults.Raw(PAGE, "text/html"), "provider_refused"),
    Fault(name="connection refused", refused=True, attempts=NEXT.format("backend_down")),
    Fault(name="connection never made", vanished=True, attempts=NEXT.format("backend_down")),
    *retried("reset before the headers", faults.ResetBeforeHeaders()),
    Fault(
        name="reset after 0.2 s, then silence",
        plays=(faults.ResetBeforeHeaders(after_s=0.2), faults.Silence()),
        for_ever=True,
        model="hasty",
        attempts="(first=backend_fault;)?first=first_token_deadline;second=ok",  # the second try may be over
    ),
    *retried("closed before the headers", faults.CutBeforeHeaders()),
    *retried("no HTTP at all", torn.NoHttp()),
    silent("silence after accept", faults.Silence()),
    silent("headers, then silence", faults.HeadersThenSilence()),
    silent("comments, then silence", faults.CommentsThenSilence()),
    silent("role chunk, then silence", faults.RoleThenSilence()),
    silent("role and half an event, then silence", torn.StallMidEvent(0)),
    silent("first token too late", faults.slow_first_token(LONG_S)),
    *retried("headers of a 500, then silence", faults.HeadersThenSilence(500)),
    *retried("error frame first, then [DONE]", faults.ErrorFrame()),
    *retried("error frame first, without [DONE]", faults.ErrorFrame(then_done=False)),
    *retried("error frame after the role chunk", faults.ErrorFrame(0)),
    *retried("error as the JSON body of a 200", faults.ErrorIn200()),
    escalated("429 as the JSON body of a 200", faults.ErrorIn200(LIMITED), "rate_limited"),
    *retried("JSON body cut half way", faults.HalfBody(), "stream_broken"),
    *retried("first event is garbage", faults.Garbage(0), "stream_broken"),
    *retried("cut after the role chunk", faults.CutAfter(0), "stream_broken"),
    *retried("cut in the first event", faults.CutMidEvent(0), "stream_broken"),
    *retried("nothing at all", faults.Empty(), "stream_broken"),
    *retried("comments only", faults.Raw(b": working\n\n: working\n\n"), "stream_broken"),
    *retried("[DONE] only", faults.Raw(DONE), "stream_broken"),
    *retried("role chunk, then [DONE]", faults.DoneWithoutFinish(""), "stream_broken"),
    Fault(
        name="context too long, a larger tier follows",
        plays=(faults.Status(400, body=CONTEXT),),
        model="roomy",
        attempts=NEXT.format("context_length_exceeded"),
    ),
    Fault(
        name="context too long, no larger tier",
        plays=(faults.Status(400, body=CONTEXT),),
        attempts="first=context_length_exceeded",
        code="context_length_exceeded",
    ),
    Fault(
        name="content filter, as a 400",
        plays=(faults.Status(400, body=FILTERED),),
        attempts="first=content_filtered",
        code="content_filter",
    ),
    Fault(
        name="content filter, as an error frame",
        plays=(faults.ErrorFrame(body=FILTERED),),
        attempts="first=content_filtered",
        code="content_filter",
    ),
    Fault(
        name="content filter, as a frame with nothing but a code",
        plays=(faults.ErrorFrame(body={"error": {"message": "no", "code": "content_filter"}}),),
        attempts="first=content_filtered",
        code="content_filter",
    ),
)
"""Faults before the first real output: both kinds of client see the same."""


def broken(
    name: str, behaviour: Behaviour, slug: str = "stream_broken", first: str = "first=ok", **more: Any
) -> list[Fault]:
    """A stream that breaks after its first output, once and for ever.

    ``first`` is what a stream's head may tell: a reset can swallow what the client had not read.
    """
    return [
        Fault(
            name=f"{name}, once",
            plays=(behaviour,),
            attempts=first,
            whole_attempts=ONCE_MORE.format(slug),
            **more,
        ),
        Fault(
            name=f"{name}, for ever",
            plays=(behaviour,),
            for_ever=True,
            attempts=f"{first}|{TWICE.format(slug)}" if first != "first=ok" else first,
            whole_attempts=TWICE.format(slug),
            **more,
        ),
    ]


def stalled(name: str, behaviour: Behaviour) -> Fault:
    """Silence in mid-stream: the idle deadline ends it, and the tier is not asked again."""
    return Fault(
        name=name,
        plays=(behaviour,),
        for_ever=True,
        model="hasty",
        whole_attempts=NEXT.format("idle_deadline"),
    )


RESET = "(stream_broken|backend_fault)"
RESUMED: tuple[Fault, ...] = (
    *broken("cut in mid-stream", faults.CutAfter(3)),
    *broken("reset in mid-stream", faults.CutAfter(3, reset=True), RESET, f"(first={RESET};)?first=ok"),
    *broken("cut in the middle of an event", faults.CutMidEvent(3)),
    *broken("half an event, then a clean end", faults.CutMidEvent(3, clean=True)),
    *broken("cut before the finish_reason", faults.CutAfter(WORDS)),
    stalled("stall in mid-stream", faults.StallAfter(3)),
    stalled("stall in the middle of an event", torn.StallMidEvent(3)),
    *broken("garbage event in mid-stream", faults.Garbage(3)),
    *broken("garbage without a final newline", torn.TailAfter(3, b'data: {"choices":[{"del')),
    *broken("bad UTF-8 in mid-stream", faults.Garbage(3, garbage=b'data: {"x":"\xff\xfe"}\n\n')),
    *broken("an event that is no object", faults.Garbage(3, garbage=b"data: 17\n\n")),
    *broken("prose in the place of events", torn.TailAfter(3, b"Internal Server Error")),
    *broken("broken HTTP chunks in mid-stream", torn.BadChunking(3)),
    *broken("error frame in mid-stream, then [DONE]", faults.ErrorFrame(3), "backend_fault"),
    *broken(
        "error frame in mid-stream, without [DONE]", faults.ErrorFrame(3, then_done=False), "backend_fault"
    ),
    *broken("[DONE] without a finish_reason", faults.DoneWithoutFinish()),
    *broken("[DONE] in mid-stream", torn.TailAfter(3, DONE)),
    *broken("clean end in mid-stream", torn.TailAfter(3, b"\n")),
    Fault(
        name="429 as an error frame in mid-stream",
        plays=(faults.ErrorFrame(3, body=LIMITED),),
        whole_attempts=NEXT.format("rate_limited"),
    ),
)
"""Faults after the first output that another attempt makes good: one seamless answer."""


TOOL = faults.tool_call("look_up", '{"city": "Ulm"}')
ENDED: tuple[Fault, ...] = (
    Fault(
        name="n=2, cut between the two finish_reasons",
        plays=(faults.CutAfter(2 * WORDS, closing=1),),
        whole_attempts=ONCE_MORE.format("stream_broken"),
        code="stream_broken",
        status=200,
        fields={"n": 2},
    ),
    Fault(
        name="cut in a tool call",
        plays=(faults.CutAfter(1, TOOL),),
        whole_attempts=ONCE_MORE.format("stream_broken"),
        code="stream_broken",
        status=200,
    ),
    Fault(
        name="cut, on_stream_failure: error",
        plays=(faults.CutAfter(3),),
        model="strict",
        whole_attempts=ONCE_MORE.format("stream_broken"),
        code="stream_broken",
        status=200,
    ),
    Fault(
        name="content filter in mid-stream",
        plays=(faults.ErrorFrame(3, body=FILTERED),),
        whole_attempts="first=content_filtered",
        code="content_filter",
        status=200,
    ),
    Fault(
        name="slower than total allows",
        plays=(Answer(tokens_per_s=2),),
        model="brief",
        whole_attempts=NEXT.format("total_deadline"),
        code="total_deadline",
        status=200,
    ),
    Fault(
        name="stall with no other tier, for ever",
        plays=(faults.StallAfter(3),),
        for_ever=True,
        model="alone",
        whole_attempts="first=idle_deadline",
        code="idle_deadline",
        status=200,
    ),
)
"""Faults after the first output that nobody may or can make good: a stream ends in an error frame."""


UMLAUTS = "Grüße 🙂 aus Köln, 東京 und Ελλάδα!"
HARMLESS: tuple[Fault, ...] = (
    Fault(name="first token after 0.2 s", plays=(faults.slow_first_token(0.2),)),
    Fault(name="split at every byte", plays=(faults.SplitEvery(1, Answer(UMLAUTS)),), text=UMLAUTS),
    Fault(name="split at every third byte", plays=(faults.SplitEvery(3, Answer(UMLAUTS)),), text=UMLAUTS),
    Fault(name="no [DONE]", plays=(faults.NoDone(),)),
    Fault(name="no final newline", plays=(torn.NoFinalNewline(),)),
    Fault(name="no [DONE] and no final newline", plays=(torn.NoFinalNewline(Answer(done=False)),)),
    Fault(name="plain JSON to a streaming request", plays=(faults.IgnoresStream(),)),
    Fault(name="stays open after [DONE]", plays=(faults.DoneThenSilence(),)),
    Fault(
        name="stays open after the finish_reason",
        plays=(faults.DoneThenSilence(Answer(done=False)),),
    ),
    Fault(name="closes unannounced after [DONE]", plays=(faults.ClosesAfter(),)),
    Fault(name="cut after the finish_reason", plays=(faults.CutAfter(WORDS, closing=1),)),
    Fault(name="error frame after the finish_reason", plays=(torn.TailAfter(WORDS, FAULT, closing=1),)),
    Fault(name="garbage after the finish_reason", plays=(torn.TailAfter(WORDS, b"data: {", closing=1),)),
    Fault(name="finish_reason without content", plays=(Answer(""),), text=""),
    Fault(name="finish_reason content_filter", plays=(Answer("", finish="content_filter"),), text=""),
    Fault(name="no usage", plays=(Answer(usage=False),)),
)
"""Odd, but whole answers: they pass, from the first tier and at the first attempt."""
