"""What workers counted of answers that were given up: one word for each, whatever happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.polling import until
from tierfall.errors import BackendFault
from tierfall.protocol.envelope import Ending
from tierfall.protocol.failure import pack_failure
from tierfall.protocol.frames import Frame, Kind
from tierfall_ingress import counts as module
from tierfall_ingress.counts import LateCounts

if TYPE_CHECKING:
    from collections.abc import Callable

TOLD = Ending(completion_tokens=7, estimated=True)
END = Frame(Kind.END, 1, 5, msgspec.json.encode(TOLD))
ERROR = Frame(Kind.ERROR, 1, 5, pack_failure(BackendFault("x")))
CHUNK = Frame(Kind.CHUNK, 1, 4, b"data: x\n\n")


def told(*acts: Callable[[LateCounts], object], late: bool = False) -> list[Ending | None]:
    """What is said of stream 1 of worker ``w`` when all this happens."""

    async def run() -> list[Ending | None]:
        found: list[Ending | None] = []
        counts = LateCounts(asyncio.get_running_loop())
        count = counts.expect(1, "w")
        if not late:
            count.then(found.append)
        for act in acts:
            act(counts)
        if late:
            count.then(found.append)
        assert not counts._open or not found
        counts.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("acts", "word"),
    [
        ([lambda it: it.feed(END)], TOLD),
        ([lambda it: it.feed(CHUNK), lambda it: it.feed(END)], TOLD),
        ([lambda it: it.feed(END), lambda it: it.feed(END), lambda it: it.lost("w")], TOLD),
        ([lambda it: it.feed(ERROR), lambda it: it.feed(END)], None),
        ([lambda it: it.lost("w"), lambda it: it.feed(END)], None),
        ([lambda it: it.lost("another"), lambda it: it.feed(END)], TOLD),
        ([lambda it: it.close(), lambda it: it.feed(END)], None),
        ([lambda it: it.feed(END._replace(stream=2)), lambda it: it.close()], None),
    ],
    ids=range(8),
)
def test_the_first_word_counts(
    acts: list[Callable[[LateCounts], object]], word: Ending | None, late: bool
) -> None:
    """An answer's END, its failure, its worker's death, the end of the ingress: the rest changes nothing."""
    assert told(*acts, late=late) == [word]


async def test_a_word_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is older or frozen says nothing: what the ingress knows has to do."""
    monkeypatch.setattr(module, "COUNT_S", 0.01)
    found: list[Ending | None] = []
    counts = LateCounts(asyncio.get_running_loop())
    counts.expect(1, "w").then(found.append)
    await until(lambda: found == [None])
    counts.feed(END)
    assert found == [None]
    assert not counts._open
