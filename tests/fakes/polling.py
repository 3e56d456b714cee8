"""Waiting for a condition."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S: Final = 0.01


async def until(condition: Callable[[], object], *, timeout_s: float = 15.0) -> None:
    """Returns once ``condition()`` is true.

    Raises:
        TimeoutError: It was not, for ``timeout_s``.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(POLL_S)
