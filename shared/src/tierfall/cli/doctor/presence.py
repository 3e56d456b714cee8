"""Who serves which tier, as the workers' beats tell."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tierfall.protocol import subjects
from tierfall.protocol.presence import BEAT_EVERY_S, Beat, unpack_beat

if TYPE_CHECKING:
    from tierfall.bus import Bus, Message

LISTEN_S: Final = 2 * BEAT_EVERY_S
"""Two beats of each worker: one may be late or lost."""


async def listen(bus: Bus, listen_s: float = LISTEN_S) -> dict[str, list[Beat]]:
    """The last beat of every worker that is there, by tier.

    Args:
        bus: Connected.
        listen_s: How long to listen, in seconds.
    """
    heard: defaultdict[str, dict[str, Beat]] = defaultdict(dict)

    def take(message: Message) -> None:
        beat = unpack_beat(message.data)
        if beat is not None:
            heard[beat.tier][beat.worker] = beat

    subscription = await bus.subscribe(subjects.PRESENCE_ALL, take)
    await asyncio.sleep(listen_s)
    await subscription.close()
    return {
        tier: [beat for beat in beats.values() if not beat.gone and not beat.draining]
        for tier, beats in heard.items()
    }
