"""One provider behind its keys, as the worker runtime's backend."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from tierfall.errors import BackendDown, QuotaExhausted, RateLimited, TierfallError
from tierfall.upstream import continued
from tierfall.worker import PROGRESS_EVERY_S, Health, Prefill, Progress
from tierfall_worker_cloud.access import Access
from tierfall_worker_cloud.desk import Desk, soonest
from tierfall_worker_cloud.request import shape
from tierfall_worker_cloud.ticket import concerns_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tierfall.config import CloudTier
    from tierfall.worker import Ask
    from tierfall_worker_cloud.chunks import ChunkMender
    from tierfall_worker_cloud.desk import Book
    from tierfall_worker_cloud.providers import Provider
    from tierfall_worker_cloud.ticket import Ticket


class CloudBackend:
    """Sends requests in the provider's form, and its chunks back in OpenAI's.

    Args:
        name: The tier's name.
        tier: Its config.
        provider: What is known of the provider; its ``base_url`` is the one that counts.
        book: The tier's quotas, if it has any; closed with the backend.
    """

    def __init__(self, name: str, tier: CloudTier, provider: Provider, book: Book | None = None) -> None:
        self._provider = provider
        self._book = book
        self._accesses = [Access(name, tier, provider, index) for index in range(len(tier.keys))]
        self._desk = Desk(self._accesses, provider, book)

    @property
    def base_url(self) -> str:
        """The provider's."""
        return self._accesses[0].upstream.base_url

    async def start(self) -> None:
        """Nothing to open: connections come with the first request."""

    async def probe(self) -> Health:
        """Whether the provider is there and takes a key; one of several is enough."""
        found = await asyncio.gather(*(access.account.probe() for access in self._accesses))
        up = [health for health in found if health.state == "up"]
        reasons = [health.reason for health in found if health.reason]
        models = dict.fromkeys(model for health in up for model in health.models)
        return Health("up" if up else "down", "; ".join(dict.fromkeys(reasons)), tuple(models))

    async def chat(self, ask: Ask) -> AsyncGenerator[bytes | Progress, None]:
        """One answer, streamed where it can be, with the next key that can be used.

        A key that the provider refuses or limits costs the request nothing but the way: it goes out again
        with another, as long as there is one and nothing of an answer has come.

        Raises:
            UnsupportedByTier: The provider cannot honour a field of the request.
            RateLimited, QuotaExhausted, QuotaUnknown: What :meth:`Desk.admit` raises.
            TierfallError: What :meth:`tierfall.upstream.OpenAIUpstream.answer` raises.
        """
        left = self._desk.round()
        # Shaping uses the body up, and a reservation needs to know it.
        asked = ask if self._book is None else msgspec.structs.replace(ask, body=dict(ask.body))
        body = shape(self._provider, ask.body, ask.backend_model, ask.operation)
        refused: list[TierfallError] = []
        while True:
            ticket = await self._admit(asked, left, refused)
            account, mender = ticket.access.account, self._mender()
            began, error = False, None
            try:
                while (wait_s := ticket.wait_s) > 0:
                    yield Progress("queued")
                    await asyncio.sleep(min(wait_s, PROGRESS_EVERY_S))
                async with aclosing(ticket.send(ask, body)) as payloads:
                    async for payload in payloads:
                        began = True
                        account.works()
                        mended = mender.mend(payload) if mender else payload
                        if ticket.counts:
                            ticket.saw(mended)
                        yield mended
            except TierfallError as failed:
                error = failed.detached()  # kept in this very frame
                account.note(error)
                left = [access for access in left if access is not ticket.access]
                refused.append(error)
                if began or not concerns_key(error):
                    raise
                if not left:
                    raise soonest(refused) from None
            else:
                return
            finally:
                ticket.close(error)

    complete = chat
    embed = chat
    """What differs is in the provider's rules, and in how its answer comes."""

    async def _admit(self, ask: Ask, left: Sequence[Access], refused: Sequence[TierfallError]) -> Ticket:
        """The next key's ticket; if there is none, the best of what all keys were refused with."""
        try:
            return await self._desk.admit(ask, left)
        except (RateLimited, QuotaExhausted, BackendDown) as error:
            raise soonest([*refused, error]) from None

    def _mender(self) -> ChunkMender | None:
        return self._provider.mender() if self._provider.mender else None

    def prefill(self, ask: Ask, text: str) -> Prefill:
        """As the provider's data says; most have no way to go on from a given beginning."""
        messages = ask.body.get("messages")
        flag = self._provider.prefill_flag
        if messages is None or not flag:
            return Prefill.UNSUPPORTED
        ask.body["messages"] = continued(messages, text, flag)
        return Prefill.ECHOED

    async def close(self) -> None:
        """Closes the provider's connections, and writes what is still to be settled."""
        for access in self._accesses:
            await access.upstream.close()
        if self._book is not None:
            await self._book.ledger.close()
