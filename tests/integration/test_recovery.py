"""NATS comes back for some before it comes back for others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakes.polling import until
from fakes.scripted import ScriptedBackend, chunk
from fakes.stack import Stack

if TYPE_CHECKING:
    import pytest

    from tierfall.bus import Message
    from tierfall.bus.wire import Wire

CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1}
models:
  first: {tier: a, backend_model: model-a, on_stream_failure: error}
"""


async def test_a_worker_that_is_back_later_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream goes on where it stopped, though NATS said that nobody is there."""
    backend, go_on, way_back = ScriptedBackend(), asyncio.Event(), asyncio.Event()
    backend.scripts.append([chunk("Hel", role="assistant"), go_on, chunk("lo."), chunk(finish="stop")])
    async with Stack(CONFIG, {"a": backend}) as stack, stack.stream() as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        bus, board = stack._buses["a-0"], stack.services.switchboard
        dial, hear, routes = bus._dialer.dial, board._on_lease_status, stack._bus._routes
        leases = next(sid for sid, callback in routes.items() if callback == hear)
        refused: list[str] = []

        async def dial_late() -> Wire:
            await way_back.wait()
            return await dial()

        def listen(message: Message) -> None:
            refused.append(message.subject)
            hear(message)

        monkeypatch.setattr(bus._dialer, "dial", dial_late)
        monkeypatch.setitem(routes, leases, listen)
        await stack.nats.restart()
        await until(lambda: refused)
        way_back.set()
        await until(lambda: bus.connected)
        go_on.set()
        seen += [line async for line in lines]
    assert '"lo."' in "".join(seen)
    assert seen[-2] == "data: [DONE]"
    assert len(backend.asks) == 1
