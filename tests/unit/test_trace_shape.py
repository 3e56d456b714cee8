"""The check of a trace's shape: content with a good one, and never with one that tells another story."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

import pytest

from deploy.checks import shape, spans

if TYPE_CHECKING:
    from collections.abc import Callable

ATTEMPTS: Final = "a=first_token_deadline;b=ok"
GENAI: Final[dict[str, Any]] = {
    "span.kind": "server",
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "ollama",
    "gen_ai.request.model": "m",
    "gen_ai.response.id": "chatcmpl-1",
    "gen_ai.response.finish_reasons": '["stop"]',
    "gen_ai.response.time_to_first_chunk": 0.1,
    "gen_ai.usage.input_tokens": 1,
    "gen_ai.usage.output_tokens": 2,
    "tierfall.outcome": "ok",
}
CALL: Final = {
    "span.kind": "client",
    "http.request.method": "POST",
    "server.address": "127.0.0.1",
    "server.port": 1,
}


def told(
    name: str, below: str, service: str, tags: dict[str, Any], *, start: int, events: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A span of 100 ms as Jaeger tells of it, whose id is its name and whose kind is among its tags."""
    return {
        "spanID": name,
        "operationName": name,
        "references": [{"refType": "CHILD_OF", "spanID": below}],
        "startTime": start,
        "duration": 100_000,
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
        "logs": [
            {"timestamp": at, "fields": [{"key": "event", "value": event}]} for at, event in enumerate(events)
        ],
        "processID": service,
    }


def attempt(tier: str, outcome: str) -> dict[str, Any]:
    """An attempt's attributes."""
    failed = {} if outcome == "ok" else {"error": True}
    return {"span.kind": "client", "tierfall.tier": tier, "tierfall.outcome": outcome, **failed}


@pytest.fixture
def trace() -> dict[str, Any]:
    """A request that tier a let wait too long and tier b answered."""
    request = {"span.kind": "server", "http.response.status_code": 200, "tierfall.attempts": ATTEMPTS}
    held = {name: GENAI[name] for name in ("span.kind", *shape.ASKED)} | {"tierfall.outcome": "cancelled"}
    late, good = attempt("a", "first_token_deadline"), attempt("b", "ok")
    told_all = [
        told(shape.ROOT, "the caller's", "p0", request, start=0),
        told("chat a", shape.ROOT, "p0", late, start=0, events=("accepted",)),
        told("chat m-a", "chat a", "p1", held, start=1),
        told("POST a", "chat m-a", "p1", CALL, start=2),
        told("chat b", shape.ROOT, "p0", good, start=100_000, events=("accepted", "first_output")),
        told("chat m-b", "chat b", "p2", GENAI, start=100_001),
        told("POST b", "chat m-b", "p2", CALL, start=100_002),
    ]
    names = {"p0": "tierfall-ingress", "p1": "tierfall-worker-vllm", "p2": "tierfall-worker-ollama"}
    processes = {process: {"serviceName": name} for process, name in names.items()}
    return {"data": [{"processes": processes, "spans": told_all}]}


def faults(trace: dict[str, Any]) -> list[str]:
    """What the check finds."""
    return shape.faults(spans.roots(trace), ATTEMPTS, 200)


def span(trace: dict[str, Any], name: str) -> dict[str, Any]:
    """One of its spans."""
    found: dict[str, Any] = next(one for one in trace["data"][0]["spans"] if one["spanID"] == name)
    return found


def without(name: str) -> Callable[[dict[str, Any]], None]:
    """Takes one span away."""

    def change(trace: dict[str, Any]) -> None:
        trace["data"][0]["spans"].remove(span(trace, name))

    return change


def with_tag(name: str, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Sets an attribute, or takes it away."""

    def change(trace: dict[str, Any]) -> None:
        tags = span(trace, name)["tags"]
        tags[:] = [tag for tag in tags if tag["key"] != key]
        if value is not None:
            tags.append({"key": key, "value": value})

    return change


def with_field(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets something else of a span."""

    def change(trace: dict[str, Any]) -> None:
        span(trace, name)[key] = value

    return change


def below(name: str, parent: str) -> Callable[[dict[str, Any]], None]:
    """Hangs a span below another one."""
    return with_field(name, "references", [{"refType": "CHILD_OF", "spanID": parent}])


def test_a_good_trace(trace: dict[str, Any]) -> None:
    """Nothing is wrong with the trace of the documents, and it is drawn as a tree."""
    assert faults(trace) == []
    (root,) = spans.roots(trace)
    assert list(spans.drawn(root)) == [
        "tierfall-ingress [server] POST /v1/chat/completions  100 ms",
        "  tierfall-ingress [client] chat a  100 ms  first_token_deadline  (accepted)",
        "    tierfall-worker-vllm [server] chat m-a  100 ms  cancelled",
        "      tierfall-worker-vllm [client] POST a  100 ms",
        "  tierfall-ingress [client] chat b  100 ms  ok  (accepted, first_output)",
        "    tierfall-worker-ollama [server] chat m-b  100 ms  ok",
        "      tierfall-worker-ollama [client] POST b  100 ms",
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(shape.ROOT), "2 spans have no parent"),
        (with_field(shape.ROOT, "processID", "p1"), "the root is tierfall-worker-vllm"),
        (with_tag(shape.ROOT, "http.response.status_code", 503), "the client was told 200"),
        (with_tag(shape.ROOT, "tierfall.attempts", "a=ok"), "the client was told 'a=first"),
        (without("chat b"), "spans have no parent"),
        (below("chat b", "chat a"), "below the root are"),
        (with_tag("chat a", "tierfall.outcome", "backend_down"), "below the root are"),
        (with_tag("chat a", "error", None), "its status is no error"),
        (with_tag("chat b", "error", value=True), "its status is error"),
        (with_tag("chat b", "span.kind", "internal"), "attempt 2 (b) is tierfall-ingress [internal]"),
        (with_field("chat b", "startTime", 90_000), "chat b began before chat a had ended"),
        (with_field("chat b", "logs", None), "no event `accepted`"),
        (below("chat m-a", "chat b"), "attempt 2 (b) was accepted, and has 2 spans"),
        (with_field("chat m-b", "processID", "p0"), "below attempt 2 (b) is tierfall-ingress"),
        (with_tag("chat m-a", "gen_ai.provider.name", None), "chat m-a below attempt 1 (a) lacks gen_ai.p"),
        (with_tag("chat m-b", "gen_ai.usage.output_tokens", None), "lacks gen_ai.usage.output_tokens"),
        (without("POST b"), "no call of the backend below it"),
        (with_tag("POST b", "span.kind", "server"), "not a client's"),
        (with_tag("POST a", "server.address", None), "POST a below attempt 1 (a) lacks server.address"),
    ],
)
def test_a_bad_trace(trace: dict[str, Any], change: Callable[[dict[str, Any]], None], says: str) -> None:
    """Whatever is missing or hangs in the wrong place is named."""
    bad = copy.deepcopy(trace)
    change(bad)
    assert any(says in line for line in faults(bad)), faults(bad)


def test_no_trace() -> None:
    """An answer of Jaeger without a trace has no spans."""
    assert spans.roots({"data": None, "errors": [{"code": 404, "msg": "trace not found"}]}) == []
