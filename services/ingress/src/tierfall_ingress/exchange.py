"""One exchange, from the request's first byte to the answer's last: chat, completions and embeddings.

A bare ASGI application: FastAPI's routing costs more than everything else that happens here.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.chat.limit import refuse_other_models
from tierfall.errors import (
    BackendError,
    ClientGone,
    GatewayStopped,
    IdleDeadline,
    Internal,
    MethodNotAllowed,
    ModelNotFound,
    TierfallError,
    WorkerLost,
)
from tierfall.logs import event
from tierfall_ingress.ask import read_ask
from tierfall_ingress.body import read_body
from tierfall_ingress.body_memory import BodyShare
from tierfall_ingress.connection import CLIENT
from tierfall_ingress.keys import ANYBODY
from tierfall_ingress.ladder import Ladder
from tierfall_ingress.tracing import begin_request, end_request
from tierfall_ingress.transcript import Transcript, may_resume
from tierfall_ingress.wire import JSON, error_body, error_headers, request_id, respond

if TYPE_CHECKING:
    from collections.abc import Awaitable, MutableMapping

    from tierfall.config import Config
    from tierfall.protocol.envelope import Ending, Resume
    from tierfall.protocol.operation import Operation
    from tierfall_ingress.ask import Ask
    from tierfall_ingress.body import Receive
    from tierfall_ingress.cashier import Charge
    from tierfall_ingress.connection import Client
    from tierfall_ingress.keys import Caller
    from tierfall_ingress.ladder import Answer
    from tierfall_ingress.services import Services
    from tierfall_ingress.wire import Header, Send

DONE: Final = b"data: [DONE]\n\n"
_SSE: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_RESUMABLE: Final = (BackendError, WorkerLost, IdleDeadline)
"""A stream that was cut, garbled, lost, stalled or throttled; one that ran out of time, or whose request the
backend refused, is not."""
SHOWN_NAME: Final = 100
"""Characters of an unknown model's name that are compared and shown: enough to recognise it."""
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_log: Final = logging.getLogger("tierfall.ingress")


class Endpoint:
    """The ASGI application of one operation's route."""

    def __init__(self, services: Services, operation: Operation) -> None:
        self._services = services
        self._operation = operation

    def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
        """Answers one request, whatever happens."""
        return Exchange(self._services, self._operation, scope, receive, send).run()


