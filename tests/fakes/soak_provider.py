"""A provider whose answer follows from the question, and which fails now and then at random."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from fakes import faults
from fakes.behaviour import Answer
from fakes.provider import FakeProvider

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from fakes.behaviour import Behaviour
    from fakes.http11 import Recorded

    Make = Callable[[Answer, int], Behaviour]

MARK: Final = "soak "
"""How the message begins that says what to answer: ``soak 17 120`` asks for 120 words made from 17."""
SPEEDS: Final = (0.0, 0.0, 200.0, 1000.0)
"""Tokens a second of good answers."""

FAULTS: Final[tuple[Make, ...]] = (
    lambda _, __: faults.Status(429, retry_after=1),
    lambda _, __: faults.Status(429),
    lambda _, __: faults.Status(500),
    lambda _, __: faults.Status(502),
    lambda _, __: faults.Status(503),
    lambda _, __: faults.Status(401),
    lambda _, __: faults.Silence(),
    lambda _, __: faults.HeadersThenSilence(),
    lambda _, __: faults.RoleThenSilence(),
    lambda _, __: faults.ResetBeforeHeaders(),
    lambda _, __: faults.CutBeforeHeaders(),
    lambda _, __: faults.ErrorIn200(),
    lambda _, __: faults.HalfBody(),
    lambda _, __: faults.Empty(),
    lambda answer, n: faults.CutAfter(n, answer),
    lambda answer, n: faults.CutAfter(n, answer, reset=True),
    lambda answer, n: faults.CutMidEvent(n, answer),
    lambda answer, n: faults.CutMidEvent(n, answer, clean=True),
    lambda answer, n: faults.StallAfter(n, answer),
    lambda answer, n: faults.Garbage(n, answer),
    lambda answer, n: faults.ErrorFrame(n, answer=answer),
    lambda answer, _: faults.ErrorFrame(None, answer=answer),
    lambda answer, _: faults.NoDone(answer.text),
    lambda answer, _: faults.DoneWithoutFinish(answer.text),
    lambda answer, _: faults.DoneThenSilence(answer),
    lambda answer, _: faults.ClosesAfter(answer),
    lambda answer, n: faults.SplitEvery(n + 1, answer),
    lambda answer, _: faults.IgnoresStream(answer),
)


def prompt(number: int, words: int) -> str:
    """Asks for so many words that no other number gives."""
    return f"{MARK}{number} {words}"


def text_for(prompt: str) -> str:
    """The only right answer."""
    number, count = prompt.removeprefix(MARK).split()
    return " ".join(
        f"w{position}-{hashlib.blake2b(f'{number}/{position}'.encode(), digest_size=3).hexdigest()}"
        for position in range(int(count))
    )


class SoakProvider(FakeProvider):
    """Answers :func:`text_for`; every so often in one of the ways in which providers fail.

    Args:
        source: Decides who gets which fault.
        fault_share: How many of the requests fail, from 0 to 1.
        owned_by: Which engine it says it is.
    """

    def __init__(self, source: random.Random, fault_share: float, owned_by: str = "fake") -> None:
        super().__init__(owned_by=owned_by)
        self._source = source
        self.fault_share = fault_share
        self.served = 0
        self.failed = 0

    def _route(self, request: Recorded, path: str) -> Behaviour:
        if not path.endswith("/chat/completions"):
            return super()._route(request, path)
        self.served += 1
        if self.served % 100 == 0:
            self.prune()
        question = next(
            message["content"]
            for message in request.json["messages"]
            if str(message["content"]).startswith(MARK)
        )
        whole = Answer(text_for(question), tokens_per_s=self._source.choice(SPEEDS))
        answer = replace(whole, text=whole.rest(request))  # as every engine goes on, streaming or not
        if self._source.random() >= self.fault_share:
            return answer
        self.failed += 1
        outputs = len(answer.deltas(request))
        return self._source.choice(FAULTS)(answer, self._source.randrange(outputs)) if outputs else answer

    def prune(self) -> None:
        """Forgets what is over: a long run must not be measured by its own notes."""
        self.requests = [request for request in self.requests if not _over(request)]
        # In place: its server adds new ones to this very set.
        self._connections.difference_update([each for each in self._connections if each.gone.is_set()])


def _over(request: Recorded) -> Any:
    return request.answered or request.connection.gone.is_set()
