"""The soak: mixed load on the whole gateway while providers, workers and NATS fail at random."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import httpx

from fakes.census import Census, Memory, census, memory
from fakes.load import Reading, read_chat
from fakes.polling import until
from fakes.raw_client import RawClient
from fakes.soak_provider import SoakProvider, prompt, text_for
from fakes.stack import Stack
from tierfall.upstream import http
from tierfall_worker_vllm.main import build

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

CONFIG: Final = """
tiers:
  a: {{worker: vllm, base_url: '{a}', max_in_flight: 4}}
  b: {{worker: vllm, base_url: '{b}', max_in_flight: 4}}
models:
  first:
    {{tier: a, backend_model: fake-model, deadlines: {deadlines}, fallbacks: [second], when_full: wait(1s)}}
  second: {{tier: b, backend_model: fake-model, deadlines: {deadlines}}}
  alone: {{tier: a, backend_model: fake-model, deadlines: {deadlines}}}
"""
DEADLINES: Final = "{first_token: 1s, idle: 1s, total: 8s, budget: 12s}"
MODELS: Final = ("first", "first", "first", "second", "alone")
WORKERS: Final = 2
CLIENTS: Final = 12
HANG_S: Final = 30.0
"""Longer than any budget: what is not over by then never will be."""
SLOW_PIECES: Final = 200
"""After so many pieces a slow reader hurries up, or its own pauses would look like a gateway that hangs."""
CALM_S: Final = (2.0, 5.0)
"""Between two disturbances."""
PAD_BYTES: Final = 1_500_000
"""Of a large body: above NATS's ``max_payload``."""
STREAM_SHARE: Final = 0.8
"""Of the clients that may do either."""
FAULT_SHARE: Final = 0.15
SETTLE_S: Final = 30.0
DISTRUST_S: Final = 1.0
"""For servers that close behind their answers. Shorter than it is, or one count would find the connections of
providers that are not trusted to keep any, and the other those of providers that are."""
WARM_UP_S: Final = 8.0
"""Of the same load, before the first count: what is loaded and cached late is no leak."""
RIGHT_STATUSES: Final = frozenset({429, 502, 503, 504})
"""What a well-formed request for a known model may end in."""
ERROR_KEYS: Final = {"message", "type", "param", "code"}


@dataclass
class Tally:
    """How requests ended, by kind of client; and each one that ended wrongly."""

    ends: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """All of them."""
        return self.ends.total()

    @property
    def answers(self) -> int:
        """Those with a right answer."""
        return sum(count for kind, count in self.ends.items() if kind.endswith(" answered"))

    def lines(self) -> list[str]:
        """The counts, for people."""
        return [f"{count:7,}  {kind}" for kind, count in sorted((self.ends + self.disturbances).items())]


@dataclass
class Question:
    """One request and its right answer."""

    body: dict[str, Any]
    text: str
    kind: str


class Tracebacks(logging.Handler):
    """Reports each logged exception."""

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """One record; without an exception it is an expected fault's."""
        if record.exc_info and record.exc_info[0] is not None:
            text = logging.Formatter().formatException(record.exc_info)
            self._report(f"traceback: {record.getMessage()}\n{text}")


