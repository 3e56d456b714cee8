"""The load generator, a process of its own: reads a :class:`Load` as JSON, prints a report as JSON.

``echo '{"kind": "unary", "ports": [4000], "size": 32, "seconds": 5}' | python -m bench.load``
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec
import uvloop

from bench.backend import AT_ONCE, PACED, TOKENS_PER_S
from bench.client import Asker, Client, Reader, request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOST: Final = "127.0.0.1"
RAMP_S: Final = 1.0
"""Over which the streams begin, evenly: real ones do not all begin in one moment."""
STALL_S: Final = 0.25
PATIENCE: Final = 4
"""Streams that take that many times what they should are cut off and count as broken."""

AnyClient = TypeVar("AnyClient", bound=Client)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send.

    Attributes:
        kind: ``unary``: as many connections as ``size``, each asks again once it is answered.
            ``stream``: as many streams as ``size``, each once.
        ports: Where to, in turn.
        size: How many at a time.
        seconds: How long connections ask, or how long each stream's answer takes (more than 1 s).
        key: The client key.
        model: The model to ask for in unary requests.
        prompt_bytes: How long the prompt is.
    """

    kind: Literal["unary", "stream"]
    ports: tuple[int, ...]
    size: int
    seconds: float
    key: str = ""
    model: str = AT_ONCE
    prompt_bytes: int = 64


class UnaryReport(msgspec.Struct, frozen=True, kw_only=True, tag="unary"):
    """What came of unary requests; times in ms."""

    requests: int
    failures: tuple[str, ...]
    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float


class StreamReport(msgspec.Struct, frozen=True, kw_only=True, tag="stream"):
    """What came of streams; times in ms. Gaps are between reads that bring tokens."""

    streams: int
    failures: tuple[str, ...]
    tokens: int
    per_s: float
    """Tokens while all streams run."""
    first_p50_ms: float
    first_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    gap_max_ms: float
    steady: int
    """Whole streams without a gap above 250 ms."""


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the sorted values lies; 0 when there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def _body(load: Load) -> bytes:
    prompt = ("word " * (load.prompt_bytes // 5 + 1))[: load.prompt_bytes]
    body: dict[str, Any] = {"model": load.model, "messages": [{"role": "user", "content": prompt}]}
    if load.kind == "stream":
        tokens = round(load.seconds * TOKENS_PER_S)
        body |= {"model": PACED, "stream": True, "max_tokens": tokens}
    return msgspec.json.encode(body)


async def _connect(load: Load, client: Callable[[bytes], AnyClient]) -> list[AnyClient]:
    """All connections, before anything is asked."""
    body = _body(load)
    clients = []
    for _, port in zip(range(load.size), itertools.cycle(load.ports), strict=False):
        request = request_bytes(f"{HOST}:{port}", load.key, body)
        _, made = await asyncio.get_running_loop().create_connection(partial(client, request), HOST, port)
        clients.append(made)
    return clients


async def unary(load: Load) -> UnaryReport:
    """Closed loop: no connection has more than one request under way."""
    ends_at = float("inf")
    clients = await _connect(load, lambda request: Asker(request, lambda: time.perf_counter() < ends_at))
    began = time.perf_counter()
    ends_at = began + load.seconds
    for client in clients:
        client.send()
    problems = [problem for problem in await _ended(clients, load.seconds * PATIENCE) if problem]
    took = time.perf_counter() - began
    latencies = sorted(latency * 1000 for client in clients for latency in client.latencies)
    refusals = sum(client.refusals for client in clients)
    if refusals:
        problems.append(f"{refusals} answers with another status than 200")
    return UnaryReport(
        requests=len(latencies),
        failures=tuple(problems),
        per_s=len(latencies) / took,
        p50_ms=quantile(latencies, 0.5),
        p99_ms=quantile(latencies, 0.99),
        max_ms=quantile(latencies, 1),
        mean_ms=statistics.fmean(latencies) if latencies else 0.0,
    )


async def stream(load: Load) -> StreamReport:
    """Every stream once, beginning one after the other over a second."""
    clients = await _connect(load, Reader)
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    for number, client in enumerate(clients):
        loop.call_at(loop.time() + RAMP_S * number / load.size, client.send)
    problems = await _ended(clients, RAMP_S + load.seconds * PATIENCE)
    arrivals = [client.arrivals for client in clients]
    gaps = [_gaps(each) for each in arrivals]
    pooled = sorted(gap * 1000 for each in gaps for gap in each)
    firsts = sorted((client.arrivals[0] - client.sent) * 1000 for client in clients if client.arrivals)
    full_s = load.seconds - RAMP_S
    while_full = sum(began + RAMP_S <= at < began + load.seconds for each in arrivals for at in each)
    whole = [not problem for problem in problems]
    return StreamReport(
        streams=load.size,
        failures=tuple(problem for problem in problems if problem),
        tokens=sum(map(len, arrivals)),
        per_s=while_full / full_s,
        first_p50_ms=quantile(firsts, 0.5),
        first_p99_ms=quantile(firsts, 0.99),
        gap_p50_ms=quantile(pooled, 0.5),
        gap_p99_ms=quantile(pooled, 0.99),
        gap_max_ms=quantile(pooled, 1),
        steady=sum(fine and max(each, default=0) <= STALL_S for fine, each in zip(whole, gaps, strict=True)),
    )


def _gaps(arrivals: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(arrivals) if later > earlier]


async def _ended(clients: Sequence[Client], within_s: float) -> list[str]:
    """What went wrong with each client; empty where nothing did."""
    await asyncio.wait([client.done for client in clients], timeout=within_s)
    for client in clients:
        client.end("cut off after its time")
    return [client.done.result() for client in clients]


async def main() -> None:
    """Reads the load, sends it, prints what came of it."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    gc.freeze()
    gc.disable()  # its pauses would be measured as gaps
    report = await (unary(load) if load.kind == "unary" else stream(load))
    sys.stdout.buffer.write(msgspec.json.encode(report))


if __name__ == "__main__":
    uvloop.run(main())
