"""When ``tierfall up`` starts its nats-server again: after a write error, with room, and not too often."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from fakes.polling import until
from tierfall.cli.up import store_guard
from tierfall.cli.up.console import Console
from tierfall.cli.up.store_guard import StoreGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FULL: Final = (
    "[7] [ERR] JetStream failed to store a msg on stream '$G > KV_tierfall_quota':"
    " write /x/1.blk: no space left on device"
)


class Usage(NamedTuple):
    """What :func:`shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


class Guarded:
    """A guard whose disk and restarts are the test's."""

    def __init__(self, folder: Path) -> None:
        self.free = 0
        self.restarts = 0
        self.said = io.StringIO()
        self.guard = StoreGuard(folder, Console(self.said), self._restart)

    def _restart(self) -> None:
        self.restarts += 1


@pytest.fixture
async def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guarded]:
    """A guard that runs and looks often."""
    found = Guarded(tmp_path)
    monkeypatch.setattr(store_guard, "LOOK_EVERY_S", 0.005)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, found.free))
    task = asyncio.create_task(found.guard.run())
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_it_waits_for_room_and_names_the_reason(guarded: Guarded) -> None:
    """Other lines are no reason; a start without room would end in the same error."""
    guarded.guard.hear("[7] [WRN] 127.0.0.1:5 - cid:3 - Readloop processing time: 2.1s")
    guarded.guard.hear(FULL)
    guarded.guard.hear(FULL)
    await until(lambda: "once 4 MiB are" in guarded.said.getvalue())
    assert "write /x/1.blk: no space left on device" in guarded.said.getvalue()
    assert guarded.said.getvalue().count("cannot keep client keys") == 1
    assert guarded.restarts == 0
    guarded.free = store_guard.ROOM_BYTES
    await until(lambda: guarded.restarts == 1)


async def test_a_start_that_does_not_help_is_not_repeated_at_once(guarded: Guarded) -> None:
    """As with a disk that fails: the next start waits."""
    guarded.free = store_guard.ROOM_BYTES
    guarded.guard.hear(FULL)
    await until(lambda: guarded.restarts == 1)
    await until(lambda: not guarded.guard._failed.is_set())
    guarded.guard.hear(FULL)
    await until(lambda: guarded.said.getvalue().count("cannot keep client keys") == 2)
    assert guarded.restarts == 1
