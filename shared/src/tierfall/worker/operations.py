"""How the operations differ for the runtime: who runs one, what judges its answer, where that goes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import msgspec

from tierfall.chat import Assembly, ChunkStream, TextAssembly, TextStream
from tierfall.embeddings import EmbeddingsAnswer
from tierfall.errors import UnsupportedOperation
from tierfall.protocol.operation import Operation
from tierfall.worker.backend import Completing, Embedding, Prefill, Progress
from tierfall.worker.sink import BodySink, EventSink, WholeSink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tierfall.protocol.envelope import Envelope
    from tierfall.worker.backend import Ask, Backend
    from tierfall.worker.reply import Reply
    from tierfall.worker.sink import Sink

_NULL: Final = b"null"
_encoder: Final = msgspec.json.Encoder()


class Answer(Protocol):
    """Judges, mends and stamps what a backend sends of one answer."""

    started: bool
    usage: msgspec.Raw | None

    @property
    def complete(self) -> bool:
        """Whether the answer is whole."""

    @property
    def missing(self) -> int:
        """How many of the choices asked for never began."""

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The reasons in the order of the choices."""

    def feed(self, payload: bytes) -> bytes:
        """What the client gets of it, empty when that is nothing."""


def run(backend: Backend, ask: Ask, answer: Answer) -> AsyncGenerator[bytes | Progress, None]:
    """Lets the backend run the request.

    Raises:
        UnsupportedOperation: It has no such method.
    """
    found: Any = None
    if ask.operation is Operation.CHAT:
        found = backend.chat(ask)
    elif ask.operation is Operation.COMPLETIONS and isinstance(backend, Completing):
        found = backend.complete(ask)
    elif isinstance(answer, EmbeddingsAnswer) and isinstance(backend, Embedding):
        found = _embed(backend, ask, answer)
    if found is None:
        raise UnsupportedOperation(f"the tier of {ask.model!r} has no /v1{ask.operation.path}")
    # They are async generator functions; closing the generator is what closes its connection.
    return cast("AsyncGenerator[bytes | Progress, None]", found)


async def _embed(
    backend: Embedding, ask: Ask, answer: EmbeddingsAnswer
) -> AsyncGenerator[bytes | Progress, None]:
    """What the backend yields, mended beside the event loop, where it would hold up every other stream."""
    items = cast("AsyncGenerator[bytes | Progress, None]", backend.embed(ask))
    async with aclosing(items):
        async for item in items:
            yield item if isinstance(item, Progress) else await asyncio.to_thread(answer.mend, item)


def chunk_stream(envelope: Envelope) -> ChunkStream:
    """The judge of generated text that is streamed."""
    kind = TextStream if envelope.operation is Operation.COMPLETIONS else ChunkStream
    return kind(
        envelope.answer_id,
        envelope.created,
        envelope.model,
        envelope.choices,
        begun=envelope.resume is not None,
    )


def answer_for(envelope: Envelope, ask: Ask, reply: Reply) -> tuple[Answer, Sink]:
    """The judge of a fresh answer, and where the answer goes."""
    if envelope.operation is Operation.EMBEDDINGS:
        wanted = bytes(ask.body.get("encoding_format", _NULL))
        return EmbeddingsAnswer(envelope.model, envelope.choices, wanted), BodySink(reply)
    if envelope.streaming:
        chunks = chunk_stream(envelope)
        return chunks, EventSink(reply, chunks, envelope)
    kind = TextAssembly if envelope.operation is Operation.COMPLETIONS else Assembly
    whole = kind(envelope.answer_id, envelope.created, envelope.model, envelope.choices)
    return whole, WholeSink(reply, whole, envelope)


def prefilled(backend: Backend, ask: Ask, text: str) -> Prefill:
    """Makes the request one that goes on from ``text``, if that is possible; see :meth:`Backend.prefill`.

    A completion goes on from its prompt and the text. Without ``max_tokens`` it would get anew what the
    backend takes for a limit then (16 tokens, often), and with ``echo`` the text would be taken for prompt.
    """
    if ask.operation is Operation.CHAT:
        return backend.prefill(ask, text)
    body = ask.body
    try:
        prompt = msgspec.json.decode(body.get("prompt", _NULL), type=str)
    except msgspec.DecodeError:
        return Prefill.UNSUPPORTED  # tokens, or several prompts
    limit, echo = (bytes(body.get(name, _NULL)) for name in ("max_tokens", "echo"))
    if limit == _NULL or echo not in {_NULL, b"false"}:
        return Prefill.UNSUPPORTED
    body["prompt"] = msgspec.Raw(_encoder.encode(prompt + text))
    return Prefill.SILENT
