"""What each fault of a provider costs a client, as Markdown tables: ``python bench/faults.py``.

Runs the rows of ``tests/fakes/fault_matrix.py`` once each, with a first-token deadline as deployments have
it, against the whole gateway in this process over a real nats-server. Ends with status 1 when a fault before
the first output costs more than its limit, or when a tier that is known to be down does.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fakes import faults
from fakes.fault_matrix import BEFORE_OUTPUT, ENDED, HARMLESS, RESUMED, Fault
from fakes.fault_stack import FaultStack

if TYPE_CHECKING:
    from fakes.client_view import ClientView

FIRST_TOKEN_S: Final = 3.0
IDLE_S: Final = 3.0
DEADLINES: Final = f"{{first_token: {FIRST_TOKEN_S:g}s, idle: {IDLE_S:g}s}}"
LATE_S: Final = 2.5
"""So late that two tries with a clock of their own would pass the limit together."""
LIMIT_MS: Final = 3500.0
"""What a fault before the first output may cost; the second tier's own time is a few ms of it."""
DOWN_LIMIT_MS: Final = 10.0
"""What a tier that is known to be down may cost."""
REPEATS: Final = 40

LATE: Final = Fault(
    name=f"reset after {LATE_S:g} s, then silence",
    plays=(faults.ResetBeforeHeaders(after_s=LATE_S), faults.Silence()),
    for_ever=True,
)
GROUPS: Final = {
    "Before the first output": (Fault(name="no fault"), *BEFORE_OUTPUT, LATE),
    "After the first output": (*RESUMED, *ENDED),
    "Odd, but whole": HARMLESS,
}
HEAD: Final = """
### {}

| fault | streaming: the client sees | ms | not streaming: the client sees | ms | attempts |
|---|---|---:|---|---:|---|
"""


class Seen(NamedTuple):
    """What one client had of one fault."""

    view: ClientView
    took_ms: float

    @property
    def told(self) -> str:
        """In words."""
        view = self.view
        if view.whole:
            tiers = [f"`{'second' if model in {'second', 'large'} else 'first'}`" for model in view.models]
            return f"the answer, from {', then '.join(tiers)}"
        code = f"`{view.error['code']}`"
        return f"error {view.status} {code}" if view.status != 200 else f"a beginning, error frame {code}"  # noqa: PLR2004 - HTTP


def say(text: str) -> None:
    """Prints, also into a pipe, as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


async def play(stack: FaultStack, fault: Fault, *, stream: bool) -> Seen:
    """One request while the fault lasts."""
    await stack.reset()
    await fault.set_up(stack)
    began = time.perf_counter()
    view = await stack.ask(stream=stream, model=fault.model, **fault.fields)
    took_ms = (time.perf_counter() - began) * 1000
    await stack.settled()
    return Seen(view, took_ms)


async def median_ms(stack: FaultStack, model: str, attempts: str) -> float:
    """The middle of many requests' times.

    Raises:
        RuntimeError: A request went another way than ``attempts`` says.
    """
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        view = await stack.ask(stream=False, model=model)
        times.append((time.perf_counter() - began) * 1000)
        if view.attempts != attempts:
            raise RuntimeError(f"not what is to be measured: {view.attempts}")
    return statistics.median(times)


async def cost_when_down(stack: FaultStack) -> float:
    """Milliseconds that a tier which is known to be down adds to a request."""
    await stack.reset()
    alone_ms = await median_ms(stack, "second", "second=ok")
    await stack.first.refuse()
    await stack.ask(stream=False)  # it may be this one that finds out
    return await median_ms(stack, "first", "first=backend_down;second=ok") - alone_ms


def row(name: str, streamed: Seen, whole: Seen) -> str:
    """One line of a table."""
    attempts = whole.view.attempts.replace(";", " ")
    return (
        f"| {name} | {streamed.told} | {streamed.took_ms:,.0f} "
        f"| {whole.told} | {whole.took_ms:,.0f} | `{attempts}` |\n"
    )


async def measure() -> int:
    """Prints the tables; returns the exit status."""
    dear = []
    async with FaultStack(DEADLINES, DEADLINES) as stack:
        await stack.ask(stream=True)  # the first request of a process pays for what is loaded late
        for title, group in GROUPS.items():
            say(HEAD.format(title))
            for fault in group:
                streamed, whole = [await play(stack, fault, stream=stream) for stream in (True, False)]
                say(row(fault.name, streamed, whole))
                if LATE in group and max(streamed.took_ms, whole.took_ms) > LIMIT_MS:
                    dear.append(fault.name)
        down_ms = await cost_when_down(stack)
    say(f"\nA tier that is known to be down adds {down_ms:.1f} ms (medians of {REPEATS} requests).\n")
    if dear:
        sys.stderr.write(f"more than {LIMIT_MS:,.0f} ms: {'; '.join(dear)}\n")
    return int(bool(dear) or down_ms > DOWN_LIMIT_MS)


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    sys.exit(asyncio.run(measure()))
