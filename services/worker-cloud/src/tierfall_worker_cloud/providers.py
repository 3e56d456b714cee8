"""What is known of each provider, as data. A new one is an entry in :data:`PROVIDERS`.

A request field that is not named here travels as it is. Sources: the providers' API references and their
published clients, as of 2026; where the two disagree, the error messages that users report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.errors import ConfigError
from tierfall.ledger import Metric, Window
from tierfall.quota import ZONES
from tierfall_worker_cloud.chunks import ChunkMender, GeminiMender, GroqMender, MistralMender

if TYPE_CHECKING:
    from tierfall.config import CloudTier


class Rename(msgspec.Struct, frozen=True):
    """A field that the provider knows by another name."""

    old: str
    new: str
    models: str = ""
    """Regular expression, matched at the start of the backend's model name; empty for all models."""


class Refusal(msgspec.Struct, frozen=True):
    """A field that the provider cannot honour.

    One of the ``neutral`` values, or null, asks for nothing and is only left out.
    """

    field: str
    neutral: tuple[bool | float | dict[str, float] | list[str], ...] = ()


class Gauge(msgspec.Struct, frozen=True):
    """The headers in which a provider tells, with every answer, what is left of one limit.

    Attributes:
        metric: What it counts.
        window: In how long, as far as the provider documents it.
        left: The header that says how much is left.
        limit: The one that says of how much, if there is one.
        reset: The one that says in how long all of it is there again: ``2m59.56s``, ``6ms``, or seconds.
    """

    metric: Metric
    window: Window
    left: str
    limit: str = ""
    reset: str = ""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What one endpoint of a provider takes.

    Attributes:
        renames: Fields that go under another name; done silently.
        values: Values that go under another name, by field: ``{"tool_choice": {"required": "any"}}``.
        refused: Fields whose wish cannot be granted: a 400 that names the field, or the next tier.
        dropped: Fields that only label a request; left out silently, as the provider would refuse them.
    """

    renames: tuple[Rename, ...] = ()
    values: dict[str, dict[str, str]] = {}
    refused: tuple[Refusal, ...] = ()
    dropped: tuple[str, ...] = ()


class EmbeddingRules(Rules, frozen=True, kw_only=True):
    """Likewise, of embeddings.

    Attributes:
        tokens: Whether it takes arrays of tokens, and not only text.
    """

    tokens: bool = True


class Provider(Rules, frozen=True, kw_only=True):
    """One provider: where it is, what it takes, what its chunks need. The rules are those of chat.

    Attributes:
        name: As in the config's ``provider:``.
        base_url: With its version path, without ``/chat/completions``.
        completions: The rules of ``/completions``; None where there is none.
        embeddings: Likewise, of ``/embeddings``.
        stream_usage: Whether it takes ``stream_options.include_usage``.
        roles: Message roles that go under another name.
        message_refused: Members of a message that cannot be honoured; null is left out.
        message_dropped: Members of a message that SDKs echo from an answer and that carry no wish.
        parts: The types of content parts that it takes; empty for all.
        functions_only: Whether every tool, and the one chosen, has to be a function.
        prefill_flag: What marks a last assistant message as the answer's beginning, which the provider then
            says again; empty where there is no such thing.
        mender: Makes the mender of one answer's chunks, where they need one.
        gauges: Where its answers say what is left.
        spent_by_model: Whether a quota that it calls spent is one model's, until its next midnight; else it
            is the whole key's, until somebody pays.
        zone: IANA name of the time zone at whose midnight its days begin.
    """

    name: str
    base_url: str
    completions: Rules | None = Rules()
    embeddings: EmbeddingRules | None = EmbeddingRules()
    stream_usage: bool = True
    roles: dict[str, str] = {}
    message_refused: tuple[str, ...] = ()
    message_dropped: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()
    functions_only: bool = False
    prefill_flag: str = ""
    mender: type[ChunkMender] | None = None
    gauges: tuple[Gauge, ...] = ()
    spent_by_model: bool = False
    zone: str = "UTC"


_REASONING_MODELS: Final = r"(ft:)?(o\d|gpt-[5-9])"
_ECHOED: Final = ("refusal", "annotations", "reasoning_content", "reasoning")
_LOGPROBS: Final = (
    Refusal("logprobs", (False,)),
    Refusal("top_logprobs", (0,)),
    Refusal("logit_bias", ({},)),
)
_LABELS: Final = (
    "store",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
)
_OPENAI_ALONE: Final = (
    Refusal("modalities", (["text"],)),
    Refusal("audio"),
    Refusal("verbosity"),
    Refusal("web_search_options"),
    Refusal("moderation"),
)
_TEXT_AND_IMAGES: Final = frozenset({"text", "image_url"})

_REQUESTS: Final = (
    "x-ratelimit-remaining-requests",
    "x-ratelimit-limit-requests",
    "x-ratelimit-reset-requests",
)
_TOKENS: Final = ("x-ratelimit-remaining-tokens", "x-ratelimit-limit-tokens", "x-ratelimit-reset-tokens")

OPENAI: Final = Provider(
    name="openai",
    base_url="https://api.openai.com/v1",
    renames=(Rename("max_tokens", "max_completion_tokens", _REASONING_MODELS),),
    gauges=(
        Gauge(Metric.REQUESTS, Window.MINUTE, *_REQUESTS),
        Gauge(Metric.TOKENS, Window.MINUTE, *_TOKENS),
    ),
)

GROQ: Final = Provider(
    name="groq",
    base_url="https://api.groq.com/openai/v1",
    completions=None,
    embeddings=None,
    refused=(*_LOGPROBS, *_OPENAI_ALONE, Refusal("n", (1,)), Refusal("prediction")),
    dropped=_LABELS,
    values={"service_tier": {"default": "on_demand"}},
    roles={"developer": "system"},
    message_refused=("name", "audio"),
    message_dropped=("refusal", "annotations", "reasoning_content"),  # its own word is "reasoning"
    parts=_TEXT_AND_IMAGES,
    functions_only=True,
    mender=GroqMender,
    gauges=(Gauge(Metric.REQUESTS, Window.DAY, *_REQUESTS), Gauge(Metric.TOKENS, Window.MINUTE, *_TOKENS)),
)

GEMINI: Final = Provider(
    name="gemini",
    base_url="https://generativelanguage.googleapis.com/v1beta/openai",
    completions=None,
    embeddings=EmbeddingRules(dropped=("encoding_format", "user"), tokens=False),  # it answers with numbers
    refused=(
        *_LOGPROBS,
        Refusal("seed"),
        Refusal("frequency_penalty", (0,)),
        Refusal("presence_penalty", (0,)),
        *_OPENAI_ALONE,
        Refusal("prediction"),
        Refusal("parallel_tool_calls", (True,)),
        Refusal("functions"),
        Refusal("function_call"),
    ),
    dropped=(*_LABELS, "user", "service_tier"),
    roles={"developer": "system"},
    parts=_TEXT_AND_IMAGES | {"input_audio"},
    functions_only=True,
    message_refused=("audio", "function_call"),
    message_dropped=_ECHOED,
    mender=GeminiMender,
    spent_by_model=True,
    zone=ZONES["gemini"],
)

MISTRAL: Final = Provider(
    name="mistral",
    base_url="https://api.mistral.ai/v1",
    completions=None,  # only /fim/completions, which is another API
    embeddings=EmbeddingRules(
        renames=(Rename("dimensions", "output_dimension"),), dropped=("user",), tokens=False
    ),
    stream_usage=False,  # it sends usage unasked, and refuses the field
    renames=(Rename("max_completion_tokens", "max_tokens"), Rename("seed", "random_seed")),
    values={
        "tool_choice": {"required": "any"},
        # It knows on and off; the levels between go to their neighbours.
        "reasoning_effort": dict.fromkeys(("low", "medium", "xhigh", "max"), "high") | {"minimal": "none"},
    },
    refused=(*_LOGPROBS, *_OPENAI_ALONE, Refusal("functions"), Refusal("function_call")),
    dropped=(
        "user",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_retention",
        "prompt_cache_options",
    ),
    roles={"developer": "system"},
    parts=_TEXT_AND_IMAGES,
    functions_only=True,
    message_refused=("name", "audio", "function_call"),
    message_dropped=_ECHOED,
    prefill_flag="prefix",
    mender=MistralMender,
    gauges=(
        Gauge(
            Metric.REQUESTS,
            Window.MINUTE,
            "x-ratelimit-remaining-req-minute",
            "x-ratelimit-limit-req-minute",
        ),
        Gauge(
            Metric.TOKENS,
            Window.MINUTE,
            "x-ratelimit-remaining-tokens-minute",
            "x-ratelimit-limit-tokens-minute",
        ),
        Gauge(
            Metric.TOKENS,
            Window.MONTH,
            "x-ratelimit-remaining-tokens-month",
            "x-ratelimit-limit-tokens-month",
        ),
        Gauge(
            Metric.TOKENS,
            Window.MINUTE,
            "x-ratelimitbysize-remaining-minute",
            "x-ratelimitbysize-limit-minute",
            "ratelimitbysize-reset",
        ),
        Gauge(
            Metric.TOKENS,
            Window.MONTH,
            "x-ratelimitbysize-remaining-month",
            "x-ratelimitbysize-limit-month",
        ),
    ),
)

PROVIDERS: Final = {provider.name: provider for provider in (OPENAI, GROQ, GEMINI, MISTRAL)}


def provider_for(name: str, tier: CloudTier) -> Provider:
    """The provider of a tier; one that is not known needs a ``base_url`` and has no quirks.

    Raises:
        ConfigError: Neither known nor with a ``base_url``.
    """
    known = PROVIDERS.get(tier.provider)
    base_url = tier.base_url or (known.base_url if known else "")
    if not base_url:
        raise ConfigError(
            f"tiers.{name}.base_url: needed, as {tier.provider!r} is none of {', '.join(sorted(PROVIDERS))}"
        )
    if known is None:
        return Provider(name=tier.provider, base_url=base_url)
    return msgspec.structs.replace(known, base_url=base_url)
