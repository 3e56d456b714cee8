"""Completions and embeddings by each kind of worker, in the whole gateway, against scripted backends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import openai
import pytest
from openai import AsyncOpenAI

from fakes.behaviour import TEXT, Answer, error_body
from fakes.faults import CutAfter, Events, HalfBody, ResetBeforeHeaders, Silence, Status
from fakes.ollama import FakeOllama, written, wrote
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.stack import Stack
from fakes.texts import VECTOR, TextAnswer, Vectors, text_choice, text_chunk
from tierfall_worker_cloud.main import build as build_cloud
from tierfall_worker_ollama import OllamaBackend
from tierfall_worker_vllm.main import build as build_vllm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.behaviour import Behaviour

CONFIG: Final = """
tiers:
  engine: {{worker: vllm, base_url: '{engine}'}}
  small: {{worker: ollama, base_url: '{ollama}'}}
  openai: {{worker: cloud, provider: openai, base_url: '{cloud}', api_key: sk-cloud}}
  groq: {{worker: cloud, provider: groq, base_url: '{cloud}', api_key: sk-cloud}}
  gemini: {{worker: cloud, provider: gemini, base_url: '{cloud}', api_key: sk-cloud}}
  mistral: {{worker: cloud, provider: mistral, base_url: '{cloud}', api_key: sk-cloud}}
models:
  engine: {{tier: engine, backend_model: fake-model, fallbacks: [small]}}
  small: {{tier: small, backend_model: 'fake:1b', fallbacks: [openai]}}
  openai: {{tier: openai, backend_model: gpt}}
  groq: {{tier: groq, backend_model: llama, fallbacks: [gemini, mistral]}}
  gemini: {{tier: gemini, backend_model: embed, fallbacks: [mistral]}}
  mistral: {{tier: mistral, backend_model: mistral-embed}}
"""
BUILDS: Final[dict[str, Any]] = {
    "vllm": build_vllm,
    "ollama": OllamaBackend.from_tier,
    "cloud": build_cloud,
}


class Tiers:
    """All kinds of workers, each with its backend."""

    def __init__(self, stack: Stack, engine: FakeProvider, ollama: FakeOllama, cloud: FakeProvider) -> None:
        self.stack = stack
        self.engine = engine
        self.ollama = ollama
        self.cloud = cloud

    async def complete(self, model: str, **fields: Any) -> Any:
        """One completion's body."""
        answer = await self.stack.complete(model=model, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def embed(self, model: str, **fields: Any) -> Any:
        """One embeddings answer's body."""
        answer = await self.stack.embed(model=model, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextlib.asynccontextmanager
async def running(owned_by: str = "vllm") -> AsyncIterator[Tiers]:
    """The gateway with all of them up."""
    async with (
        FakeProvider(owned_by=owned_by) as engine,
        FakeOllama() as ollama,
        FakeProvider(api_key="sk-cloud") as cloud,
    ):
        text = CONFIG.format(engine=engine.base_url, ollama=ollama.base_url, cloud=cloud.base_url)
        async with Stack(text, builds=BUILDS) as stack:
            await until(lambda: all(stack.state(tier) == "up" for tier in stack.config.tiers))
            yield Tiers(stack, engine, ollama, cloud)


@pytest.fixture
async def tiers() -> AsyncIterator[Tiers]:
    """With vLLM as the engine."""
    async with running() as made:
        yield made


@pytest.fixture
async def llama() -> AsyncIterator[Tiers]:
    """With llama.cpp as the engine."""
    async with running("llamacpp") as made:
        yield made


# -- vLLM


async def test_an_engine_completes(tiers: Tiers) -> None:
    """The request arrives as it was sent, but for the model and the stream; the answer is the model's."""
    fields = {"prompt": ["a b", "c"], "n": 2, "echo": False, "suffix": "x", "logprobs": 1, "top_k": 5}
    answer = await tiers.complete("engine", **fields)
    assert [choice["text"] for choice in answer["choices"]] == [TEXT] * 4
    assert answer["usage"]["prompt_tokens"] == 3
    (asked,) = tiers.engine.to("/completions")
    sent = asked.json
    assert (sent["model"], sent["stream"]) == ("fake-model", True)
    assert {name: sent[name] for name in fields} == fields


async def test_a_completion_without_usage_is_counted(tiers: Tiers) -> None:
    """By the engine's tokenizer and the pieces that came, as an estimate."""
    tiers.engine.tokenizer = "vllm"
    tiers.engine.plan(TextAnswer("one two", usage=False))
    usage = (await tiers.complete("engine", prompt="a b c"))["usage"]
    assert usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "estimated": True}


async def test_a_chat_without_usage_is_counted(tiers: Tiers) -> None:
    """Reasoning counts too."""
    tiers.engine.tokenizer = "vllm"
    tiers.engine.plan(Answer("one two", reasoning="hm so", usage=False))
    messages = [{"role": "user", "content": "a b c"}]
    answer = (await tiers.stack.chat(model="engine", messages=messages)).json()
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "estimated": True,
    }


