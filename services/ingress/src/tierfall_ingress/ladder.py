"""The ladder: one request tried on its model's tiers until one of them answers.

What happens after a failure is said by the failure's class (:class:`tierfall.errors.Escalate`); this module
only does it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from tierfall.errors import Benched, BudgetSpent, ClientGone, Escalate, TierfallError
from tierfall.protocol.envelope import unpack_ending
from tierfall.quota import as_error
from tierfall.telemetry import NO_SPAN
from tierfall.timelimit import TimeLimit
from tierfall_ingress.admission import Admission
from tierfall_ingress.clocks import Clocks
from tierfall_ingress.story import Story
from tierfall_ingress.tracing import OK, UNTRACED, begin_attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from tierfall.config import Config, Model
    from tierfall.protocol.envelope import Ending, Resume
    from tierfall.telemetry import Span
    from tierfall_ingress.ask import Ask
    from tierfall_ingress.counts import Count
    from tierfall_ingress.keys import Caller
    from tierfall_ingress.line import Line
    from tierfall_ingress.services import Services
    from tierfall_ingress.tracing import AttemptTrace

MAX_RATE_LIMIT_WAITS: Final = 3
"""How often one rung waits out a 429; a provider that answers nothing else is left alone."""
MIN_RATE_LIMIT_WAIT_S: Final = 0.25


class Rung:
    """One step of the ladder: a model on its tier, and the clock that runs over all tries on it."""

    def __init__(self, name: str, model: Model, since: float) -> None:
        self.name = name
        self.model = model
        self.tier = model.tier
        self.since = since
        self.retried = False
        self.waited = 0

    def left_s(self, now: float) -> float:
        """Seconds until this rung's first-token deadline."""
        return self.since + self.model.deadlines.first_token - now

    def pause_before_retry(self, error: TierfallError, now: float) -> float | None:
        """How long to wait before another try on this tier; None to go on to the next."""
        left = self.left_s(now)
        if error.escalate is Escalate.RETRY and not self.retried and left > 0:
            self.retried = True
            return 0.0
        if error.escalate is Escalate.WAIT and error.retry_after is not None:
            pause = max(error.retry_after, MIN_RATE_LIMIT_WAIT_S)
            if pause < left and self.waited < MAX_RATE_LIMIT_WAITS:
                self.waited += 1
                return pause
        return None


