"""A trial request for each live tier: through the ingress, or straight over NATS where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from tierfall.cli.doctor.finding import Finding, Level
from tierfall.cli.doctor.http import Unreachable, ask
from tierfall.errors import NoWorkers, TierfallError, UnsupportedOperation
from tierfall.protocol import subjects
from tierfall.protocol.age import clock
from tierfall.protocol.envelope import Envelope, pack
from tierfall.protocol.failure import unpack_failure
from tierfall.protocol.frames import Frame, FrameError, Kind, decode, encode
from tierfall.protocol.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Collection

    from tierfall.bus import Bus, Message
    from tierfall.cli.doctor.http import Answer
    from tierfall.cli.doctor.ingress import Ingress
    from tierfall.config import Config, Model

MAX_WAIT_S: Final = 180.0
SLACK_S: Final = 5.0
LEASE_EVERY_S: Final = 1.0
WINDOW_BYTES: Final = 256 * 1024
SHOWN_CHARACTERS: Final = 300
_OK: Final = 200
_PROMPT: Final = [{"role": "user", "content": "Say hello."}]


class Trial:
    """Tries tiers.

    Args:
        config: The config.
        bus: Connected; ``None`` where there is none, so that only an ingress can be asked.
        ingress: Examined.
    """

    def __init__(self, config: Config, bus: Bus | None, ingress: Ingress) -> None:
        self._config = config
        self._bus = bus
        self._ingress = ingress

    async def run(self, tiers: Collection[str]) -> dict[str, Finding]:
        """All of them at once, each with one token of an answer; with a vector, where a model makes no text.

        Returns:
            A finding for each tier that some model names.
        """
        chosen: dict[str, str] = {}
        for name, model in self._config.models.items():
            if model.tier in tiers:
                chosen.setdefault(model.tier, name)
        findings = await asyncio.gather(*(self._one(tier, name) for tier, name in chosen.items()))
        return dict(zip(chosen, findings, strict=True))

    async def _one(self, tier: str, name: str) -> Finding:
        if self._bus is None or self._ingress.usable:
            return await self._through_ingress(tier, name)
        return await self._over_nats(self._bus, tier, name)

    async def _through_ingress(self, tier: str, name: str) -> Finding:
        subject = f"trial {tier}"
        wait_s = _wait_s(self._config.models[name])
        try:
            answer = await self._asked(Operation.CHAT, name, wait_s)
            if _attempts(answer).startswith(f"{tier}={UnsupportedOperation.slug}"):
                answer = await self._asked(Operation.EMBEDDINGS, name, wait_s)
        except Unreachable as error:
            return Finding(Level.WARN, subject, f"{name}: no answer within {wait_s:.0f} s: {error}")
        attempts = _attempts(answer)
        if answer.status != _OK or answer.message:
            said = answer.message[:SHOWN_CHARACTERS] or str(answer.status)
            return Finding(Level.WARN, subject, f"{name}: {answer.status} {said} [{attempts}]")
        by = answer.headers.get("x-tierfall-tier", "")
        if by != tier:
            return Finding(Level.WARN, subject, f"{name}: tier {by} had to answer [{attempts}]")
        worker = answer.headers.get("x-tierfall-worker", "")
        first_s = answer.first_data_s
        told = "embeddings" if first_s is None else f"first token after {first_s:.2f} s"
        return Finding(Level.OK, subject, f"{name}: {told}, from {worker} [{attempts}]")

    async def _asked(self, operation: Operation, name: str, wait_s: float) -> Answer:
        url, body = f"{self._ingress.url}/v1{operation.path}", _body(operation, name)
        return await asyncio.to_thread(ask, url, key=self._ingress.key, body=body, timeout_s=wait_s)

    async def _over_nats(self, bus: Bus, tier: str, name: str) -> Finding:
        subject = f"trial {tier}"
        wait_s = _wait_s(self._config.models[name])
        model = self._config.models[name]
        attempt = _Attempt(bus, tier, name, model, wait_s, operation=Operation.CHAT)
        try:
            async with asyncio.timeout(wait_s):
                try:
                    took_s = await attempt.run()
                except UnsupportedOperation:
                    attempt = _Attempt(bus, tier, name, model, wait_s, operation=Operation.EMBEDDINGS)
                    took_s = await attempt.run()
        except TimeoutError:
            held = f"{attempt.worker} took it and" if attempt.worker else "no worker took it and"
            return Finding(
                Level.WARN, subject, f"{name}: {held} nothing came within {wait_s:.0f} s, over NATS"
            )
        except TierfallError as error:
            said = error.message[:SHOWN_CHARACTERS]
            return Finding(Level.WARN, subject, f"{name}: {said} ({error.slug}), over NATS")
        text = f"{name}: first output after {took_s:.2f} s, from {attempt.worker}, over NATS"
        return Finding(Level.OK, subject, text)


class _Attempt:
    """One attempt, as the ingress makes them; it ends with the first output."""

    def __init__(
        self,
        bus: Bus,
        tier: str,
        name: str,
        model: Model,
        wait_s: float,
        *,
        operation: Operation,
    ) -> None:
        self.worker = ""
        self._bus = bus
        self._tier = tier
        self._stream = secrets.randbits(64)
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._body = json.dumps(_body(operation, name)).encode()
        self._envelope = Envelope(
            stream=self._stream,
            request_id=f"doctor-{self._stream:016x}",
            attempt=1,
            model=name,
            backend_model=model.backend_model,
            operation=operation,
            answer_id="chatcmpl-doctor",
            created=int(time.time()),
            streaming=operation is Operation.CHAT,
            sent_at=clock(),
            fresh=True,
            signs_every_s=wait_s,
            window=WINDOW_BYTES,
            body_size=len(self._body),
        )

    async def run(self) -> float:
        """Seconds to the first output.

        Raises:
            TierfallError: The worker's error, or that there is none.
        """
        inbox = self._bus.reply_inbox()
        subscription = await self._bus.subscribe(inbox, self._take)
        leasing = asyncio.create_task(self._lease(), name="lease of a trial")
        sent_at = time.monotonic()
        try:
            self._bus.publish(subjects.chat(self._tier), pack(self._envelope, self._body), reply=inbox)
            await self._first_output()
            return time.monotonic() - sent_at
        finally:
            leasing.cancel()
            await asyncio.gather(leasing, return_exceptions=True)
            if self.worker and self._bus.connected:
                self._control(Kind.CANCEL, b"doctor")
            await subscription.close()

    async def _first_output(self) -> None:
        while True:
            frame = await self._frames.get()
            if frame is None:
                raise NoWorkers("no worker took the request")
            if frame.kind is Kind.ACCEPTED:
                self.worker = frame.payload.decode("ascii", "replace")
            elif frame.kind is Kind.ERROR:
                raise unpack_failure(frame.payload)
            elif frame.kind in {Kind.CHUNK, Kind.PART, Kind.END}:
                return

    def _take(self, message: Message) -> None:
        if message.no_responders:
            self._frames.put_nowait(None)
            return
        with contextlib.suppress(FrameError):  # then nothing comes, and the finding says that
            for frame in decode(message.data):
                if frame.stream == self._stream:
                    self._frames.put_nowait(frame)

    async def _lease(self) -> None:
        """Tells the worker that its answer is still wanted, as long as this runs."""
        while True:
            await asyncio.sleep(LEASE_EVERY_S)
            if self.worker and self._bus.connected:
                self._control(Kind.LEASE, b"")

    def _control(self, kind: Kind, payload: bytes) -> None:
        self._bus.publish(subjects.control(self.worker), encode(kind, self._stream, 0, payload))


def _attempts(answer: Answer) -> str:
    return answer.headers.get("x-tierfall-attempts", "")


def _body(operation: Operation, name: str) -> dict[str, Any]:
    if operation is Operation.EMBEDDINGS:
        return {"model": name, "input": "Say hello."}
    return {"model": name, "messages": _PROMPT, "max_tokens": 1, "stream": True}


def _wait_s(model: Model) -> float:
    """As long as the tier may take for its first token, and a little more."""
    deadlines = model.deadlines
    return min(MAX_WAIT_S, max(deadlines.first_token, deadlines.load or 0.0) + SLACK_S)