async def test_an_engine_that_does_not_stream(tiers: Tiers) -> None:
    """Its whole answer is taken for the one chunk of a stream."""
    whole = text_chunk("x", [text_choice("All at once.", "stop")], usage={"prompt_tokens": 1})
    tiers.engine.plan(Status(200, body=whole))
    answer = await tiers.complete("engine")
    assert answer["choices"][0]["text"] == "All at once."


async def test_a_broken_completion_goes_on(tiers: Tiers) -> None:
    """The engine is asked to go on from the prompt and what there is of the answer."""
    tiers.engine.plan(CutAfter(4, TextAnswer()))
    body = {"model": "engine", "prompt": "Count: ", "max_tokens": 50, "stream": True}
    answer = await tiers.stack.client.post("/v1/completions", json=body)
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    assert "".join(choice["text"] for each in events for choice in each["choices"]) == TEXT
    assert answer.text.endswith("data: [DONE]\n\n")
    first, second = tiers.engine.to("/completions")
    assert (first.json["prompt"], second.json["prompt"]) == ("Count: ", "Count: one two three four ")
    assert second.json["max_tokens"] == 46


async def test_an_engine_embeds(tiers: Tiers) -> None:
    """The request arrives as it was sent, but for the model."""
    fields = {"input": ["a b", "c"], "dimensions": 3, "encoding_format": "base64", "priority": 1}
    answer = await tiers.embed("engine", **fields)
    assert (answer["model"], len(answer["data"])) == ("engine", 2)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    (asked,) = tiers.engine.to("/embeddings")
    assert asked.json == {"model": "fake-model", **fields}


@pytest.mark.parametrize(
    "fault",
    [
        Status(500),
        Status(404, body=error_body("The model `x` does not exist.", "NotFoundError", 404)),
        Status(404, body={"detail": "Not Found"}),
        Status(501, body=error_body("This server does not support embeddings.", "not_supported_error", 501)),
        Status(400, body=error_body("The model does not support Embeddings API", "BadRequestError", 400)),
        ResetBeforeHeaders(),
        HalfBody(),
        Vectors(lost=1),
        Status(200, body=b"garbage"),
        Status(200, body=error_body("inside a 200")),
    ],
    ids=range(10),
)
async def test_an_engine_that_cannot_embed_is_passed_over(tiers: Tiers, fault: Behaviour) -> None:
    """Whatever the fault: the next tier has the vectors."""
    tiers.engine.vectors = fault
    answer = await tiers.embed("engine", input=["a", "b"])
    assert (answer["model"], len(answer["data"])) == ("small", 2)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "This model's maximum context length is 512 tokens. However, you requested 900 tokens"),
        (500, "input (5001 tokens) is too large to process. increase the physical batch size"),
    ],
)
async def test_too_long_an_input(tiers: Tiers, status: int, words: str) -> None:
    """The client's fault on every tier, in whatever words: a 400 with the code."""
    tiers.cloud.vectors = Status(status, body=error_body(words))
    answer = await tiers.stack.embed(model="openai")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_silent_engine_is_let_go(tiers: Tiers) -> None:
    """A client that hangs up while the vectors are made closes the engine's connection."""
    tiers.engine.vectors = Silence()
    asked = asyncio.create_task(tiers.stack.embed(model="engine"))
    await until(lambda: tiers.engine.to("/embeddings"))
    asked.cancel()
    await until(tiers.engine.to("/embeddings")[0].closed.is_set)