class Answer:
    """A committed answer: from here on it is this tier's or an error, never another's.

    Attributes:
        model: The configured name of the model that answers.
        first_output_s: From the request's beginning to its first real output.
        attempt_output_s: From a worker's acceptance to its first real output.
        trace: The attempt's span, once there is output; ended with the answer.
    """

    def __init__(self, rung: Rung, line: Line, clocks: Clocks, first_output_s: float) -> None:
        self.model = rung.name
        self.tier = rung.tier
        self.worker = line.worker
        self.first_output_s = first_output_s
        self.line = line
        self.attempt_output_s = 0.0
        self.trace = UNTRACED
        self._clocks = clocks

    async def read(self) -> bytes:
        """What is there of the answer, at once or as soon as there is some; empty at its end.

        Raises:
            TierfallError: It broke off.
        """
        line = self.line
        while True:
            if line.readable:
                return line.take()
            if line.ended:
                return b""
            line.check()
            await line.changed()

    async def relay(self, write: Callable[[bytes], bool], room: Callable[[], Awaitable[None]]) -> None:
        """Hands what there is of the answer to ``write``, as soon as there is some, until its end.

        Args:
            write: Takes bytes and says whether there is room for more.
            room: Waits until there is.

        Raises:
            TierfallError: It broke off.
        """
        line = self.line
        while True:
            if line.readable:
                write(line.take())
            elif line.ended:
                return
            else:
                line.check()
                await line.flow(write)
            await room()

    @property
    def ending(self) -> Ending | None:
        """How it ended, once it is whole."""
        return unpack_ending(self.line.ending) if self.line.ended else None

    async def read_whole(self) -> bytes:
        """All of it."""
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Must be called once: stops the clocks, and the backend if it is still at work."""
        self._clocks.stop()
        line = self.line
        line.fail(ClientGone("the client hung up"))
        self.trace.end(OK if line.error is None else line.error.slug)


class Ladder:
    """One request's way over its tiers.

    Args:
        services: The gateway's.
        config: The one that the request began with.
        ask: The request.
        caller: Whose it is.
        request_id: For logs and the answer's id.
        span: The request's; each attempt has one below it.
    """

    def __init__(
        self,
        services: Services,
        config: Config,
        ask: Ask,
        caller: Caller,
        *,
        request_id: str,
        span: Span = NO_SPAN,
    ) -> None:
        self._services = services
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._ask = ask
        self._began = self._loop.time()
        self._names = caller.ladder(self._config, ask.model)
        self._budget = self._config.models[ask.model].deadlines.budget
        self._admission = Admission(
            services,
            ask,
            caller.name,
            request_id=request_id,
            created=int(time.time()),
        )
        self._giving_up: TimeLimit | None = None
        self._gone = False
        self.abandoned: tuple[str, Count | None] | None = None
        """The model whose answer was under way when the client left or the budget was spent, with none of it
        here yet, and what its worker may say of it. Not the answer: it holds this ladder."""
        self._span = span
        self.story = Story()

    def climb(self) -> Awaitable[tuple[Answer, bytes]]:
        """Goes up until a tier answers.

        Returns:
            The answer and its first bytes (all of them when the client does not stream).

        Raises:
            TierfallError: Nobody could answer, the request is at fault, the budget is spent, the client left.
        """
        return self._within_budget(self._climb(0))

    async def resume(self, broken: Answer, error: TierfallError, point: Resume) -> tuple[Answer, bytes]:
        """Goes on with an answer whose stream broke: on the same tier if it may, then on the next ones.

        Args:
            broken: The answer; the caller has closed it.
            error: How it broke.
            point: What the client has of it.

        Returns:
            The answer that goes on and its first new bytes.

        Raises:
            TierfallError: Nobody could go on with it.
        """
        self._admission.resume = point
        self._note(broken.tier, self._loop.time() - self._began, error)
        self._services.meters.broke(broken.tier, error.slug)
        index = self._names.index(broken.model)
        if error.escalate is not Escalate.RETRY and self._can_move_on(index):
            index += 1  # silence is never retried on the same tier while there is another
        return await self._within_budget(self._climb(index))

    async def _within_budget(self, work: Coroutine[Any, Any, tuple[Answer, bytes]]) -> tuple[Answer, bytes]:
        if self._gone:
            work.close()
            raise ClientGone("the client hung up")
        try:
            with TimeLimit(self._loop, self._began + self._budget - self._loop.time()) as self._giving_up:
                return await work
        except TimeoutError:
            if self._gone:
                raise ClientGone("the client hung up") from None
            raise self._over_budget() from None
        finally:
            self._giving_up = None

    def hang_up(self) -> None:
        """The client is gone: whatever is under way for it stops."""
        self._gone = True
        if self._giving_up is not None:
            self._giving_up.end()

    async def _climb(self, index: int) -> tuple[Answer, bytes]:
        window_needed = 0
        while True:
            rung = Rung(self._names[index], self._config.models[self._names[index]], self._loop.time())
            try:
                return await self._try_rung(rung, index)
            except TierfallError as error:
                if error.escalate is Escalate.NEVER:
                    raise
                if error.escalate is Escalate.LARGER:
                    window_needed = max(window_needed, rung.model.context_window or 0) + 1
                following = next(self._larger(index + 1, window_needed), None)
                if following is None:
                    raise self.story.verdict(self._ask.model) from error
                self._services.meters.escalated(rung.tier, error.slug)
                index = following

    def _larger(self, start: int, window: int) -> Iterator[int]:
        """The rungs from ``start`` on whose context window is known to suffice, if one is needed."""
        for index in range(start, len(self._names)):
            if not window or (self._config.models[self._names[index]].context_window or 0) >= window:
                yield index

    async def _try_rung(self, rung: Rung, index: int) -> tuple[Answer, bytes]:
        while True:
            began = self._loop.time()
            trace = self._begin_attempt(rung)
            try:
                answered = await self._attempt(rung, index, trace)
            except TierfallError as error:
                now = self._loop.time()
                trace.end(error.slug)
                self._note(rung.tier, now - began, error)
                pause = rung.pause_before_retry(error, now)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                trace.end(ClientGone.slug if self._gone else BudgetSpent.slug)
                raise
            else:
                self._note(rung.tier, self._loop.time() - began, None)
                return answered

    def _begin_attempt(self, rung: Rung) -> AttemptTrace:
        return begin_attempt(
            self._span,
            tier=rung.tier,
            model=rung.name,
            operation=self._ask.operation,
            number=len(self.story.chapters) + 1,
            resumes=self._admission.resume is not None,
        )

    async def _attempt(self, rung: Rung, index: int, trace: AttemptTrace) -> tuple[Answer, bytes]:
        spent = self._services.quotas.spent(rung.name)
        if spent is not None:
            raise as_error(spent)
        breaker = self._services.breakers[rung.tier]
        probe = breaker.is_open and self._can_move_on(index)
        if probe:
            if not breaker.try_probe(self._loop.time()):
                raise Benched(f"tier {rung.tier!r} has not answered lately")
            rung.retried = True  # a probe is one attempt
        try:
            answered = await self._ask_tier(rung, index, trace)
        except TierfallError as error:
            breaker.failed(error, self._loop.time())
            raise
        finally:
            if probe:
                breaker.probed()
        breaker.answered()
        return answered

    async def _ask_tier(self, rung: Rung, index: int, trace: AttemptTrace) -> tuple[Answer, bytes]:
        self._admission.traceparent = trace.traceparent
        line = await self._admission.admit(rung, last=not self._can_move_on(index))
        trace.accepted(line)
        if not rung.retried and not rung.waited:
            rung.since = self._loop.time()  # standing in line has its own limit
        clocks = Clocks(
            line,
            rung.model.deadlines,
            rung.since,
            lambda: self._can_move_on(index),
            streaming=self._ask.streaming,
        )
        answer = Answer(rung, line, clocks, 0.0)
        try:
            first = await (answer.read() if self._ask.streaming else answer.read_whole())
        except BaseException as error:
            answer.close()
            if not isinstance(error, TierfallError):
                self.abandoned = answer.model, line.count
            raise
        first_at = line.first_output_at or self._loop.time()
        answer.first_output_s = first_at - self._began
        answer.attempt_output_s = first_at - line.accepted_at
        trace.answers(first_at, self._loop.time() if self._admission.resume is not None else None)
        answer.trace = trace
        return answer, first

    @property
    def names(self) -> tuple[str, ...]:
        """The models that may answer, in the order in which they are tried."""
        return self._names

    @property
    def resumes(self) -> bool:
        """Whether the model wants a broken stream resumed, by the config that the request began with."""
        return self._config.models[self._ask.model].on_stream_failure == "resume"

    @property
    def waited_s(self) -> float:
        """Seconds for which the request stood in line for a slot, over all tiers."""
        return self._admission.waited_s

    def _can_move_on(self, index: int) -> bool:
        """Whether a later tier can be expected to answer."""
        services, models = self._services, self._config.models
        return any(
            services.is_usable(models[name].tier) and services.quotas.spent(name) is None
            for name in self._names[index + 1 :]
        )

    def _note(self, tier: str, took_s: float, error: TierfallError | None) -> None:
        self.story.add(tier, took_s, error)
        self._services.meters.attempted(tier, self.story.chapters[-1].outcome)

    def _over_budget(self) -> TierfallError:
        told = self.story.header
        return BudgetSpent(
            f"no answer from {self._ask.model!r} within its budget of {self._budget:g} s"
            + (f" (tried: {told})" if told else ""),
            should_retry=False,
        )
