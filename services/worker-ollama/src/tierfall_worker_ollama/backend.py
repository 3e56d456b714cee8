"""The backend port over Ollama's native API."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.config.schema import OllamaTier
from tierfall.errors import (
    BackendDown,
    BackendError,
    BackendFault,
    ConfigError,
    StreamBroken,
    UnsupportedByTier,
)
from tierfall.worker.backend import PROGRESS_EVERY_S, Health, Prefill, Progress
from tierfall_worker_ollama.answer import Answer
from tierfall_worker_ollama.client import OllamaClient, StatusRefusal
from tierfall_worker_ollama.completion import TextAnswer, native_completion
from tierfall_worker_ollama.embedding import as_openai, native_embedding
from tierfall_worker_ollama.library import Library
from tierfall_worker_ollama.pull import Puller
from tierfall_worker_ollama.refusal import explain, not_pulled
from tierfall_worker_ollama.request import native_request
from tierfall_worker_ollama.window import refuse_cut

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from tierfall.bus import Bus
    from tierfall.config.schema import Config, Tier
    from tierfall.protocol.presence import BackendState
    from tierfall.worker.backend import Ask
    from tierfall_worker_ollama.request import NativeRequest

SLOW_PROBES: Final = 3
"""Probes without an answer in time after which Ollama counts as down: inference may hold every core."""


class OllamaBackend:
    """One Ollama, for one tier.

    Args:
        name: The tier's name in the config, for messages.
        tier: Its settings.
        models: The backend models that the config names for it.
    """

    def __init__(self, name: str, tier: OllamaTier, models: Iterable[str]) -> None:
        self._name = name
        self._tier = tier
        self._client = OllamaClient(tier.base_url)
        self._library = Library(self._client, models)
        self._puller = Puller(self._client)
        self._slow_probes = 0
        self._health = Health("down", "not asked yet")

    @classmethod
    def from_tier(cls, name: str, tier: Tier, config: Config, *_: Bus) -> OllamaBackend:
        """The backend of one tier of the config, for :func:`tierfall.worker.run_worker`.

        Raises:
            ConfigError: The tier is of another kind, or its URL is that of Ollama's OpenAI endpoint.
        """
        if not isinstance(tier, OllamaTier):
            raise ConfigError(f"tiers.{name}.worker: {tier.kind}, where this worker serves ollama")
        if tier.base_url.rstrip("/").endswith("/v1"):
            raise ConfigError(f"tiers.{name}.base_url: Ollama's native API is used; leave out the /v1")
        return cls(
            name, tier, (model.backend_model for model in config.models.values() if model.tier == name)
        )

    @property
    def base_url(self) -> str:
        """The server's, without a path."""
        return self._client.base_url

    async def start(self) -> None:
        """Nothing to open: connections come with the first request."""

    def prefill(self, ask: Ask, text: str) -> Prefill:  # noqa: ARG002 - the port's signature
        """It depends on the model's template whether Ollama goes on in the same message: not relied on."""
        return Prefill.UNSUPPORTED

    async def close(self) -> None:
        """Stops a pull, closes every connection."""
        await self._puller.close()
        await self._client.close()

    async def probe(self) -> Health:
        """Up as long as one configured model can be served; what is missing is named, or being pulled."""
        self._health = await self._look()
        return self._health

    async def _look(self) -> Health:
        try:
            await self._library.look()
        except BackendFault as error:
            self._slow_probes += 1
            return self._health if self._slow_probes < SLOW_PROBES else self._down(error.internal)
        except BackendError as error:
            return self._down(error.internal)
        except (StatusRefusal, msgspec.DecodeError):
            return self._down(f"what listens at tiers.{self._name}.base_url does not speak Ollama's API")
        self._slow_probes = 0
        await self._library.look_at_version()
        return self._judge()

    def _down(self, reason: str) -> Health:
        self._library.forget_version()
        return Health("down", reason)

    def _judge(self) -> Health:
        missing = self._library.missing
        if self._tier.pull:
            self._puller.want(missing)
            reasons = [self._puller.state(model) for model in missing]
        else:
            reasons = [
                f"{model} is not pulled: run `ollama pull {model}`, or set tiers.{self._name}.pull: true"
                for model in missing
            ]
        reason = "; ".join(filter(None, reasons))
        if not self._library.useless:
            return Health("up", reason, self._library.names, self._library.engine)
        state: BackendState = "loading" if self._tier.pull else "down"
        return Health(state, reason, self._library.names, self._library.engine)

    def chat(self, ask: Ask) -> AsyncGenerator[bytes | Progress, None]:
        """One request over ``/api/chat``; see :meth:`_generate`."""
        native = native_request(ask, self._tier)
        self._refuse_cut(ask, native, "messages")
        return self._generate("/api/chat", ask, native, Answer(logprobs=native.logprobs))

    def complete(self, ask: Ask) -> AsyncGenerator[bytes | Progress, None]:
        """One request over ``/api/generate``; see :meth:`_generate`."""
        native = native_completion(ask, self._tier)
        self._refuse_cut(ask, native, "prompt")
        return self._generate("/api/generate", ask, native, TextAnswer(logprobs=native.logprobs))

    def _refuse_cut(self, ask: Ask, native: NativeRequest, field: str) -> None:
        library = self._library
        refuse_cut(native.payload, library.engine, library.window(ask.backend_model), field)

    async def embed(self, ask: Ask) -> AsyncGenerator[bytes | Progress, None]:
        """One request over ``/api/embed``, which answers once all of it is embedded.

        Raises:
            TierfallError: As :func:`native_embedding`, :func:`explain` and :meth:`OllamaClient.post` say.
        """
        payload = native_embedding(ask, self._tier)
        try:
            await self._check_model(ask)
            answer = asyncio.ensure_future(self._client.post("/api/embed", payload, ask.trace_headers))
            try:
                async with aclosing(self._until(answer, ask.backend_model)) as news:
                    async for progress in news:
                        yield progress
                yield as_openai(await answer)
            finally:
                await _stop(answer)
        except StatusRefusal as refusal:
            raise explain(refusal, ask) from None

    async def _generate(
        self, path: str, ask: Ask, native: NativeRequest, answer: Answer
    ) -> AsyncGenerator[bytes | Progress, None]:
        """Streams one answer.

        Ollama sends its headers with the first line, after loading and reading the prompt: until then the
        generator says each second which of the two it probably is. The request is not touched by that; a
        cancelled load begins from nothing the next time.

        Raises:
            TierfallError: As :func:`explain`, :meth:`OllamaClient.lines` and :meth:`Answer.feed` say.
        """
        try:
            await self._check_model(ask, native.image)
            async with aclosing(self._client.lines(path, native.payload, headers=ask.trace_headers)) as lines:
                first = asyncio.ensure_future(anext(lines, None))
                try:
                    async with aclosing(self._until(first, ask.backend_model)) as news:
                        async for progress in news:
                            yield progress
                    line = await first
                finally:
                    await _stop(first)
                while line is not None and not answer.done:
                    for chunk in answer.feed(line):
                        yield chunk
                    line = None if answer.done else await anext(lines, None)
        except StatusRefusal as refusal:
            raise explain(refusal, ask) from None
        if not answer.done:
            raise StreamBroken("Ollama ended its answer without a last line")

    async def _check_model(self, ask: Ask, image: str = "") -> None:
        """Says no before Ollama is asked where that is known, and where Ollama itself would not.

        ``image`` is the place of the request's first image, empty without one.
        """
        model = ask.backend_model
        if not self._library.fresh:
            with contextlib.suppress(BackendFault, msgspec.DecodeError):
                await self._library.look()
        if self._library.lacks(model):
            state = self._puller.state(model)
            raise BackendDown(state) if state else not_pulled(model)
        if image and not await self._library.sees(model):
            raise UnsupportedByTier(f"{image}: {model} takes no images", param=image)

    async def _until(self, first: asyncio.Future[Any], model: str) -> AsyncGenerator[Progress, None]:
        # Ollama lists a model as loaded from the moment that it begins to load it, so only a look from before
        # this request tells; a later one can only add that the model is gone.
        loading = not self._library.loaded(model)
        if loading:
            yield Progress("loading")
        while not (await asyncio.wait({first}, timeout=PROGRESS_EVERY_S))[0]:
            loading = loading or not self._library.loaded(model)
            yield Progress("loading" if loading else "prefilling")


async def _stop(task: asyncio.Future[Any]) -> None:
    """Ends a read that may be under way, so that its generator can be closed; its outcome is not needed."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
