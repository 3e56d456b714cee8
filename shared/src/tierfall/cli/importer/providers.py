"""Where each of LiteLLM's providers goes, as data. Source: LiteLLM's provider documentation, as of 2026."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What one of LiteLLM's prefixes becomes.

    Attributes:
        speaks: ``cloud`` for a provider that Tierfall or this table knows the address of, ``openai`` for
            whatever speaks OpenAI's API at ``api_base``, ``ollama``, or ``azure``.
        provider: The tier's ``provider``, for ``cloud``.
        base_url: Where it is when ``api_base`` is missing; empty where Tierfall knows it by itself.
        key: The variable that LiteLLM reads when ``api_key`` is missing.
        base: The one it reads when ``api_base`` is missing.
        prefix: What LiteLLM puts before a model's name that lacks it.
    """

    speaks: Literal["cloud", "openai", "ollama", "azure"]
    provider: str = ""
    base_url: str = ""
    key: str = ""
    base: str = ""
    prefix: str = ""


def _cloud(provider: str, key: str, base_url: str = "", prefix: str = "") -> Target:
    return Target(speaks="cloud", provider=provider, key=key, base_url=base_url, prefix=prefix)


_ENGINE: Final = Target(speaks="openai")
_VLLM: Final = Target(speaks="openai", base_url="http://127.0.0.1:8000/v1", base="HOSTED_VLLM_API_BASE")
_OLLAMA: Final = Target(speaks="ollama", base_url="http://127.0.0.1:11434", base="OLLAMA_API_BASE")

TARGETS: Final = {
    "openai": _cloud("openai", "OPENAI_API_KEY"),
    "text-completion-openai": _cloud("openai", "OPENAI_API_KEY"),
    "groq": _cloud("groq", "GROQ_API_KEY"),
    "gemini": _cloud("gemini", "GEMINI_API_KEY"),
    "mistral": _cloud("mistral", "MISTRAL_API_KEY"),
    "azure": Target(speaks="azure", provider="azure", key="AZURE_API_KEY", base="AZURE_API_BASE"),
    "ollama": _OLLAMA,
    "ollama_chat": _OLLAMA,
    "hosted_vllm": _VLLM,
    "vllm": _VLLM,
    "lm_studio": Target(speaks="openai", base_url="http://127.0.0.1:1234/v1", base="LM_STUDIO_API_BASE"),
    "llamafile": Target(speaks="openai", base_url="http://127.0.0.1:8080/v1", base="LLAMAFILE_API_BASE"),
    "openai_like": _ENGINE,
    "custom_openai": _ENGINE,
    "litellm_proxy": _ENGINE,
    "openrouter": _cloud("openrouter", "OPENROUTER_API_KEY", "https://openrouter.ai/api/v1"),
    "together_ai": _cloud("together", "TOGETHERAI_API_KEY", "https://api.together.xyz/v1"),
    "deepseek": _cloud("deepseek", "DEEPSEEK_API_KEY", "https://api.deepseek.com/v1"),
    "xai": _cloud("xai", "XAI_API_KEY", "https://api.x.ai/v1"),
    "perplexity": _cloud("perplexity", "PERPLEXITYAI_API_KEY", "https://api.perplexity.ai"),
    "deepinfra": _cloud("deepinfra", "DEEPINFRA_API_KEY", "https://api.deepinfra.com/v1/openai"),
    "cerebras": _cloud("cerebras", "CEREBRAS_API_KEY", "https://api.cerebras.ai/v1"),
    "nvidia_nim": _cloud("nvidia", "NVIDIA_NIM_API_KEY", "https://integrate.api.nvidia.com/v1"),
    "sambanova": _cloud("sambanova", "SAMBANOVA_API_KEY", "https://api.sambanova.ai/v1"),
    "fireworks_ai": _cloud(
        "fireworks",
        "FIREWORKS_API_KEY",
        "https://api.fireworks.ai/inference/v1",
        "accounts/fireworks/models/",
    ),
}

COMPLETIONS_ONLY: Final = frozenset({"text-completion-openai"})
"""Prefixes of OpenAI's older ``/completions``, which LiteLLM lets clients ask as chats too."""

_OPENAI_NAMES: Final = re.compile(r"(ft:)?(gpt-|chatgpt-|o\d|text-embedding-|(babbage|davinci)-\d)")
_ANTHROPIC_NAMES: Final = re.compile(r"claude-")
_VERTEX_NAMES: Final = re.compile(r"gemini-")

NOT_SERVED: Final = re.compile(
    r"(^|[/._-])(rerank|whisper|tts|dall-e|moderation|transcribe|gpt-image|imagen|stable-diffusion)"
    r"([/._-]|\d|$)"
)
"""Names of models for what Tierfall does not serve, for entries that do not say ``mode``."""

ADVICE: Final = {
    "anthropic": "no worker speaks Anthropic's API. For trials Anthropic has an address with OpenAI's: a tier"
    " {worker: cloud, provider: anthropic, base_url: https://api.anthropic.com/v1,"
    " api_key: ${ANTHROPIC_API_KEY}}",
    "vertex_ai": "no worker signs in to Google Cloud. Google AI Studio has the same models behind a key: a"
    " tier {worker: cloud, provider: gemini, api_key: ${GEMINI_API_KEY}}",
    "auto_router": "Tierfall does not choose a model by what a prompt says: clients name it",
}
ADVICE_ELSE: Final = (
    "no worker for this provider. If it has an address that speaks OpenAI's API: a tier {worker: cloud,"
    " provider: NAME, base_url: ..., api_key: ...}. Else let LiteLLM go on serving it, as a tier of its own:"
    " {worker: vllm, base_url: http://LITELLM_HOST:4000/v1}"
)


def split(model: str, custom: str) -> tuple[str, str]:
    """LiteLLM's provider and the provider's own name for the model; the provider is empty if unknown.

    Args:
        model: ``litellm_params.model``.
        custom: ``litellm_params.custom_llm_provider``, empty if it is not set.
    """
    if custom:
        return custom, model.removeprefix(f"{custom}/")
    prefix, slash, name = model.partition("/")
    if slash:
        return prefix, name
    for provider, names in (
        ("openai", _OPENAI_NAMES),
        ("anthropic", _ANTHROPIC_NAMES),
        ("vertex_ai", _VERTEX_NAMES),
    ):
        if names.match(model):
            return provider, model
    return "", model
