"""An embeddings request as Ollama's native ``POST /api/embed``, and its answer as OpenAI's.

Sources: ``EmbedRequest`` and ``EmbedResponse`` in Ollama's ``api/types.go``, ``EmbedHandler`` in its
``server/routes.go``, as of 2026-08.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import BackendFault, InvalidRequest, UnsupportedByTier
from tierfall_worker_ollama.fields import take
from tierfall_worker_ollama.request import keep_alive, native_options

if TYPE_CHECKING:
    from tierfall.config.schema import OllamaTier
    from tierfall.worker.backend import Ask


class _Embedded(msgspec.Struct):
    embeddings: list[msgspec.Raw]
    prompt_eval_count: int = 0


_embedded: Final = msgspec.json.Decoder(_Embedded)
_encoder: Final = msgspec.json.Encoder()


def native_embedding(ask: Ask, tier: OllamaTier) -> bytes:
    """Translates one request; pure, no I/O.

    Raises:
        InvalidRequest: A field has a wrong type or value; ``param`` names it.
        UnsupportedByTier: Ollama cannot do what a field asks for; ``param`` names it.
    """
    native: dict[str, Any] = {
        "model": ask.backend_model,
        "input": _input(ask),
        "truncate": bool(take(ask.body, "truncate", bool)),  # by default Ollama cuts without a word
        "options": native_options(ask, tier),
    }
    dimensions: int | None = take(ask.body, "dimensions", int)
    if dimensions is not None and dimensions < 1:
        raise InvalidRequest(f"dimensions: at least 1, not {dimensions}", param="dimensions")
    optional = {"dimensions": dimensions, "keep_alive": keep_alive(ask, tier)}
    native |= {name: value for name, value in optional.items() if value is not None}
    return _encoder.encode(native)


def _input(ask: Ask) -> list[Any]:
    asked: str | list[Any] | None = take(ask.body, "input", str | list[Any])
    texts = asked if isinstance(asked, list) else [asked]
    if not all(isinstance(text, str) for text in texts):
        raise UnsupportedByTier("input: Ollama embeds text, no tokens", param="input")
    if "" in texts:
        raise InvalidRequest("input: a text of it is empty", param="input")
    return texts


def as_openai(answer: bytes) -> bytes:
    """Ollama's answer as OpenAI's list of embeddings, as JSON text; the vectors keep their bytes.

    Raises:
        BackendFault: It is not one.
    """
    try:
        found = _embedded.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        raise BackendFault("Ollama's embeddings were cut off or are no JSON") from None
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(found.embeddings)
    ]
    usage = {"prompt_tokens": found.prompt_eval_count, "total_tokens": found.prompt_eval_count}
    return _encoder.encode({"object": "list", "data": data, "usage": usage})
