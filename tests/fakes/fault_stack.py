"""The gateway over two fake providers: the first one fails, the second one is well."""

from __future__ import annotations

from typing import Any, Self

from fakes.behaviour import TEXT, Answer
from fakes.client_view import ClientView
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.stack import Stack
from tierfall_worker_vllm.main import build

CONFIG = """
tiers:
  first: {{worker: vllm, base_url: '{first}'}}
  second: {{worker: vllm, base_url: '{second}'}}
models:
  first: {{tier: first, backend_model: fake-model, context_window: 100, deadlines: &patient {patient},
          fallbacks: [second]}}
  hasty: {{tier: first, backend_model: fake-model, deadlines: {hasty}, fallbacks: [second]}}
  strict: {{tier: first, backend_model: fake-model, fallbacks: [second], on_stream_failure: error}}
  alone: {{tier: first, backend_model: fake-model, deadlines: {hasty}}}
  brief: {{tier: first, backend_model: fake-model, deadlines: {{first_token: 1s, total: 1s}},
          fallbacks: [second]}}
  roomy: {{tier: first, backend_model: fake-model, fallbacks: [large], context_window: 100}}
  second: {{tier: second, backend_model: fake-model, deadlines: *patient}}
  large: {{tier: second, backend_model: fake-model, context_window: 1000}}
"""
PATIENT = "{first_token: 20s, idle: 20s}"
"""For faults that nobody has to wait for: a slow machine must not turn them into a deadline."""
HASTY = "{first_token: 600ms, idle: 600ms}"


class FaultStack(Stack):
    """A real nats-server, the ingress and one vLLM worker that serves both tiers.

    Args:
        patient: The deadlines of model ``first``.
        hasty: Those of ``hasty``, for faults that only a deadline ends.
        owned_by: Which engine the first provider says it is.
    """

    def __init__(self, patient: str = PATIENT, hasty: str = HASTY, owned_by: str = "fake") -> None:
        super().__init__("", builds={"vllm": build})
        self._deadlines = {"patient": patient, "hasty": hasty}
        self.first = FakeProvider(owned_by=owned_by)
        self.second = FakeProvider()
        self.first.default = self.second.default = Answer(TEXT)

    async def __aenter__(self) -> Self:
        """Starts the providers, then the gateway, and waits until both tiers are up."""
        await self.first.resume()
        await self.second.resume()
        self.text = CONFIG.format(first=self.first.base_url, second=self.second.base_url, **self._deadlines)
        await super().__aenter__()
        await until(self.healthy)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stops the gateway, then the providers."""
        await super().__aexit__(*exc)
        await self.first.refuse()
        await self.second.refuse()

    def healthy(self) -> bool:
        """Whether the ingress knows both tiers to be up."""
        return self.state("first") == self.state("second") == "up"

    async def ask(self, *, stream: bool, **fields: Any) -> ClientView:
        """One request, read to its end and held to the wire contract."""
        if stream:
            fields.setdefault("stream_options", {"include_usage": True})
        response = await self.chat(stream=stream, **fields)
        return ClientView(response, stream=stream, choices=fields.get("n", 1))

    async def metric(self, sample: str) -> float:
        """The value of one line of ``/metrics``; 0 when it is not there."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{sample} ")), 0.0)

    async def reset(self) -> None:
        """Both providers are well and forget what they were asked, and the gateway forgets how they were."""
        for provider in (self.first, self.second):
            provider.forget()
            provider.default = Answer(TEXT)
        for breaker in self.services.breakers.values():
            breaker.answered()
        await self.recover()

    async def recover(self) -> None:
        """The first provider is well again, both listen; waits until the gateway knows."""
        self.first.default = Answer(TEXT)
        for provider in (self.first, self.second):
            if not provider.listening:
                await provider.resume()
        await until(self.healthy)

    async def settled(self) -> None:
        """Waits until nothing of any request is left.

        Raises:
            AssertionError: Something stays; the message says what.
        """
        try:
            await until(lambda: not self.leftovers())
        except TimeoutError:
            raise AssertionError(f"left behind: {', '.join(self.leftovers())}") from None

    def leftovers(self) -> list[str]:
        """What is still there of a request: lines, jobs, slots, exchanges that a provider is held in."""
        found = [f"{self.services.switchboard.open_lines} open lines"] * bool(
            self.services.switchboard.open_lines
        )
        for process in self.workers.values():
            found += [f"job {stream:016x}" for stream in process._jobs]
            found += [
                f"{station.in_flight} taken slots of tier {name}"
                for name, (_, station) in process._stations.items()
                if station.in_flight
            ]
        for name, provider in (("first", self.first), ("second", self.second)):
            held = sum(not (chat.answered or chat.connection.gone.is_set()) for chat in provider.chats)
            found += [f"{held} exchanges with provider {name}"] * bool(held)
        return found
