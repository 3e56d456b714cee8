"""The port between the worker runtime and one kind of backend.

A new kind of backend is one class with the methods of :class:`Backend` and a ``main`` that calls
:func:`tierfall.worker.run_worker`; everything else (queue group, slots, cancel, leases, assembling,
frames, drain) is the runtime's. Text completions and embeddings are a method each, :class:`Completing` and
:class:`Embedding`; a backend without one leaves its requests to the next tier.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from tierfall.protocol.operation import Operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tierfall.protocol.presence import BackendState


class Health(msgspec.Struct, frozen=True):
    """What a probe found.

    ``down`` takes the worker out of its queue group, so ``reason`` should tell its operator what to do.
    """

    state: BackendState
    reason: str = ""
    models: tuple[str, ...] = ()
    engine: str = ""
    """Name and version, ``Ollama 0.17.1``, as :mod:`tierfall.engines` writes them; empty if unknown."""


class Progress(msgspec.Struct, frozen=True):
    """Alive, nothing to show: yielded by :meth:`Backend.chat` among the chunks.

    ``doing`` is a short ASCII word. ``loading`` is special: while a backend says it at least every
    :data:`PROGRESS_EVERY_S` seconds, the ingress lets the ``load`` deadline run instead of ``first_token``.
    """

    doing: str


PROGRESS_EVERY_S = 1.0


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as a backend sees it."""

    request_id: str
    model: str
    """The configured name, for error messages."""
    backend_model: str
    """The name that the backend knows it by."""
    body: dict[str, msgspec.Raw]
    """The client's JSON object, each value's bytes as the client sent them. The backend owns this copy.

    Nothing is taken out: ``model``, ``stream`` and ``stream_options`` are still the client's, and the backend
    always streams towards its engine, whatever ``stream`` says.
    """
    operation: Operation = Operation.CHAT
    traceparent: str = ""

    @property
    def trace_headers(self) -> dict[str, str]:
        """What the HTTP request to the backend carries, so that the backend's own spans join the trace."""
        return {"traceparent": self.traceparent} if self.traceparent else {}


class Prefill(enum.Enum):
    """Whether a backend goes on from a beginning of its answer that the prompt holds."""

    UNSUPPORTED = "unsupported"
    SILENT = "silent"
    """It does, and sends only what is new."""
    ECHOED = "echoed"
    """It does, and says the beginning again first."""


class Backend(Protocol):
    """One backend of one tier. All methods run on the worker's event loop."""

    @property
    def base_url(self) -> str:
        """Where requests go, for the traces; empty if that is no one place."""

    async def start(self) -> None:
        """Opens what it needs (HTTP sessions); called once, before the first probe."""

    async def probe(self) -> Health:
        """Asks the backend how it is, within a second or so; called each second while the tier runs.

        Must not raise for a backend that is down: that is ``Health("down", reason)``. The runtime takes an
        exception for a defect, logs it, and counts the backend as down.
        """

    def chat(self, ask: Ask) -> AsyncIterator[bytes | Progress]:
        """Runs one request, streaming.

        Yields the JSON text of one OpenAI ``chat.completion.chunk`` object at a time, without SSE framing and
        without ``[DONE]``, as soon as it is there. ``id``, ``created`` and ``model`` need not be right: the
        runtime stamps them. Usage may be on any chunk; the runtime puts the last one where it belongs. The
        iterator's end without a ``finish_reason`` for every choice is a broken stream: the runtime judges.

        Cancellation closes the generator; the backend's connection must then be closed at once, which is what
        stops the engine's work.

        Raises:
            TierfallError: Any class of the tree that describes the failure.
        """

    def prefill(self, ask: Ask, text: str) -> Prefill:
        """Rewrites a chat's ``ask.body`` so that the answer goes on from ``text``, where that can be done.

        Only where it surely goes on in the same message: a prompt that the user did not write is worse than
        an error. ``UNSUPPORTED`` leaves the body alone; the runtime then asks anew and skips ``text``.
        """

    async def close(self) -> None:
        """Frees what :meth:`start` opened."""


@runtime_checkable
class Completing(Protocol):
    """A backend that completes text, beside :class:`Backend`'s methods."""

    def complete(self, ask: Ask) -> AsyncIterator[bytes | Progress]:
        """Runs one text completion, streaming: as :meth:`Backend.chat`, with ``text_completion`` chunks.

        The prompt is completed as it is, without a chat template: a stream that breaks is gone on with by
        the prompt and what there is of the answer. Choices are numbered as OpenAI numbers them: ``n`` for the
        first prompt, then ``n`` for the second.
        """


@runtime_checkable
class Embedding(Protocol):
    """A backend that makes embeddings, beside :class:`Backend`'s methods."""

    def embed(self, ask: Ask) -> AsyncIterator[bytes | Progress]:
        """Runs one embeddings request; cancellation and errors as with :meth:`Backend.chat`.

        Yields the JSON text of OpenAI's list of embeddings, once. The runtime stamps ``model`` and turns the
        vectors into the form that ``encoding_format`` asks for, so either form will do.
        """


@runtime_checkable
class Counting(Protocol):
    """A backend whose engine may not say what an answer cost, beside :class:`Backend`'s methods."""

    async def count_prompt(self, ask: Ask) -> int:
        """The tokens of the request's prompt; asked when an answer came to its end without a usage object.

        Takes at most a second or two: what has no answer by then goes without usage. Those of the answer are
        what the runtime has counted: one for each chunk with output.
        """
