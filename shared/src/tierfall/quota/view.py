"""The quotas as an ingress sees them: the ledger's documents, followed, so that looking costs no message."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tierfall.errors import StoreUnreadable
from tierfall.ledger import unpack_account
from tierfall.quota.plan import plans
from tierfall.quota.standing import refusal, standing_of

if TYPE_CHECKING:
    from tierfall.config import Config
    from tierfall.ledger import Account, Spent
    from tierfall.quota.plan import Plan
    from tierfall.quota.standing import Standing
    from tierfall.store import Bucket, Entry, Watch

_log: Final = logging.getLogger("tierfall.quota")


class QuotaView:
    """Follows the accounts of all models with a quota, as soon as there is one.

    What it knows is some milliseconds old. So it can only spare requests a way that is in vain: whether one
    may be sent is decided by the worker, in the ledger.

    Args:
        bucket: The ledger's; its owner keeps its clock right.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._plans: dict[str, Plan] = {}
        self._patience: dict[str, float] = {}
        self._accounts: dict[str, Account] = {}
        self._watch: Watch | None = None

    def apply(self, config: Config) -> None:
        """Makes these the quotas. The first one begins to follow the bucket, which makes it if need be."""
        self._plans = plans(config)
        self._patience = {name: config.models[name].deadlines.first_token for name in self._plans}
        if self._plans and self._watch is None:
            self._watch = self._bucket.watch(self._take)

    async def close(self) -> None:
        """Follows nothing any more."""
        if self._watch is not None:
            await self._watch.close()
            self._watch = None

    @property
    def problem(self) -> str:
        """Why the documents cannot be followed at the moment; empty while they can, or need not."""
        return self._watch.problem if self._watch is not None else ""

    def spent(self, model: str) -> Spent | None:
        """Why it is in vain to ask the model's tier, if it is.

        A window that has room again before the model's first-token deadline is no reason: the worker, or the
        ladder, waits for it.
        """
        plan = self._plans.get(model)
        if plan is None:
            return None
        return refusal(plan, self._accounts, self._bucket.clock.now(), self._patience[model])

    def standings(self) -> list[Standing]:
        """Every model with a quota, in the config's order."""
        now = self._bucket.clock.now()
        return [standing_of(plan, self._accounts, now) for plan in self._plans.values()]

    def _take(self, entry: Entry) -> None:
        if entry.deleted:
            self._accounts.pop(entry.key, None)
            return
        try:
            self._accounts[entry.key] = unpack_account(entry.value, entry.key)
        except StoreUnreadable as error:
            _log.error("%s", error.message)