# -- llama.cpp


async def test_what_llama_cpp_ignores_is_refused(llama: Tiers) -> None:
    """It would answer as if it had not been asked; so another tier is asked."""
    for field, value in (("echo", True), ("best_of", 3)):
        answer = await llama.stack.complete(model="engine", **{field: value})
        assert answer.headers["x-tierfall-attempts"].startswith("engine=unsupported_by_tier;")
    answer = await llama.stack.embed(model="engine", dimensions=2)
    assert answer.headers["x-tierfall-attempts"] == "engine=unsupported_by_tier;small=ok"
    assert len(answer.json()["data"][0]["embedding"]) == 2
    assert not llama.engine.to("/completions")
    neutral = await llama.complete("engine", echo=False, suffix="", best_of=1)
    assert neutral["model"] == "engine"
    assert not {"echo", "suffix", "best_of"} & set(llama.engine.to("/completions")[0].json)


async def test_llama_cpps_own_forms(llama: Tiers) -> None:
    """A null event between prompts, a usage for each answer, log probabilities as chats have them."""
    positions = [{"token": "ab", "logprob": -0.5, "top_logprobs": [{"token": "ab", "logprob": -0.5}]}]
    usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    events: list[Any] = [None]
    for index in range(4):
        said = text_choice("ab", index=index, logprobs={"content": positions})
        events += [text_chunk("m", [said]), None]
        events.append(text_chunk("m", [text_choice("", "stop", index)], usage=usage))
    llama.engine.plan(Events(tuple(events)))
    answer = await llama.complete("engine", prompt=["x", "y"], n=2, logprobs=1)
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20}
    for choice in answer["choices"]:
        assert choice["logprobs"]["tokens"] == ["ab"]
        assert choice["logprobs"]["top_logprobs"] == [{"ab": -0.5}]


# -- Ollama


async def test_ollama_completes(tiers: Tiers) -> None:
    """Through its native API; the official client reads it, streamed and whole."""
    async with AsyncOpenAI(base_url=f"{tiers.stack.url}/v1", api_key="none", max_retries=0) as sdk:
        tiers.ollama.plan(wrote("a"), wrote("b"), written("length", prompt=7), path="/api/generate")
        whole = await sdk.completions.create(model="small", prompt="x", max_tokens=2)
        stream = await sdk.completions.create(model="small", prompt="x", stream=True)
        pieces = [choice.text async for part in stream for choice in part.choices]
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("ab", "length")
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 7
    assert pieces == ["Hello", " world", ""]
    first = tiers.ollama.to("/api/generate")[0].json
    assert (first["raw"], first["options"]["num_predict"]) == (True, 2)


async def test_ollama_embeds(tiers: Tiers) -> None:
    """Numbers turned into what the client asked for."""
    async with AsyncOpenAI(base_url=f"{tiers.stack.url}/v1", api_key="none", max_retries=0) as sdk:
        answer = await sdk.embeddings.create(model="small", input=["a", "b"])
    assert [datum.embedding for datum in answer.data] == [VECTOR] * 2
    assert (answer.usage.prompt_tokens, answer.model) == (2, "small")
    assert tiers.ollama.to("/api/embed")[0].json["truncate"] is False


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("the input length exceeds the context length", "context_length_exceeded"),
        ("this model does not support embeddings", "unsupported_operation"),
    ],
)
async def test_what_ollama_says_of_embeddings(tiers: Tiers, words: str, code: str) -> None:
    """Its sentences are the classes that the ladder knows."""
    tiers.ollama.refuse(400, words, path="/api/embed")
    tiers.cloud.vectors = None
    answer = await tiers.stack.embed(model="small")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_a_model_that_cannot_fill_in(tiers: Tiers) -> None:
    """A suffix that the model has no template for goes to the next tier."""
    tiers.ollama.refuse(400, "fake:1b does not support insert", path="/api/generate")
    answer = await tiers.stack.complete(model="small", suffix="end")
    assert answer.headers["x-tierfall-attempts"] == "small=unsupported_by_tier;openai=ok"
    assert tiers.cloud.to("/completions")[0].json["suffix"] == "end"


