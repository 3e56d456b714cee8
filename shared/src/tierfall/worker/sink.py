"""Where an answer's chunks go: out as events, together as one body, or out behind what the client has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from tierfall.chat import Continuation

if TYPE_CHECKING:
    from tierfall.chat import Assembly, ChunkStream
    from tierfall.protocol.envelope import Envelope, Resume
    from tierfall.worker.reply import Reply

_usage: Final = msgspec.json.Decoder(dict[str, Any])
_encoder: Final = msgspec.json.Encoder()


class Sink(Protocol):
    """Takes the stamped chunks of one answer."""

    def feed(self, chunk: bytes) -> None:
        """One more chunk, as JSON text."""

    def close(self) -> None:
        """There will be no more."""


class Signs:
    """Tells the ingress now and then that an answer grows of which nothing is sent."""

    def __init__(self, reply: Reply, every_s: float) -> None:
        self._reply = reply
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._told_at = float("-inf")

    def grows(self) -> None:
        """There is more of it."""
        now = self._loop.time()
        if now - self._told_at >= self._every_s:
            self._told_at = now
            self._reply.output()


class EventSink:
    """Streaming: every chunk an SSE event; what comes before the first output leaves with it."""

    def __init__(self, reply: Reply, chunks: ChunkStream, envelope: Envelope) -> None:
        self._reply = reply
        self._chunks = chunks
        self._include_usage = envelope.include_usage
        self._held: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Sends it, once there is real output."""
        event = b"data: %b\n\n" % chunk
        if not self._chunks.started:
            self._held.append(event)
        elif self._held:
            self._reply.write(b"".join([*self._held, event]))
            self._held.clear()
        else:
            self._reply.write(event)

    def close(self) -> None:
        """The usage chunk, if it was asked for and the backend told."""
        if self._include_usage and self._chunks.usage is not None:
            self._reply.write(b"data: " + self._chunks.usage_chunk() + b"\n\n")


class WholeSink:
    """Not streaming: the answer collects its chunks itself, and the ingress hears that it grows."""

    def __init__(self, reply: Reply, answer: Assembly, envelope: Envelope) -> None:
        self._reply = reply
        self._answer = answer
        self._signs = Signs(reply, envelope.signs_every_s)

    def feed(self, chunk: bytes) -> None:  # noqa: ARG002 - a sink's; the answer has it
        """There is more of it."""
        if self._answer.started:
            self._signs.grows()

    def close(self) -> None:
        """Sends the whole answer."""
        self._reply.write(self._answer.completion())


class BodySink:
    """An answer that the backend makes in one piece."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def feed(self, chunk: bytes) -> None:
        """Sends it."""
        self._reply.write(chunk)

    def close(self) -> None:
        """There is no more."""


class ResumedSink:
    """Streaming, behind a part that the client has from a stream that broke.

    Args:
        reply: Where it goes.
        chunks: The answer's.
        envelope: The request's.
        resume: What the client has.
        repeats: Whether the backend says that part again, so that it has to be skipped.
        prefilled: Whether the part was put into the prompt, so that the backend counts it there.
    """

    def __init__(
        self,
        reply: Reply,
        chunks: ChunkStream,
        envelope: Envelope,
        resume: Resume,
        *,
        repeats: bool,
        prefilled: bool,
    ) -> None:
        self._events = EventSink(reply, chunks, envelope)
        self._chunks = chunks
        self._signs = Signs(reply, envelope.signs_every_s)
        known = (resume.content, resume.reasoning) if repeats else ("", "")
        self._continuation = Continuation(*known)
        self._moved_tokens = resume.outputs if prefilled else 0
        self.began = False
        """Whether anything new has been sent."""

    def feed(self, chunk: bytes) -> None:
        """Sends what is new of it."""
        new = self._continuation.feed(chunk)
        if new and self._continuation.caught_up and self._chunks.started:
            self.began = True
            self._events.feed(new)
        else:
            self._signs.grows()

    def close(self) -> None:
        """The usage of the whole answer: what a prompt held of it is counted as the answer that it is."""
        if self._chunks.usage is not None and self._moved_tokens:
            self._chunks.usage = _moved(self._chunks.usage, self._moved_tokens)
        self._events.close()


def _moved(raw: msgspec.Raw, tokens: int) -> msgspec.Raw:
    try:
        usage = _usage.decode(raw)
    except msgspec.DecodeError:
        return raw  # no object: it is passed on as it is
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(completion, int):
        moved = min(tokens, prompt)
        usage["prompt_tokens"], usage["completion_tokens"] = prompt - moved, completion + moved
    return msgspec.Raw(_encoder.encode(usage))
