"""Many large bodies at once: none is lost, no stream beside them breaks, and their memory is bounded."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.raw_client import RawClient, chat_request
from fakes.scripted import ScriptedBackend, Step, chunk, says, vectors
from fakes.stack import ASK, Stack

if TYPE_CHECKING:
    import pytest

MIB = 1024 * 1024
CONFIG = """
tiers:
  a: {worker: vllm, base_url: http://127.0.0.1:1/v1, max_in_flight: 32}
models:
  first: {tier: a, backend_model: a, deadlines: {first_token: 20s}}
"""
SMALL_NATS = "max_pending: 16MB\n"
"""As if every body were four times as large towards the 64 MB that a server has by default."""
HALF = 300 * 1024


class Slow:
    """Words, one after each wait of :meth:`go_on`."""

    def __init__(self, words: int) -> None:
        self.gates = [asyncio.Event() for _ in range(words)]
        self.script: list[Step] = [chunk("", role="assistant")]
        for gate in self.gates:
            self.script += [chunk("word "), gate]
        self.script += [chunk(finish="stop")]


async def test_a_burst_of_large_bodies_is_answered_and_hurts_nobody() -> None:
    """What NATS keeps for a worker stays far below its limit, whatever the clients send at once."""
    backend, slow = ScriptedBackend(), Slow(2)
    async with NatsServer(SMALL_NATS) as nats, Stack(CONFIG, {"a": backend}, nats=nats) as stack:
        backend.scripts.append(slow.script)
        streaming = asyncio.create_task(stack.chat(stream=True))
        await until(lambda: backend.running == 1)
        backend.scripts.extend([says("ok")] * 30)
        body = "x" * 4 * MIB
        large = [asyncio.create_task(stack.chat(padding=body)) for _ in range(10)]
        small = [asyncio.create_task(stack.chat()) for _ in range(10)]
        answers = await asyncio.gather(*large, *small)
        for gate in slow.gates:
            gate.set()
        assert [answer.status_code for answer in answers] == [200] * 20
        assert {answer.headers["x-tierfall-attempts"] for answer in answers} == {"a=ok"}
        assert (
            sorted(len(ask.body.get("padding", b"")) for ask in backend.asks[1:])[10:] == [len(body) + 2] * 10
        )
        assert (await streaming).text.endswith("data: [DONE]\n\n")
        assert "Slow Consumer" not in nats.log


async def test_large_answers_leave_the_streams_beside_them_whole() -> None:
    """An answer in one piece is sent as far as the ingress takes it, not all at once."""
    backend, slow = ScriptedBackend(), Slow(2)
    async with NatsServer(SMALL_NATS) as nats, Stack(CONFIG, {"a": backend}, nats=nats) as stack:
        backend.scripts.append(slow.script)
        streaming = asyncio.create_task(stack.chat(stream=True))
        await until(lambda: backend.running == 1)
        answer = vectors(256, [0.123456789] * 1024)
        assert len(answer) > 3 * MIB
        backend.scripts.extend([[answer]] * 8)
        answers = await asyncio.gather(*(stack.embed(input=["x"] * 256) for _ in range(8)))
        for gate in slow.gates:
            gate.set()
        assert [len(each.json()["data"]) for each in answers] == [256] * 8
        assert (await streaming).text.endswith("data: [DONE]\n\n")
        assert "Slow Consumer" not in nats.log


async def test_one_event_larger_than_the_window_passes() -> None:
    """A stream whose single event is larger than what may be sent ahead comes whole."""
    text = "y" * MIB
    backend = ScriptedBackend([says("a", text, "z")])
    async with Stack(CONFIG, {"a": backend}) as stack:
        events = (await stack.chat(stream=True)).text.split("\n\n")
        deltas = [json.loads(event[6:])["choices"] for event in events if event.startswith("data: {")]
        assert "".join(each[0]["delta"].get("content") or "" for each in deltas if each) == f"a{text}z"


async def test_the_bodies_of_all_requests_are_bounded() -> None:
    """A request that would pass the bound is refused with a time to come back; the others go on."""
    config = CONFIG + f"server: {{max_body: {2 * HALF}, max_bodies: {2 * HALF}}}\n"
    backend, gate = ScriptedBackend(), asyncio.Event()
    async with Stack(config, {"a": backend}) as stack:
        backend.scripts.append([gate, *says("first")])
        held = asyncio.create_task(stack.chat(padding="x" * HALF))
        await until(lambda: backend.running == 1)
        request = chat_request({**ASK, "padding": "x" * HALF})
        async with RawClient(stack.url) as client:
            await client.send(request[: HALF // 2])
            await until(lambda: stack.services.body_memory.held_bytes > HALF)
            await client.send(request[HALF // 2 :])
            refused = await client.answer()
        assert (refused.status, refused.json["error"]["code"]) == (503, "gateway_busy")
        assert refused.header("retry-after") == "1"
        memory = stack.services.body_memory
        memory.limit_bytes = memory.held_bytes  # not a byte is left, and a small one is let in
        assert (await stack.chat()).status_code == 200
        gate.set()
        assert (await held).status_code == 200
        assert stack.services.body_memory.held_bytes == 0
        assert (await stack.chat(padding="x" * HALF)).status_code == 200


async def test_a_body_that_does_not_come_fails_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker does not wait for ever for a part that it has granted, and its backend is not blamed."""
    monkeypatch.setattr("tierfall.worker.incoming.STALLED_AFTER_S", 0.3)
    monkeypatch.setattr("tierfall_ingress.line.Line._send_body", lambda *_: None)
    backend = ScriptedBackend()
    async with Stack(CONFIG, {"a": backend}) as stack:
        answer = await stack.chat(padding="x" * MIB)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "body_lost")
        assert answer.headers["x-tierfall-attempts"] == "a=body_lost;a=body_lost"
        assert not backend.asks


async def test_a_client_that_hangs_up_behind_a_large_body_is_noticed() -> None:
    """The connection is read again once the body is there, or its end would not be seen."""
    backend = ScriptedBackend([[60.0]])
    async with Stack(CONFIG, {"a": backend}) as stack:
        async with RawClient(stack.url) as client:
            await client.send(chat_request({**ASK, "padding": "x" * 8 * MIB}))
            await until(lambda: backend.running == 1)
        await until(lambda: not backend.running)
