"""One of a tier's keys: its connections, its health, and what its provider wants to hear no requests for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tierfall.errors import BackendDown, QuotaExhausted, RateLimited, TierfallError
from tierfall.ledger import show_wait
from tierfall.quota import key_label, scope_of
from tierfall.redact import redactor_of
from tierfall.upstream import CLOUD_CONNECT_TIMEOUT_S, CLOUD_KEEPALIVE_S, OpenAIUpstream, Source
from tierfall_worker_cloud.account import Account

if TYPE_CHECKING:
    from tierfall.config import CloudTier
    from tierfall_worker_cloud.providers import Provider


class Rest(msgspec.Struct, frozen=True):
    """Until then, on the clock that never goes back, the provider is not asked."""

    until: float
    why: str
    lasting: bool
    """Whether its quota is spent, rather than its rate too high."""


class Access:
    """A provider through one key.

    Args:
        name: The tier's name.
        tier: Its config.
        provider: What is known of the provider.
        index: Which of the tier's keys.

    Attributes:
        label: What the key is called: its variable's name, or ``key-1``.
        scope: Its account in the ledger.
    """

    def __init__(self, name: str, tier: CloudTier, provider: Provider, index: int) -> None:
        key = tier.keys[index]
        path = f"tiers.{name}.api_keys[{index}]" if tier.api_keys else f"tiers.{name}.api_key"
        self.label = key_label(tier, index)
        self.scope = scope_of(name, tier, index)
        self.upstream = OpenAIUpstream(
            Source(provider.name, provider.base_url, key.source or path),
            headers={"Authorization": f"Bearer {key.value}"} if key else {},
            connect_timeout_s=CLOUD_CONNECT_TIMEOUT_S,
            keepalive_s=CLOUD_KEEPALIVE_S,
        )
        self.account = Account(self.upstream, key)
        self.redactor = redactor_of(tier)
        self._rests: dict[str, Rest] = {}

    def rest(self, of: str, seconds: float, why: str, *, lasting: bool) -> None:
        """Asks nothing for a while: for one model, or (empty) for any."""
        until = time.monotonic() + seconds
        known = self._rests.get(of)
        if known is None or known.until < until:
            self._rests[of] = Rest(until, why, lasting)

    def resting(self, of: str) -> TierfallError | None:
        """What a request for this model is refused with at the moment, if it is."""
        now = time.monotonic()
        for name in ("", of):
            found = self._rests.get(name)
            if found is None:
                continue
            if found.until > now:
                kind = QuotaExhausted if found.lasting else RateLimited
                left_s = found.until - now
                return kind(f"{found.why}; not asked for another {show_wait(left_s)}", retry_after=left_s)
            del self._rests[name]
        return None

    @property
    def down(self) -> BackendDown | None:
        """What makes the key useless at the moment, if anything does."""
        reason = self.account.down_because
        if not reason:
            return None
        return BackendDown(f"{self.upstream.source.name} cannot be used at the moment", internal=reason)
