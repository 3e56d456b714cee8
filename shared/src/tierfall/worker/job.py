"""One accepted request: its body, its run on the backend, its answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.chat import Generated
from tierfall.chat.limit import LIMITS, write_limit
from tierfall.errors import (
    BackendError,
    BackendFault,
    ClientGone,
    ContinuationDiverged,
    InvalidRequest,
    StreamBroken,
    TierfallError,
    UnsupportedByTier,
)
from tierfall.protocol.envelope import Count, Ending
from tierfall.protocol.operation import Operation
from tierfall.redact import NOTHING_KNOWN
from tierfall.timelimit import TimeLimit
from tierfall.worker.backend import Ask, Counting, Prefill, Progress
from tierfall.worker.known_fields import refuse_unknown
from tierfall.worker.operations import answer_for, chunk_stream, prefilled, run
from tierfall.worker.sink import ResumedSink
from tierfall.worker.tracing import CANCELLED, NO_TRACE, OK

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tierfall.protocol.envelope import Envelope, Resume
    from tierfall.redact import Redactor
    from tierfall.worker.backend import Backend
    from tierfall.worker.incoming import IncomingBody
    from tierfall.worker.operations import Answer
    from tierfall.worker.reply import Reply
    from tierfall.worker.sink import Sink
    from tierfall.worker.tracing import JobTrace

TAIL_S: Final = 2.0
"""How long a backend may take, after the last ``finish_reason``, to send usage and close."""

_log: Final = logging.getLogger("tierfall.worker")
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Job:
    """Runs one request; the station creates it when it gives it a slot.

    Attributes:
        reply: Its way back to the ingress.
        leased_at: Loop time when the ingress last said that it still wants the answer.
        failure: What the backend failed with, once it has.
        ending: How the answer ended, once it is whole.
        first_output_s: Seconds from asking the backend to its first real output, once it is there.
    """

    def __init__(
        self,
        envelope: Envelope,
        body: IncomingBody,
        reply: Reply,
        backend: Backend,
        *,
        trace: JobTrace = NO_TRACE,
        refuse_extra: bool = False,
        redactor: Redactor = NOTHING_KNOWN,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._envelope = envelope
        self._backend = backend
        self._body = body
        self._data = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.reply = reply
        self.leased_at = self._loop.time()
        self.failure: TierfallError | None = None
        self.ending: Ending | None = None
        self.first_output_s: float | None = None
        self._trace = trace
        self._refuse_extra = refuse_extra
        self._redactor = redactor
        self._cancelled_because = ""
        self._answer: Answer | None = None
        self._in_tail = False

    @property
    def stream(self) -> int:
        """The attempt's id."""
        return self._envelope.stream

    @property
    def operation(self) -> Operation:
        """What is asked for."""
        return self._envelope.operation

    def start(self) -> asyncio.Task[None]:
        """Begins the work in a task of its own."""
        self._body.open()
        self._task = self._loop.create_task(self._run(), name=f"job {self._envelope.request_id}")
        return self._task

    @property
    def outcome(self) -> str:
        """``ok``, the slug of the error that ended it, or ``cancelled``."""
        if self.ending is not None:
            return OK
        return CANCELLED if self.failure is None else self.failure.slug

    def close(self) -> None:
        """The task has ended: ends its span, too, and logs it."""
        self._body.close()  # not the task's own doing: one that is cancelled at once never runs
        self._task = None  # one that was cancelled keeps the traceback, and with it this job
        envelope = self._envelope
        why = self._cancelled_because
        self._trace.end(self.outcome, answer_id=envelope.answer_id, ending=self.ending, why=why)
        if _log.isEnabledFor(logging.DEBUG):
            fields = {"request_id": envelope.request_id, "model": envelope.model, "outcome": self.outcome}
            if self._trace.trace_id:
                fields["trace_id"] = self._trace.trace_id
            if why:
                fields["why"] = why
            _log.debug(envelope.operation.value, extra={"fields": fields})

    def cancel(self, why: str = "") -> None:
        """Stops the backend's work, which is not needed any more; ``why`` is the ingress's reason.

        If the client hung up, the ingress gets a report of what was generated. Of a complete answer the
        usage is waited for first.
        """
        self._cancelled_because = why
        if why != ClientGone.slug:
            self.reply.drop()
        elif self.ending is not None:
            self.reply.mute()  # its END was waiting behind the answer
            self.reply.end(self.ending)
        elif self._in_tail:
            self.reply.mute()
            return
        else:
            self.reply.mute()
            self.reply.end(Ending() if self._answer is None else _ending(self._answer))
        if self._task is not None:
            self._task.cancel()

    def add_body(self, number: int, part: bytes) -> None:
        """Takes a further part of a body that did not fit one message; a lost part fails the attempt."""
        self._body.add(number, part)

    async def _run(self) -> None:
        try:
            self._data = await self._body.read()
            await self._relay()
        except TierfallError as error:
            self.failure = error.detached()
            self.reply.fail(self._redactor.clean(self.failure))
        except asyncio.CancelledError:
            # Whoever cancelled has said what the ingress is to hear, if anything.
            raise
        except RecursionError:  # the ingress's parser, in a shallower stack, let it just pass
            self.failure = InvalidRequest("the body is nested too deeply")
            self.reply.fail(self.failure)
        except Exception:  # noqa: BLE001 - one request's defect ends that request, with a traceback
            _log.exception("request %s: the worker itself failed", self._envelope.request_id)
            self.failure = BackendFault("the worker failed on this request; its log has the cause")
            self.reply.fail(self.failure)
        finally:
            # A slow client may keep the job long after its backend.
            self._data = bytearray()
            self._answer = None

    async def _ask(self) -> Ask:
        try:
            members = _members.decode(self._data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the body is not a JSON object: {error}") from None
        envelope = self._envelope
        if envelope.max_tokens is not msgspec.UNSET and envelope.operation is not Operation.EMBEDDINGS:
            write_limit(members, envelope.max_tokens, envelope.operation)
        if self._refuse_extra:
            await refuse_unknown(members, envelope.operation)
        return Ask(
            request_id=envelope.request_id,
            model=envelope.model,
            backend_model=envelope.backend_model,
            body=members,
            operation=envelope.operation,
            traceparent=envelope.traceparent,
        )

    async def _relay(self) -> None:
        resume = self._envelope.resume
        if resume is None:
            ask = await self._ask()
            await self._play(ask, *answer_for(self._envelope, ask, self.reply))
        elif resume.reasoning or not await self._continue(resume):
            await self._repeat(resume)

    async def _continue(self, resume: Resume) -> bool:
        """Lets the backend go on from what the client has; False if it cannot, and nothing was sent."""
        ask = await self._ask()
        prefill = prefilled(self._backend, ask, resume.content)
        if prefill is Prefill.UNSUPPORTED or not _shorten(ask, resume.outputs):
            return False
        chunks = chunk_stream(self._envelope)
        repeats = prefill is Prefill.ECHOED
        sink = ResumedSink(self.reply, chunks, self._envelope, resume, repeats=repeats, prefilled=True)
        try:
            await self._play(ask, chunks, sink)
        except (InvalidRequest, ContinuationDiverged):
            if sink.began:
                raise
            return False
        return True

    async def _repeat(self, resume: Resume) -> None:
        """Lets the backend answer anew and skips what the client has, as long as it is the same."""
        ask = await self._ask()
        chunks = chunk_stream(self._envelope)
        sink = ResumedSink(self.reply, chunks, self._envelope, resume, repeats=True, prefilled=False)
        await self._play(ask, chunks, sink)

    async def _play(self, ask: Ask, answer: Answer, sink: Sink) -> None:
        asked_at = self._loop.time()
        self._answer = answer
        try:
            await self._pass_on(self._trace.ask(ask), answer, sink, asked_at)
        except BaseException as error:
            self._trace.answered(error)
            raise
        self._trace.answered(None)
        sink.close()
        self.ending = _ending(answer)
        self.reply.end(self.ending)

    async def _pass_on(self, ask: Ask, answer: Answer, sink: Sink, asked_at: float) -> None:
        items = run(self._backend, ask, answer)
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Progress):
                    self.reply.progress(item.doing)
                    continue
                self._take(item, answer, sink, asked_at)
                if self.reply.is_full:
                    await self.reply.room()
                if answer.complete:
                    break
            else:
                raise _incomplete(answer)
            await self._finish(ask, items, answer, sink)

    async def _finish(
        self, ask: Ask, items: AsyncGenerator[bytes | Progress, None], answer: Answer, sink: Sink
    ) -> None:
        """Takes what follows a complete answer: its usage, above all. How that ends no longer matters."""
        self._in_tail = True
        tail_s = min(TAIL_S, 2 * self._envelope.signs_every_s)  # within the ingress's idle clock
        with contextlib.suppress(TimeoutError), TimeLimit(self._loop, tail_s):
            with contextlib.suppress(BackendError):
                async for item in items:
                    if not isinstance(item, Progress):
                        self._take(item, answer, sink, self._loop.time())
            if answer.usage is None:
                await self._estimate_usage(ask, answer)
        if not answer.complete:
            raise _incomplete(answer)

    async def _estimate_usage(self, ask: Ask, answer: Answer) -> None:
        if isinstance(answer, Generated) and isinstance(self._backend, Counting):
            answer.estimate_usage(await self._backend.count_prompt(ask))

    def _take(self, item: bytes, answer: Answer, sink: Sink, asked_at: float) -> None:
        chunk = answer.feed(item)
        if self.first_output_s is None and answer.started:
            self.first_output_s = self._loop.time() - asked_at
            self._trace.first_output(item, self.first_output_s)
        if chunk:
            sink.feed(chunk)


def _shorten(ask: Ask, tokens: int) -> bool:
    """Takes what was generated already off the request's limits; False when nothing is left of one."""
    for name in LIMITS:
        try:
            limit = msgspec.json.decode(ask.body.get(name, b"null"))
        except msgspec.DecodeError:
            return False  # the backend took it for something: what, is not for us to say
        if isinstance(limit, int):
            if limit <= tokens:
                return False
            ask.body[name] = msgspec.Raw(str(limit - tokens).encode())
    return True


def _incomplete(answer: Answer) -> TierfallError:
    if answer.missing and answer.finish_reasons:
        return UnsupportedByTier("the backend answers with fewer choices than 'n' asks for", param="n")
    return StreamBroken("the backend's answer ended before its finish_reason")


def _ending(answer: Answer) -> Ending:
    usage = _Usage()
    if answer.usage is not None:
        try:
            usage = msgspec.json.decode(answer.usage, type=_Usage)
        except msgspec.DecodeError:
            _log.warning("the backend's usage object is not one: its tokens are not counted")
    elif isinstance(answer, Generated):
        return Ending(completion_tokens=answer.tokens, finish_reasons=answer.finish_reasons, estimated=True)
    return Ending(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        finish_reasons=answer.finish_reasons,
    )
