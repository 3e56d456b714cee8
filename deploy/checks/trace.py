"""Sends a chat request to a running gateway, and looks at its trace in a running Jaeger.

    python3 -m deploy.checks.trace --key "$TIERFALL_KEY" --model vllm-qwen

Prints the tree of spans and what is wrong with it; the exit status is 0 when nothing is. Needs no package.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from typing import TYPE_CHECKING, Final

from deploy.checks import shape, spans, web

if TYPE_CHECKING:
    from collections.abc import Sequence

ARRIVES_S: Final = 30.0
"""Until all processes have sent their spans: OpenTelemetry's batches leave every 5 s."""
POLL_S: Final = 0.5
_SUMMARY: Final = "Sends a chat request to a running gateway, and looks at its trace in a running Jaeger."


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; the exit status is 0 (as it should be), 1 (it is not) or 2 (nobody to ask)."""
    options = _options(arguments)
    trace_id = secrets.token_hex(16)
    try:
        status, attempts = _chat(options, trace_id)
        found, wrong = _trace(options.jaeger, trace_id, attempts, status, options.wait)
    except web.Unreachable as error:
        print(f"nobody to ask: {error}", file=sys.stderr)
        return 2
    print(f"{options.model}: {status}, {attempts or 'no attempt'}, trace {trace_id}")
    for top in found:
        print("\n".join(spans.drawn(top)))
    if not options.any and ";" not in attempts:
        wrong.append(f"nothing escalated: ask for a model whose first tier is away, not {options.model!r}")
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m deploy.checks.trace", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--gateway", default="http://127.0.0.1:4000", help="default: %(default)s")
    parser.add_argument("--jaeger", default="http://127.0.0.1:16686", help="default: %(default)s")
    parser.add_argument("--key", default=os.environ.get("TIERFALL_KEY", ""), help="default: $TIERFALL_KEY")
    parser.add_argument("--model", default="vllm-qwen", help="whose first tier is away (%(default)s)")
    parser.add_argument("--any", action="store_true", help="be content with a request that did not escalate")
    parser.add_argument("--wait", type=float, default=ARRIVES_S, help="seconds until all spans must be there")
    return parser.parse_args(arguments)


def _chat(options: argparse.Namespace, trace_id: str) -> tuple[int, str]:
    """Status and attempts of one short request, whose caller traces."""
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    if options.key:
        headers["Authorization"] = f"Bearer {options.key}"
    body = {"model": options.model, "max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]}
    status, answered, _ = web.ask(f"{options.gateway.rstrip('/')}/v1/chat/completions", headers, body)
    return status, answered.get("x-tierfall-attempts") or ""


def _trace(
    jaeger: str, trace_id: str, attempts: str, status: int, wait_s: float
) -> tuple[list[spans.Span], list[str]]:
    """The trace as it stands when nothing is wrong with it any longer, or when the time is over."""
    end = time.monotonic() + wait_s
    while True:
        _, _, answer = web.ask(f"{jaeger.rstrip('/')}/api/traces/{trace_id}")
        found = spans.roots(answer)
        wrong = shape.faults(found, attempts, status) if found else [_nothing(wait_s)]
        if not wrong or time.monotonic() > end:
            return found, wrong
        time.sleep(POLL_S)


def _nothing(wait_s: float) -> str:
    return (
        f"Jaeger has no such trace after {wait_s:g} s. Do the services have OTEL_EXPORTER_OTLP_ENDPOINT, and "
        "no OTEL_TRACES_SAMPLER that drops it?"
    )


if __name__ == "__main__":
    sys.exit(main())
