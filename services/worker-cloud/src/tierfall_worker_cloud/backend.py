"""One provider behind one key, as the worker runtime's backend."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from tierfall.errors import TierfallError
from tierfall.upstream import (
    CLOUD_CONNECT_TIMEOUT_S,
    CLOUD_KEEPALIVE_S,
    OpenAIUpstream,
    Source,
    continued,
)
from tierfall.worker import Prefill
from tierfall_worker_cloud.account import Account
from tierfall_worker_cloud.request import shape

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tierfall.config import CloudTier
    from tierfall.worker import Ask, Health
    from tierfall_worker_cloud.providers import Provider


class CloudBackend:
    """Sends requests in the provider's form, and its chunks back in OpenAI's.

    Args:
        name: The tier's name.
        tier: Its config.
        provider: What is known of the provider; its ``base_url`` is the one that counts.
    """

    def __init__(self, name: str, tier: CloudTier, provider: Provider) -> None:
        key = tier.api_key
        self._provider = provider
        self._upstream = OpenAIUpstream(
            Source(provider.name, provider.base_url, key.source or f"tiers.{name}.api_key"),
            headers={"Authorization": f"Bearer {key.value}"} if key else {},
            connect_timeout_s=CLOUD_CONNECT_TIMEOUT_S,
            keepalive_s=CLOUD_KEEPALIVE_S,
        )
        self._account = Account(self._upstream, key)

    @property
    def base_url(self) -> str:
        """The provider's."""
        return self._upstream.base_url

    async def start(self) -> None:
        """Nothing to open: connections come with the first request."""

    async def probe(self) -> Health:
        """Whether the provider is there and takes the key."""
        return await self._account.probe()

    async def chat(self, ask: Ask) -> AsyncGenerator[bytes, None]:
        """Streams one answer.

        Raises:
            UnsupportedByTier: The provider cannot honour a field of the request.
            TierfallError: What :meth:`tierfall.upstream.OpenAIUpstream.stream_chat` raises.
        """
        body = shape(self._provider, ask.body, ask.backend_model)
        mender = self._provider.mender() if self._provider.mender else None
        try:
            async with aclosing(self._upstream.stream_chat(body, ask.trace_headers)) as payloads:
                async for payload in payloads:
                    self._account.works()
                    yield mender.mend(payload) if mender else payload
        except TierfallError as error:
            self._account.note(error)
            raise

    def prefill(self, ask: Ask, text: str) -> Prefill:
        """As the provider's data says; most have no way to go on from a given beginning."""
        messages = ask.body.get("messages")
        flag = self._provider.prefill_flag
        if messages is None or not flag:
            return Prefill.UNSUPPORTED
        ask.body["messages"] = continued(messages, text, flag)
        return Prefill.ECHOED

    async def close(self) -> None:
        """Closes the provider's connections."""
        await self._upstream.close()