# -- cloud


async def test_openai_completes_and_embeds(tiers: Tiers) -> None:
    """With the tier's key and the backend's name of the model; all fields travel."""
    text = await tiers.complete("openai", echo=True, best_of=2, logit_bias={"50256": -100})
    assert (text["model"], text["choices"][0]["text"]) == ("openai", TEXT)
    assert (await tiers.embed("openai", input=[[1, 2], [3]], user="u"))["model"] == "openai"
    (completion,), (embedding,) = tiers.cloud.to("/completions"), tiers.cloud.to("/embeddings")
    assert completion.headers["authorization"] == embedding.headers["authorization"] == "Bearer sk-cloud"
    assert (completion.json["best_of"], completion.json["model"]) == (2, "gpt")
    assert embedding.json == {"model": "gpt", "input": [[1, 2], [3]], "user": "u"}


async def test_groq_has_neither(tiers: Tiers) -> None:
    """So the ladder moves on without asking it; Gemini and Mistral have no completions either."""
    answer = await tiers.stack.embed(model="groq")
    assert answer.headers["x-tierfall-attempts"] == "groq=unsupported_operation;gemini=ok"
    refused = await tiers.stack.complete(model="groq")
    assert refused.headers["x-tierfall-attempts"] == ";".join(
        f"{tier}=unsupported_operation" for tier in ("groq", "gemini", "mistral")
    )
    assert "/v1/completions" in refused.json()["error"]["message"]
    assert not tiers.cloud.to("/completions")


async def test_gemini_and_mistral_embed(tiers: Tiers) -> None:
    """Each under its own names; base64 is made here of what Gemini sends; tokens are refused by name."""
    async with AsyncOpenAI(base_url=f"{tiers.stack.url}/v1", api_key="none", max_retries=0) as sdk:
        for model in ("gemini", "mistral"):
            answer = await sdk.embeddings.create(model=model, input=["a"], dimensions=3, user="u")
            assert (answer.data[0].embedding, answer.model) == (VECTOR, model)
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.embeddings.create(model="mistral", input=[1, 2, 3])
    assert refused.value.param == "input"
    gemini, mistral = (request.json for request in tiers.cloud.to("/embeddings"))
    assert gemini == {"model": "embed", "input": ["a"], "dimensions": 3}
    assert mistral == {
        "model": "mistral-embed",
        "input": ["a"],
        "output_dimension": 3,
        "encoding_format": "base64",
    }


async def test_a_wrong_key_takes_the_tier_down(tiers: Tiers) -> None:
    """Whichever endpoint finds it out."""
    tiers.cloud.vectors = tiers.cloud.model_list = Status(401, body=error_body("no", code="invalid_api_key"))
    assert (await tiers.stack.embed(model="openai")).status_code == 502
    await until(lambda: tiers.stack.state("openai") == "down")


async def test_a_completion_that_breaks_off_moves_on(tiers: Tiers) -> None:
    """After its first output a stream is gone on with by the next tier, without a seam."""
    tiers.ollama.plan(wrote("one two "), path="/api/generate")
    tiers.cloud.plan(TextAnswer())
    body = {"model": "small", "prompt": "x", "max_tokens": 50, "stream": True}
    for _ in range(2):
        tiers.ollama.refuse(500, "gone", path="/api/generate")
    answer = await tiers.stack.client.post("/v1/completions", json=body)
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    assert "".join(choice["text"] for each in events for choice in each["choices"]) == TEXT
    assert list(dict.fromkeys(each["model"] for each in events)) == ["small", "openai"]
    assert tiers.cloud.to("/completions")[0].json["prompt"] == "xone two "
