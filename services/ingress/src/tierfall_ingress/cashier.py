"""What keys with limits use: reserved in the ledger before the ladder climbs, settled when all is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from tierfall.errors import BusError, KeyQuotaSpent, KeyRateLimited, StoreUnavailable
from tierfall.keys import ledger_limits
from tierfall.ledger import Ledger, Metric, Spent, Wish
from tierfall_ingress.estimate import read_estimate, usual
from tierfall_ingress.ratelimit import rate_limit_headers

if TYPE_CHECKING:
    from tierfall.config import Config
    from tierfall.errors import TierfallError
    from tierfall.ledger import Account, Grant, Limit
    from tierfall.protocol.envelope import Ending
    from tierfall.store import Bucket
    from tierfall_ingress.ask import Ask
    from tierfall_ingress.estimate import Estimate
    from tierfall_ingress.keys import Allowance
    from tierfall_ingress.meters import Meters
    from tierfall_ingress.wire import Header

TRIES: Final = 4
"""How often a request without ``max_tokens`` is fitted anew into what others have just left."""
AGAIN_S: Final = 1.0
"""When to try again what only requests under way, or a store that does not answer, stand against."""


class Cashier:
    """The one who asks the ledger, for all requests of an ingress.

    Args:
        bucket: The ledger's; :class:`tierfall_ingress.store.StoreCheck` makes it.
        meters: Where refusals are counted.
    """

    def __init__(self, bucket: Bucket, meters: Meters) -> None:
        self.meters = meters
        self.ledger = Ledger(bucket)

    async def open(self, allowance: Allowance, ask: Ask, config: Config, rungs: tuple[str, ...]) -> Charge:
        """The charge of one request, which any of these models may answer; nothing is reserved yet.

        Raises:
            InvalidRequest: What it may come to cannot be counted; ``param`` names the field.
        """
        # A key that is limited in requests alone costs no look into the body.
        counts = any(limit.metric is not Metric.REQUESTS for limit in ledger_limits(allowance.limits))
        return Charge(self, allowance, config, rungs, await read_estimate(ask) if counts else None)

    def at(self, account: Account) -> float:
        """The time that counts for an account, in Unix seconds."""
        return account.clock(self.ledger.now())

    async def reserve(self, scope: str, wish: Wish) -> Grant:
        """As :meth:`tierfall.ledger.Ledger.reserve`.

        Raises:
            Spent: It does not fit.
            StoreUnavailable: Nobody can say whether it fits, so it may not go.
        """
        try:
            return await self.ledger.reserve(scope, wish)
        except (BusError, TimeoutError) as error:
            why = str(error) or "the store does not answer"
            raise StoreUnavailable(
                f"the limits of this API key cannot be checked at the moment: {why}", retry_after=AGAIN_S
            ) from error

    async def close(self) -> None:
        """Writes what is still to be settled."""
        await self.ledger.close()


class Charge:
    """One request's part of a key's limits.

    Attributes:
        headers: What the answer, or the refusal, tells of the limits.
    """

    def __init__(
        self,
        cashier: Cashier,
        allowance: Allowance,
        config: Config,
        rungs: tuple[str, ...],
        found: Estimate | None,
    ) -> None:
        self.headers: list[Header] = []
        self._cashier = cashier
        self._scope = allowance.scope
        self._limits = ledger_limits(allowance.limits)
        self._models = config.models
        self._rungs = rungs
        deadlines = config.models[rungs[0]].deadlines
        self._held_s = deadlines.budget + deadlines.total
        self._estimate = found
        self._grant: Grant | None = None

    async def reserve(self) -> None:
        """Counts the request, and what it may come to.

        Raises:
            KeyRateLimited, KeyQuotaSpent: A limit of the key has no room for it; nothing was counted.
            StoreUnavailable: Nobody can say.
        """
        most = self._estimate.most if self._estimate is not None else 0
        tries = 0
        while self._grant is None:
            wish = self._wish(most)
            try:
                self._grant = await self._cashier.reserve(self._scope, wish)
            except Spent as spent:
                account = self._look()
                smaller = self._smaller(spent, account, most)
                if smaller is None:
                    raise self._refusal(spent, account, wish) from None
                tries += 1
                most = smaller if tries < TRIES else 0
        self._look()

    def settle(self, model: str | None, ending: Ending | None, outputs: int) -> None:
        """Puts in place of what was reserved what was used.

        Args:
            model: Who answered, or was at work when the client left, if anybody.
            ending: What its worker counted, if it has.
            outputs: At least how many tokens the client got, if it streamed.
        """
        grant, found = self._grant, self._estimate
        if grant is None or found is None:
            return
        if ending is not None and not ending.estimated and ending.prompt_tokens + ending.completion_tokens:
            prompt, completion = ending.prompt_tokens, ending.completion_tokens
        elif model is not None:
            seen = max(outputs, 0 if ending is None else ending.completion_tokens)
            prompt, completion = found.prompt, seen or usual(found.most)
        else:
            prompt = completion = 0
        cost = self._cost(prompt, completion, (model,) if model in self._models else self._rungs)
        self._cashier.ledger.settle(grant, {Metric.TOKENS: prompt + completion, Metric.COST: cost})

    def _wish(self, most: int) -> Wish:
        amounts, estimates = {Metric.REQUESTS: 1}, {}
        if (found := self._estimate) is not None:
            amounts[Metric.TOKENS] = found.prompt + most
            estimates[Metric.TOKENS] = found.prompt + usual(most)
            amounts[Metric.COST] = self._cost(found.prompt, most, self._rungs)
            estimates[Metric.COST] = self._cost(found.prompt, usual(most), self._rungs)
        return Wish(limits=self._limits, amounts=amounts, estimates=estimates, held_s=self._held_s)

    def _cost(self, prompt: int, completion: int, models: tuple[str | None, ...]) -> int:
        """In millionths: the dearest of these models, as any of them may answer."""
        prices = [self._models[name].price for name in models if name is not None]
        return max(math.ceil(prompt * price.prompt + completion * price.completion) for price in prices)

    def _look(self) -> Account:
        """The account as it is now; the answer tells what is left of it."""
        account = self._cashier.ledger.known(self._scope)
        self.headers = rate_limit_headers(account, self._limits, self._cashier.at(account))
        return account

    def _smaller(self, spent: Spent, account: Account, most: int) -> int | None:
        """What of an assumed answer still fits, in tokens; None where that is not what is in the way.

        At the least the prompt has to fit: the answer of the last request before a limit may go beyond it.
        """
        found, limit = self._estimate, spent.limit
        if found is None or found.told or not most or limit is None or limit.metric is Metric.REQUESTS:
            return None
        left = limit.amount - account.used(limit, self._cashier.at(account))
        if limit.metric is Metric.TOKENS:
            fitting = left - found.prompt
        else:
            price = max(self._models[name].price.completion for name in self._rungs)
            fitting = int((left - self._cost(found.prompt, 0, self._rungs)) / price) if price else 0
        return min(max(0, fitting), most - 1)

    def _refusal(self, spent: Spent, account: Account, wish: Wish) -> TierfallError:
        limit = spent.limit
        if limit is not None:
            self._cashier.meters.limited(limit.metric, limit.window)
        said = f"this API key: {spent.message}"
        if (
            limit is not None
            and limit.metric is not Metric.REQUESTS
            and _is_held(limit, account, wish, self._cashier.at(account))
        ):
            # What requests under way have reserved and will hardly use comes back as soon as they end.
            return KeyRateLimited(f"{said}; some of it is held by requests under way", retry_after=AGAIN_S)
        if limit is not None and wish.amounts[limit.metric] > limit.amount:
            return KeyRateLimited(f"{said}; ask for less, or lower max_tokens", should_retry=False)
        if spent.lasting:
            return KeyQuotaSpent(said, retry_after=spent.retry_after, should_retry=False)
        return KeyRateLimited(said, retry_after=spent.retry_after)


def _is_held(limit: Limit, account: Account, wish: Wish, at: float) -> bool:
    """Whether the wish would fit if all that is under way came to what is usual."""
    back = sum(
        release.amount
        for held in account.open.values()
        for release in held.releases
        if release.key == limit.key and held.expires_at > at
    )
    return back > 0 and account.used(limit, at) - back + wish.amounts[limit.metric] <= limit.amount
