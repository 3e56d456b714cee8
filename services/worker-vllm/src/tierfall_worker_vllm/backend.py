"""One engine that speaks OpenAI's API, as the worker runtime's backend."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from tierfall.chat.limit import MAX_COMPLETION_TOKENS, MAX_TOKENS
from tierfall.protocol.operation import Operation
from tierfall.upstream import OpenAIUpstream, Source, continued, encode, prepare, set_model
from tierfall.worker import Prefill
from tierfall_worker_vllm.engine import Engine, Flavour
from tierfall_worker_vllm.llama import LlamaMender, refuse_ignored

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tierfall.config import VllmTier
    from tierfall.worker import Ask, Health


class VllmBackend:
    """Sends requests on as they are and passes chunks back as they come.

    Args:
        name: The tier's name, for error messages.
        tier: Its config.
        expected: The engine's names of the models that the config has on this tier.
    """

    def __init__(self, name: str, tier: VllmTier, expected: frozenset[str] = frozenset()) -> None:
        source = Source(name, tier.base_url, tier.api_key.source or f"tiers.{name}.api_key")
        headers = {"Authorization": f"Bearer {tier.api_key.value}"} if tier.api_key else {}
        self._upstream = OpenAIUpstream(source, headers=headers)
        self._engine = Engine(self._upstream, expected)

    @property
    def base_url(self) -> str:
        """The engine's."""
        return self._upstream.base_url

    async def start(self) -> None:
        """Nothing to open: connections come with the first request."""

    async def probe(self) -> Health:
        """The engine's health, and now and then its models."""
        return await self._engine.probe()

    def chat(self, ask: Ask) -> AsyncGenerator[bytes, None]:
        """Streams one answer.

        Raises:
            UnsupportedByTier: The engine would ignore a field.
            TierfallError: What :meth:`tierfall.upstream.OpenAIUpstream.answer` raises.
        """
        mender = self._mender(ask)
        limit = ask.body.pop(MAX_COMPLETION_TOKENS, None)
        if limit is not None:  # every engine knows the older name, not every one this
            ask.body.setdefault(MAX_TOKENS, limit)
        prepare(ask.body, ask.backend_model)
        payloads = self._upstream.answer(ask.operation, encode(ask.body), ask.trace_headers)
        return payloads if mender is None else _mended(payloads, mender)

    complete = chat
    """The engine's ``/v1/completions`` differs in nothing else."""

    async def embed(self, ask: Ask) -> AsyncGenerator[bytes, None]:
        """One answer's vectors.

        Raises:
            UnsupportedByTier: The engine would ignore a field.
            TierfallError: What :meth:`tierfall.upstream.OpenAIUpstream.answer` raises.
        """
        self._mender(ask)
        set_model(ask.body, ask.backend_model)
        answer = self._upstream.answer(ask.operation, encode(ask.body), ask.trace_headers)
        async with aclosing(answer) as payloads:
            async for payload in payloads:
                yield payload

    def _mender(self, ask: Ask) -> LlamaMender | None:
        if self._engine.flavour is not Flavour.LLAMA_CPP:
            return None
        refuse_ignored(ask)
        return LlamaMender.of(ask)

    def prefill(self, ask: Ask, text: str) -> Prefill:
        """For vLLM and llama.cpp, which go on from a last assistant message, each in its own way."""
        messages = ask.body.get("messages")
        if messages is None or self._engine.flavour is Flavour.OTHER:
            return Prefill.UNSUPPORTED
        ask.body["messages"] = continued(messages, text)
        if self._engine.flavour is Flavour.VLLM:
            ask.body["continue_final_message"] = msgspec.Raw(b"true")
            ask.body["add_generation_prompt"] = msgspec.Raw(b"false")
        return Prefill.SILENT

    async def count_prompt(self, ask: Ask) -> int:
        """As the engine counts, where it can."""
        field = "messages" if ask.operation is Operation.CHAT else "prompt"
        return await self._engine.count_tokens(ask.backend_model, field, ask.body[field])

    async def close(self) -> None:
        """Closes the engine's connections."""
        await self._upstream.close()


async def _mended(payloads: AsyncGenerator[bytes, None], mender: LlamaMender) -> AsyncGenerator[bytes, None]:
    async with aclosing(payloads):
        async for payload in payloads:
            yield mender.mend(payload)
