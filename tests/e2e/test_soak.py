"""Two minutes of mixed load and mixed faults; ``bench/soak.py`` runs the same for as long as you like."""

from __future__ import annotations

from typing import Final

import pytest

from fakes.soak import Soak

SOAK_S: Final = 120.0
SEED: Final = 20_261


@pytest.mark.timeout(420)
async def test_every_request_ends_right_and_nothing_stays() -> None:
    """Each request ends in its own answer or an honest error; tasks, sockets and memory end as they began."""
    soak = Soak(SEED)
    left = await soak.run(SOAK_S)
    assert soak.tally.wrong == []
    assert left == []
    assert soak.tally.answers > soak.tally.requests / 2
    assert len(soak.tally.disturbances) > 1, "nothing was disturbed"
