"""Fixtures of the tests with real processes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from fakes.processes import Fleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from pathlib import Path

    from fakes.processes import NewFleet

FLEETS = pytest.StashKey[list[Fleet]]()


@pytest.fixture
async def new_fleet(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[NewFleet]:
    """Makes the processes' home from a config's text; all of them end with the test."""
    fleets = request.node.stash.setdefault(FLEETS, [])
    async with contextlib.AsyncExitStack() as running:

        async def make(config: str, *, server: str = "", key: str = "", nats: str = "") -> Fleet:
            fleet = await running.enter_async_context(
                Fleet(tmp_path, config, server=server, key=key, nats=nats)
            )
            fleets.append(fleet)
            return fleet

        yield make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its processes have said."""
    report = yield
    if report.failed:
        for fleet in item.stash.get(FLEETS, []):
            report.sections += [(f"log of {name}", log) for name, log in fleet.logs()]
    return report
