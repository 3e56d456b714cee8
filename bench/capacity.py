"""How long requests wait for a slot, next to one ideal queue in front of all slots.

Several workers with a few slots each serve one tier through the real ingress and a real nats-server; their
backends do nothing but take their time. Arrivals are Poisson, durations are lognormal (heavy-tailed), and
both are the same for the gateway and for the ideal: a central first-come-first-served queue that gives the
next request to any free slot without delay, which no system can beat without knowing the durations.

    python bench/capacity.py                    # 6 workers of 4 slots at 90 % load, 2500 requests
    python bench/capacity.py --load 0.7 --jobs 1000

Waiting is from a request's arrival at its client to the begin of the backend's work on it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import itertools
import json
import math
import random
import statistics
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.polling import until
from fakes.raw_client import RawAnswer, RawClient
from fakes.stack import Stack
from tierfall.worker import Health, Prefill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tierfall.worker import Ask

CONFIG: Final = """
tiers:
  pool: {{worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: {slots}, max_waiting: 100000}}
models:
  model: {{tier: pool, backend_model: model, when_full: wait(10m)}}
"""
MEAN_S: Final = 0.120
SIGMA: Final = 1.35
LONGEST_S: Final = 3.0
QUANTILES: Final = (50, 90, 99)


class Job(msgspec.Struct):
    """One request: when it comes, how long it takes, and how long it waited."""

    arrives_s: float
    takes_s: float
    waited_s: float = 0.0


class Sleeper:
    """A backend whose answer takes as long as the request says."""

    base_url = ""

    def __init__(self, jobs: Sequence[Job], began: asyncio.Future[float]) -> None:
        self._jobs = jobs
        self._began = began

    async def start(self) -> None:
        """Nothing to open."""

    async def probe(self) -> Health:
        """Always well."""
        return Health("up")

    async def chat(self, ask: Ask) -> AsyncIterator[bytes]:
        """Notes how long the request has waited, then works on it."""
        job = self._jobs[msgspec.json.decode(ask.body["job"], type=int)]
        job.waited_s = time.perf_counter() - self._began.result() - job.arrives_s
        await asyncio.sleep(job.takes_s)
        choice = {"index": 0, "delta": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        yield json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode()

    def prefill(self, ask: Ask, text: str) -> Prefill:
        """Never asked."""
        del ask, text
        return Prefill.UNSUPPORTED

    async def close(self) -> None:
        """Nothing to close."""


def draw(count: int, slots: int, load: float, seed: int) -> list[Job]:
    """As many jobs, arriving as a Poisson process that keeps the slots busy for ``load`` of the time."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    mu = math.log(MEAN_S) - SIGMA**2 / 2  # a lognormal variable's mean is exp(mu + sigma^2 / 2)
    durations = [min(LONGEST_S, dice.lognormvariate(mu, SIGMA)) for _ in range(count)]
    rate_per_s = load * slots / statistics.fmean(durations)
    arrivals = itertools.accumulate(dice.expovariate(rate_per_s) for _ in range(count))
    return [Job(*pair) for pair in zip(arrivals, durations, strict=True)]


def ideal(jobs: Sequence[Job], slots: int) -> list[float]:
    """Each job's waiting time in front of one central queue."""
    free_at = [0.0] * slots
    waits = []
    for job in jobs:
        begins = max(job.arrives_s, heapq.heappop(free_at))
        waits.append(begins - job.arrives_s)
        heapq.heappush(free_at, begins + job.takes_s)
    return waits


async def measure(jobs: Sequence[Job], workers: int, slots: int) -> list[float]:
    """Each job's waiting time in the gateway."""
    began: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    async with Stack(CONFIG.format(slots=slots), {"pool": Sleeper(jobs, began)}) as stack:
        for _ in range(workers - 1):
            await stack.add_worker("pool")
        await until(lambda: len(stack.services.roster.standing("pool").workers) == workers)
        async with contextlib.AsyncExitStack() as connections:
            clients = Clients(stack.url, connections)
            began.set_result(time.perf_counter() + 0.1)
            await asyncio.gather(*(_ask(clients, number, job, began) for number, job in enumerate(jobs)))
    return [job.waited_s for job in jobs]


class Clients:
    """Connections that are kept: a general HTTP client's pool would cost more than all that is measured."""

    def __init__(self, url: str, open_ones: contextlib.AsyncExitStack) -> None:
        self._url = url
        self._open_ones = open_ones
        self._idle: list[RawClient] = []

    async def chat(self, body: dict[str, Any]) -> RawAnswer:
        """One request, on an idle connection if there is one."""
        client = self._idle.pop() if self._idle else None
        if client is None:
            client = await self._open_ones.enter_async_context(RawClient(self._url))
        await client.chat(body)
        answer = await client.answer()
        self._idle.append(client)
        return answer


async def _ask(clients: Clients, number: int, job: Job, began: asyncio.Future[float]) -> None:
    await asyncio.sleep(max(0.0, began.result() + job.arrives_s - time.perf_counter()))
    body: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "x"}], "job": number}
    answer = await clients.chat(body)
    if answer.status != HTTPStatus.OK:
        raise SystemExit(f"request {number} failed: {answer.body.decode()}")


def say(line: str) -> None:
    """One line of the result."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def show(name: str, waits: Sequence[float]) -> dict[int, float]:
    """Prints one line and returns the quantiles, in ms."""
    cuts = statistics.quantiles(waits, n=100)
    found = {q: cuts[q - 1] * 1000 for q in QUANTILES}
    columns = "  ".join(f"p{q} {found[q]:7.1f}" for q in QUANTILES)
    mean = statistics.fmean(waits) * 1000
    say(f"{name:8}  {columns}  mean {mean:7.1f}  most {max(waits) * 1000:7.1f}  (ms)")
    return found


def main() -> None:
    """Draws the jobs, runs both, prints both and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--slots", type=int, default=4, help="of each worker")
    parser.add_argument("--load", type=float, default=0.9, help="share of the time that slots are busy")
    parser.add_argument("--jobs", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    slots = asked.workers * asked.slots
    jobs = draw(asked.jobs, slots, asked.load, asked.seed)
    mean_ms = statistics.fmean(job.takes_s for job in jobs) * 1000
    say(
        f"{asked.jobs} jobs of {mean_ms:.0f} ms on average over {jobs[-1].arrives_s:.1f} s, "
        f"{asked.workers} workers with {asked.slots} slots, load {asked.load:.0%}, seed {asked.seed}"
    )
    best = show("ideal", ideal(jobs, slots))
    real = show("tierfall", uvloop.run(measure(jobs, asked.workers, asked.slots)))
    ratios = "  ".join(f"p{q} {real[q] / best[q]:7.2f}" if best[q] else f"p{q}       -" for q in QUANTILES)
    say(f"{'ratio':8}  {ratios}")


if __name__ == "__main__":
    main()
