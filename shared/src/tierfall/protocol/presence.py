"""Beats: what a worker says of itself, each second and at once when it changes."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from tierfall.errors import BackendDown

BEAT_EVERY_S: Final = 1.0
BEAT_STALE_S: Final = 3.5
"""A worker that was silent for longer is taken for gone: three lost beats and some jitter."""

CLOCK_SKEW_S: Final = 2.0
"""Clocks of two machines that differ by more are reported. No request depends on them."""

RECOVERY_S: Final = 2.0
"""After NATS comes back, how long the others may take to come back too: they try at least each second."""

Slots = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
"""Sums of them have to fit a metric."""
BackendState = Literal["up", "loading", "down"]


class Beat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker's state for one tier; the ingress keeps the latest of each."""

    worker: str
    tier: str
    kind: str
    """``vllm``, ``ollama``, ``cloud`` or a kind of somebody else's."""
    slots: Slots
    in_flight: Slots
    backend: BackendState
    reason: str = ""
    """Why the backend is not up, for the operator's ``/health``: it may name addresses."""
    said: str = ""
    """The same for clients, without addresses."""
    draining: bool = False
    gone: bool = False
    """The last beat of a worker that leaves in good order."""
    time: float = 0.0
    """Unix seconds on the worker's machine, so that an ingress can name clocks that differ; 0 is unknown."""
    models: tuple[str, ...] = ()
    """What the backend says it serves, in its own names."""
    engine: str = ""
    """The engine and its version, ``Ollama 0.17.1``; empty if unknown."""


def down(tier: str, state: str, said: str) -> BackendDown:
    """The error for clients while no backend of the tier is up; ``said`` is the beat's reason."""
    return BackendDown(f"the backend of tier {tier!r} is {state}{said and f': {said}'}")


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Beat)


def pack_beat(beat: Beat) -> bytes:
    """A beat as JSON, so that ``nats sub`` shows it."""
    return _encoder.encode(beat)


def unpack_beat(payload: bytes) -> Beat | None:
    """The reverse; ``None`` for what is no beat."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
