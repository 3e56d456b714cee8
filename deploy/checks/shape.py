"""What the trace of a chat request must look like, as docs/observability.md promises it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploy.checks.spans import Span

ROOT: Final = "POST /v1/chat/completions"
INGRESS: Final = "tierfall-ingress"
WORKERS: Final = "tierfall-worker-"
OK: Final = "ok"
NO_FAULT: Final = frozenset({OK, "client_gone", "budget_spent"})
"""Outcomes with which an attempt's span is no error."""
ASKED: Final = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
ANSWERED: Final = (
    "gen_ai.response.id",
    "gen_ai.response.finish_reasons",
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
)
CALLED: Final = ("http.request.method", "server.address", "server.port")
CLOCK_US: Final = 1000
"""Jaeger rounds to microseconds; two attempts of one process may seem to overlap by less than this."""


def faults(tops: Sequence[Span], attempts: str, status: int) -> list[str]:
    """What is wrong with a trace, in words; nothing when it is whole.

    Args:
        tops: Its spans without a parent.
        attempts: The answer's ``x-tierfall-attempts``.
        status: The answer's HTTP status.
    """
    if len(tops) != 1:
        names = ", ".join(f"{span.service} {span.name}" for span in tops)
        return [f"{len(tops)} spans have no parent in the trace, not one: {names}"]
    return [*_request(tops[0], attempts, status), *_attempts(tops[0], attempts)]


def _request(root: Span, attempts: str, status: int) -> Iterator[str]:
    if (root.service, root.kind, root.name) != (INGRESS, "server", ROOT):
        yield f"the root is {root.service} [{root.kind}] {root.name}, not {INGRESS} [server] {ROOT}"
    for name, expected in (("http.response.status_code", status), ("tierfall.attempts", attempts)):
        if root.attributes.get(name) != expected:
            yield f"the root's {name} is {root.attributes.get(name)!r}; the client was told {expected!r}"


def _attempts(root: Span, attempts: str) -> Iterator[str]:
    told = [tuple(one.split("=", 1)) for one in attempts.split(";") if one]
    seen = [(span.attributes.get("tierfall.tier"), span.outcome) for span in root.children]
    if seen != told:
        yield f"below the root are {seen}; the client was told of {told}"
    for number, span in enumerate(root.children, 1):
        where = f"attempt {number} ({span.attributes.get('tierfall.tier')})"
        if (span.service, span.kind) != (INGRESS, "client"):
            yield f"{where} is {span.service} [{span.kind}], not {INGRESS} [client]"
        if span.failed != (span.outcome not in NO_FAULT):
            yield f"{where} ended with {span.outcome}, and its status is{' ' if span.failed else ' no '}error"
        yield from _held(span, where)
    for before, after in pairwise(root.children):
        if before.start_us + before.took_us > after.start_us + CLOCK_US:
            yield f"{after.name} began before {before.name} had ended"


def _held(attempt: Span, where: str) -> Iterator[str]:
    """The worker's part of an attempt that a worker accepted; nothing is below one that nobody took."""
    if "accepted" not in attempt.events:
        if attempt.outcome == OK:
            yield f"{where} was answered, and has no event `accepted`"
        return
    if len(attempt.children) != 1:
        yield f"{where} was accepted, and has {len(attempt.children)} spans below it, not its worker's one"
    for span in attempt.children:
        if not span.service.startswith(WORKERS) or span.kind != "server":
            yield f"below {where} is {span.service} [{span.kind}], not {WORKERS}* [server]"
        yield from _lacks(span, [*ASKED, *(ANSWERED if attempt.outcome == OK else ())], where)
        if attempt.outcome == OK and not span.children:
            yield f"the worker's span of {where} has no call of the backend below it"
        for call in span.children:
            if call.kind != "client":
                yield f"below the worker's span of {where} is {call.name} [{call.kind}], not a client's"
            yield from _lacks(call, CALLED, where)


def _lacks(span: Span, needed: Sequence[str], where: str) -> Iterator[str]:
    if missing := [name for name in needed if name not in span.attributes]:
        yield f"{span.name} below {where} lacks {', '.join(missing)}"