class Soak:
    """Runs the load for some time.

    Args:
        seed: Decides everything that is random, but for what depends on time.
    """

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)  # noqa: S311 - no secret
        self._numbers = itertools.count()
        self.tally = Tally()
        self.before: tuple[Census, Memory] | None = None
        self.after: tuple[Census, Memory] | None = None

    async def run(self, seconds: float) -> list[str]:
        """Starts the gateway, warms it up, counts, soaks it, counts again.

        Returns:
            What is there at the end that was not there at the beginning; empty when all is as it was.
        """
        first = SoakProvider(self._source, FAULT_SHARE, owned_by="vllm")
        second = SoakProvider(self._source, FAULT_SHARE)
        self._providers = (first, second)
        tracemalloc.start()
        try:
            with self._tracebacks_count(), mock.patch.object(http, "DISTRUST_S", DISTRUST_S):
                async with first, second:
                    config = CONFIG.format(a=first.base_url, b=second.base_url, deadlines=DEADLINES)
                    async with Stack(config, builds={"vllm": build}) as self._stack:
                        return await self._soak(seconds)
        finally:
            tracemalloc.stop()

    @contextlib.contextmanager
    def _tracebacks_count(self) -> Iterator[None]:
        """A logged traceback is a defect, whatever the client got; all else that is logged is not kept."""
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        root.handlers[:] = [Tracebacks(self.tally.wrong.append)]
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)

    async def _soak(self, seconds: float) -> list[str]:
        await self._restore()
        await self._load_for(WARM_UP_S)
        self.before = await self._settled(None)
        self.tally = Tally()
        await self._load_for(seconds)
        self.after = await self._settled(self.before[0])
        return self.after[0].excess(self.before[0]) + self.after[1].growth(self.before[1])

    async def _load_for(self, seconds: float) -> None:
        stop = asyncio.Event()
        async with self._new_client() as self._client, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._be_client(stop))
            group.create_task(self._disturb(stop))
            await asyncio.sleep(seconds)
            stop.set()
        await self._restore()

    def _new_client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=4)
        return httpx.AsyncClient(base_url=self._stack.url, timeout=HANG_S, limits=limits, trust_env=False)

    async def _settled(self, goal: Census | None) -> tuple[Census, Memory]:
        """Waits until all is over, or for so long that it never will be."""
        for provider in self._providers:
            provider.prune()

        def calm() -> bool:
            now = census(self._stack)
            still = not (now.lines or now.jobs or now.waiting)
            return still and (goal is None or not now.excess(goal))

        try:
            await until(calm, timeout_s=SETTLE_S)
        except TimeoutError:
            pass  # the count tells what stays
        else:
            if goal is None:  # idle connections to providers are closed after their keep-alive
                await self._until_steady()
        return census(self._stack), memory()

    async def _until_steady(self) -> None:
        seen, same = census(self._stack), 0
        while same < 60:
            await asyncio.sleep(0.1)
            now = census(self._stack)
            same = same + 1 if now == seen else 0
            seen = now

    # -- clients

    async def _be_client(self, stop: asyncio.Event) -> None:
        ways = (self._stream, self._stream, self._whole, self._vanish, self._read_slowly, self._send_much)
        while not stop.is_set():
            way = self._source.choice(ways)
            question = self._question(
                way.__name__.strip("_"), stream=way != self._whole and self._source.random() < STREAM_SHARE
            )
            try:
                async with asyncio.timeout(HANG_S):
                    await way(question)
            except TimeoutError:
                self._wrong(question, "it hangs")
            except (httpx.HTTPError, OSError, asyncio.IncompleteReadError) as error:
                self._wrong(question, f"the connection broke: {error!r}")

    def _question(self, kind: str, *, stream: bool) -> Question:
        asked = prompt(next(self._numbers), self._source.randint(1, 60))
        body: dict[str, Any] = {
            "model": self._source.choice(MODELS),
            "messages": [{"role": "user", "content": asked}],
            "stream": stream,
        }
        if stream and self._source.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        return Question(body, text_for(asked), kind)

    async def _stream(self, question: Question) -> None:
        self._judge(question, await read_chat(self._client, Reading(), question.body))

    async def _whole(self, question: Question) -> None:
        self._judge(question, await read_chat(self._client, Reading(), question.body))

    async def _send_much(self, question: Question) -> None:
        question.body["messages"].insert(0, {"role": "system", "content": "x" * PAD_BYTES})
        self._judge(question, await read_chat(self._client, Reading(), question.body))

    async def _vanish(self, question: Question) -> None:
        reading = Reading()
        async with self._new_client() as client:  # what httpx's pool knows of a cancelled request it keeps
            asking = asyncio.create_task(read_chat(client, reading, question.body))
            await asyncio.wait([asking], timeout=self._source.uniform(0.0, 0.4))
            if asking.done():
                self._judge(question, await asking)
                return
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        if not question.text.startswith(reading.text):
            self._wrong(question, f"not its text: {reading.text[:80]!r}")
        self.tally.ends["vanish left"] += 1

    async def _read_slowly(self, question: Question) -> None:
        reading, pause_s = Reading(), self._source.uniform(0.0, 0.05)
        raw = bytearray()
        async with RawClient(self._stack.url) as client:
            await client.chat(question.body)
            reading.status, pairs = await client.head()
            headers = dict(pairs)
            reading.headers = httpx.Headers(headers)
            if headers.get("transfer-encoding") != "chunked":
                reading.take_body(await client.reader.readexactly(int(headers["content-length"])))
                self._judge(question, reading)
                return
            pauses = SLOW_PIECES
            async for piece in client.pieces():
                raw += piece
                pauses -= 1
                await asyncio.sleep(pause_s if pauses > 0 else 0.0)
        for event in raw.decode().split("\n\n"):
            if event.startswith("data: "):
                reading.take_event(event.removeprefix("data: "))
        self._judge(question, reading)

    def _judge(self, question: Question, reading: Reading) -> None:
        """A whole answer is the right one; anything else is one honest error."""
        fault = _fault(question, reading)
        if fault:
            attempts = reading.headers.get("x-tierfall-attempts", "")
            self._wrong(question, f"{fault} (status {reading.status}, attempts {attempts})")
            return
        end = "answered" if not reading.errors else f"error {reading.status} {reading.errors[0]['code']}"
        self.tally.ends[f"{question.kind} {end}"] += 1

    def _wrong(self, question: Question, fault: str) -> None:
        self.tally.ends[f"{question.kind} WRONG"] += 1
        fields = {name: value for name, value in question.body.items() if name != "messages"}
        self.tally.wrong.append(f"{question.kind} {json.dumps(fields)}: {fault}")

    # -- disturbances

    async def _disturb(self, stop: asyncio.Event) -> None:
        ways: tuple[Callable[[], Awaitable[None]], ...] = (
            self._kill_worker,
            self._drain_worker,
            self._add_worker,
            self._restart_nats,
            self._refuse_provider,
        )
        while not stop.is_set():
            try:
                async with asyncio.timeout(self._source.uniform(*CALM_S)):
                    await stop.wait()
            except TimeoutError:
                way = self._source.choice(ways)
                self.tally.disturbances[f"times: {way.__name__.strip('_').replace('_', ' ')}"] += 1
                await way()

    async def _kill_worker(self) -> None:
        key = self._source.choice(list(self._stack.workers))
        backends = [station._backend for _, station in self._stack.workers[key]._stations.values()]
        await self._stack.kill_worker(key)
        for backend in backends:  # what the system does for a process that is killed
            await backend.close()
        await self._stack.add_worker("vllm")

    async def _drain_worker(self) -> None:
        await self._stack.add_worker("vllm")
        await self._stack.stop_worker(self._source.choice(list(self._stack.workers)))

    async def _add_worker(self) -> None:
        if len(self._stack.workers) <= WORKERS:
            await self._stack.add_worker("vllm")
        else:
            await self._stack.stop_worker(next(iter(self._stack.workers)))

    async def _restart_nats(self) -> None:
        await self._stack.nats.restart()

    async def _refuse_provider(self) -> None:
        provider = self._source.choice(self._providers)
        await provider.refuse()
        await asyncio.sleep(self._source.uniform(0.2, 1.5))
        await provider.resume()

    async def _restore(self) -> None:
        """As many workers as at the beginning, all of them well."""
        while len(self._stack.workers) > WORKERS:
            await self._stack.stop_worker(next(iter(self._stack.workers)))
        while len(self._stack.workers) < WORKERS:
            await self._stack.add_worker("vllm")

        def well() -> bool:
            standings = [self._stack.services.roster.standing(tier) for tier in ("a", "b")]
            return all(each.state == "up" and len(each.workers) == WORKERS for each in standings)

        await until(well, timeout_s=SETTLE_S)


def _fault(question: Question, reading: Reading) -> str:
    """What is wrong with an ended request; empty when nothing is."""
    if not question.text.startswith(reading.text):
        pairs = enumerate(zip(reading.text, question.text, strict=False))
        same = next((at for at, (got, wanted) in pairs if got != wanted), len(question.text))
        return f"not its text from {same}: {reading.text[same:][:80]!r}, not {question.text[same:][:80]!r}"
    if len(reading.ids) > 1:
        return "several ids"
    if reading.whole:
        return "" if reading.text == question.text else "a truncated answer that says it succeeded"
    return _unfair_end(reading)


def _unfair_end(reading: Reading) -> str:
    """What is wrong with how an answer ended that is not whole; empty when it is an honest error."""
    if reading.broken:
        return f"the connection broke: {reading.broken}"
    if len(reading.errors) != 1 or reading.done:
        return f"{len(reading.errors)} errors, {reading.done} [DONE], {len(reading.finishes)} finish reasons"
    if set(reading.errors[0]) != ERROR_KEYS:
        return f"no error object: {reading.errors[0]}"
    if reading.status != httpx.codes.OK and reading.status not in RIGHT_STATUSES:
        return f"not a right error: {reading.errors[0]['message'][:120]}"
    return ""