class Exchange:
    """One request and its answer."""

    def __init__(
        self,
        services: Services,
        operation: Operation,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        self._services = services
        self._operation = operation
        self._method = scope["method"]
        self._headers = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._caller = ANYBODY
        self._ask: Ask | None = None
        self._ladder: Ladder | None = None
        self._answer: Answer | None = None
        self._charge: Charge | None = None
        self._transcript: Transcript | None = None
        self._share = BodyShare(services.body_memory)
        self._committed = False
        self._read_whole = False
        self._client: Client = scope["state"][CLIENT]
        self._client.hangup.append(self._hang_up)
        self.id = request_id(_text(self._headers.get(b"x-request-id")))
        traceparent = _text(self._headers.get(b"traceparent")) or ""
        self._span = begin_request(services.tracer, scope, traceparent)

    async def run(self) -> None:
        """Reads, climbs, answers; every way out is counted and logged once."""
        self._services.meters.in_flight += 1
        status, failure = 200, None
        try:
            await self._run()
        except TierfallError as error:
            status, failure = error.status, error.detached()
            await self._fail(failure)
        except asyncio.CancelledError:  # the gateway stops, and waits no longer
            failure = GatewayStopped("the gateway was stopped before the answer was whole", retry_after=1.0)
            status = failure.status
            await self._fail(failure)
        except Exception:  # noqa: BLE001 - a defect of ours still gets an answer, and a traceback
            _log.exception("request %s: the gateway itself failed", self.id)
            failure = Internal(f"the gateway failed on this request; its log has it under {self.id}")
            status = failure.status
            await self._fail(failure)
        finally:
            self._client.hangup.clear()  # or the two would keep each other until the collector comes
            self._share.release()
            self._services.meters.in_flight -= 1
            self._report(status, failure)

    async def _run(self) -> None:
        config = self._services.config
        ask, ladder = await self._read(config)
        if self._caller.allowance is not None:
            allowance = self._caller.allowance
            self._charge = await self._services.cashier.open(allowance, ask, config, ladder.names)
            await self._charge.reserve()
        try:
            self._answer, first = await ladder.climb()
            if ask.streaming:
                await self._stream(self._answer, first)
            else:
                await respond(self._send, 200, [JSON, *self._told()], first)
        finally:
            if self._answer is not None:
                self._answer.close()

    async def _read(self, config: Config) -> tuple[Ask, Ladder]:
        if self._method != "POST":
            raise MethodNotAllowed(f"{self._method} is not allowed here; use POST")
        services = self._services
        self._caller = services.keys.caller(_text(self._headers.get(b"authorization")))
        body = await read_body(self._headers, self._receive, config.server.max_body, self._share)
        self._read_whole = True
        ask = self._ask = await read_ask(body, self._operation)
        if self._client.gone:
            raise ClientGone("the client hung up")
        if ask.model not in config.models:
            raise unknown_model(ask.model, config, self._caller)
        self._caller.check(ask.model)
        if self._caller.models is not None:
            refuse_other_models(_members.decode(body))
        ladder = self._ladder = Ladder(
            services, config, ask, self._caller, request_id=self.id, span=self._span
        )
        return ask, ladder

    def _hang_up(self) -> None:
        """The client is gone, in whatever phase its request is."""
        if self._ladder is not None:
            self._ladder.hang_up()
        if self._answer is not None:
            self._answer.line.fail(ClientGone("the client hung up"))

    async def _stream(self, answer: Answer, data: bytes) -> None:
        client, transcript = self._client, Transcript()
        self._transcript = transcript
        choices = self._ask.choices if self._ask is not None else 1

        def write(data: bytes) -> bool:
            transcript.add(data)
            return client.write(data)

        await self._send({"type": "http.response.start", "status": 200, "headers": [*_SSE, *self._told()]})
        self._committed = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        transcript.add(data)
        while True:
            try:
                await answer.relay(write, client.room)
                break
            except _RESUMABLE as error:
                if transcript.finished(choices):
                    break  # nothing but usage is missing
                point = self._resume_point(transcript)
                if point is None:
                    raise
                answer, data = await self._resume(answer, error, point)
                write(data)
        await self._send({"type": "http.response.body", "body": DONE})

    def _resume_point(self, transcript: Transcript) -> Resume | None:
        """What an attempt that goes on with this stream has to know; None if it cannot be gone on with."""
        ask, ladder = self._ask, self._ladder
        assert ask is not None  # noqa: S101 - there is no answer without them
        assert ladder is not None  # noqa: S101 - see above
        return transcript.resume() if ladder.resumes and may_resume(ask) else None

    async def _resume(self, broken: Answer, error: TierfallError, point: Resume) -> tuple[Answer, bytes]:
        """Goes on with a stream that broke, on another worker or tier."""
        ladder = self._ladder
        assert ladder is not None  # noqa: S101 - there is no answer without it
        broken.close()
        self._answer, data = await ladder.resume(broken, error, point)
        self._answer.first_output_s = broken.first_output_s
        return self._answer, data

    async def _fail(self, error: TierfallError) -> None:
        if isinstance(error, ClientGone):
            return
        body = error_body(error)
        if self._committed:
            await self._send({"type": "http.response.body", "body": b"data: " + body + b"\n\n"})
            return
        headers = [*error_headers(error), *self._told()]
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", b"POST"))
        if not self._read_whole:
            headers.append((b"connection", b"close"))  # the rest of the body may still be on its way
        await respond(self._send, error.status, headers, body)

    def _told(self) -> list[Header]:
        """What an answer says about itself."""
        headers = [(b"x-request-id", self.id.encode())]
        if self._answer is not None:
            headers.append((b"x-tierfall-tier", self._answer.tier.encode()))
            headers.append((b"x-tierfall-worker", self._answer.worker.encode()))
        if self._ladder is not None and (attempts := self._ladder.story.header):
            headers.append((b"x-tierfall-attempts", attempts.encode()))
        if self._charge is not None:
            headers += self._charge.headers
        return headers

    def _report(self, status: int, failure: TierfallError | None) -> None:
        took = self._loop.time() - self._began
        model = self._ask.model if self._ask is not None else ""
        known = model if model in self._services.config.models else "other"
        answer, ladder = self._answer, self._ladder
        ending = None if answer is None else answer.ending
        self._services.meters.finished(
            known, self._operation, status, took_s=took, answer=answer, ending=ending
        )
        if self._charge is not None:
            self._settle(self._charge, ending)
        fields = {
            "request_id": self.id,
            "model": known,
            "key": self._caller.name,
            "status": status,
            "ms": round(took * 1000, 1),
        }
        if self._span.trace_id:
            fields["trace_id"] = self._span.trace_id
        if ladder is not None:
            fields["attempts"] = ladder.story.header
            if ladder.waited_s:
                fields["waited_ms"] = round(ladder.waited_s * 1000, 1)
        if answer is not None:
            fields["first_output_ms"] = round(answer.first_output_s * 1000, 1)
            fields["tier"] = answer.tier
            fields["worker"] = answer.worker
        if ending is not None:
            fields["prompt_tokens"] = ending.prompt_tokens
            fields["completion_tokens"] = ending.completion_tokens
        if failure is not None:
            fields["error"] = failure.slug
        event(_log, self._operation.value, fields)
        end_request(
            self._span,
            request_id=self.id,
            model=known,
            status=200 if self._committed else status,
            failure=failure,
            answer=answer,
            attempts="" if ladder is None else ladder.story.header,
            waited_s=0.0 if ladder is None else ladder.waited_s,
        )

    def _settle(self, charge: Charge, ending: Ending | None) -> None:
        """Counts what was used, now or as soon as the worker has said what that is."""
        model, count = None, None
        if self._answer is not None:
            model, count = self._answer.model, self._answer.line.count
        elif self._ladder is not None and self._ladder.abandoned is not None:
            model, count = self._ladder.abandoned
        outputs = 0 if self._transcript is None else self._transcript.tokens
        if count is None:
            charge.settle(model, ending, outputs)
        else:
            count.then(lambda counted: charge.settle(model, counted, outputs))


def unknown_model(name: str, config: Config, caller: Caller) -> ModelNotFound:
    """A 404 that names what the caller may have meant, of the models that it may use."""
    shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}…"
    usable = [model for model in config.models if caller.may_use(model)]
    near = difflib.get_close_matches(shown, usable, n=3, cutoff=0.4)
    hint = (
        f"did you mean {' or '.join(repr(model) for model in near)}?" if near else "GET /v1/models lists them"
    )
    return ModelNotFound(
        f"the model {shown!r} does not exist here; {hint}", param="model", should_retry=False
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
