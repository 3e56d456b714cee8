"""What the server refuses: counted, logged with a brake, and subscriptions asked for again."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Final

from tierfall.bus.wire import PERMISSIONS, SLOW_CONSUMER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.bus.options import BusCounters
    from tierfall.bus.subscription import Subscription
    from tierfall.bus.throttle import Throttle

logger = logging.getLogger("tierfall.bus")

ASK_AGAIN_S: Final = 5.0
"""How soon a refused subscription is asked for again."""
_SUBSCRIPTION: Final = re.compile(r'for subscription to "([^"]+)"')


class Refusals:
    """The errors of one bus's servers.

    A server forgets a subscription that it refused. Its permissions can change while it runs (a tier is
    added, the server reloads its users) without a reconnect, so the subscription is asked for again.

    Args:
        counters: Where they are counted.
        throttle: The brake for log lines.
        subscriptions: Those of the bus, by id.
    """

    def __init__(
        self, counters: BusCounters, throttle: Throttle, subscriptions: Mapping[int, Subscription]
    ) -> None:
        self._counters = counters
        self._throttle = throttle
        self._subscriptions = subscriptions
        self._loop = asyncio.get_running_loop()
        self._due: dict[str, asyncio.TimerHandle] = {}

    def note(self, text: str) -> None:
        """Takes in one error's text, in lower case as nats-py gives it."""
        if PERMISSIONS in text:
            self._counters.permission_violations += 1
            if found := _SUBSCRIPTION.search(text):
                self._ask_again_later(found[1])
        elif SLOW_CONSUMER in text:
            self._counters.slow_consumer += 1
        held = self._throttle.pass_(text)
        if held is not None:
            logger.error("NATS says: %s (%d more since the last such line)", text, held)

    def close(self) -> None:
        """Asks for nothing any more."""
        for timer in self._due.values():
            timer.cancel()
        self._due.clear()

    def _ask_again_later(self, subject: str) -> None:
        if subject not in self._due:
            self._due[subject] = self._loop.call_later(ASK_AGAIN_S, self._ask_again, subject)

    def _ask_again(self, subject: str) -> None:
        del self._due[subject]
        for subscription in self._subscriptions.values():
            if subscription.subject.lower() == subject:
                subscription.ask_again()
