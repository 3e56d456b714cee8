"""``tierfall import litellm``: a LiteLLM config becomes one that can be used, and nothing goes unsaid."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest

from tierfall.cli.importer import Converted, convert, run
from tierfall.config import (
    CloudTier,
    Config,
    Duration,
    Money,
    OllamaTier,
    Price,
    Quota,
    Rate,
    VllmTier,
    notes,
    parse,
)
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

HOME = """
model_list:
  - model_name: vllm-qwen
    litellm_params:
      {model: hosted_vllm/Qwen/Qwen2.5-7B-Instruct, api_base: "http://gpubox:8000/v1/", timeout: 3}
  - model_name: ollama-qwen
    litellm_params: {model: "ollama_chat/qwen2.5:3b", num_ctx: 8192, timeout: 120}
    model_info: {max_input_tokens: 8192}
  - model_name: openai-gpt4o
    litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/OPENAI_API_KEY, rpm: 100}
  - model_name: groq/*
    litellm_params: {model: groq/*, api_key: os.environ/GROQ_API_KEY}
litellm_settings:
  num_retries: 2
  fallbacks: [{vllm-qwen: [ollama-qwen]}, {ollama-qwen: [openai-gpt4o]}]
general_settings: {master_key: os.environ/LITELLM_MASTER_KEY}
"""


class AllSet(dict[str, str]):
    """An environment in which every variable is set."""

    def get(self, key: str, default: object = None) -> str:
        """A value that tells its name."""
        return f"{key}-{default}"


def imported(folder: Path, text: str, *wanted: str, **environ: str) -> tuple[Config, Converted]:
    """The config that comes of a LiteLLM config, read as the services read it, and all that was said."""
    path = folder / "config.yaml"
    path.write_text(text)
    made = convert(path, environ, wanted)
    return parse(made.text, AllSet(), "new.yaml"), made


def said(made: Converted) -> str:
    """The findings as one line, so that it does not matter where they are wrapped."""
    return " ".join(" ".join(made.findings).split())


def models(*entries: str) -> str:
    """A model list of ``name: params`` pairs in YAML's flow form."""
    listed = []
    for entry in entries:
        name, _, params = entry.partition(": ")
        listed.append(f"  - {{model_name: {name}, litellm_params: {params}}}\n")
    return "model_list:\n" + "".join(listed)


def test_a_home_lab_comes_over_whole(tmp_path: Path) -> None:
    """Tiers by kind, secrets by name, deadlines, and a ladder with the fallbacks of fallbacks written out."""
    config, made = imported(tmp_path, HOME, "groq/llama-3.3-70b-versatile")
    vllm, ollama, openai = config.tiers["vllm"], config.tiers["ollama"], config.tiers["openai"]
    assert isinstance(vllm, VllmTier)
    assert vllm.base_url == "http://gpubox:8000/v1"
    assert isinstance(ollama, OllamaTier)
    assert (ollama.base_url, ollama.num_ctx) == ("http://127.0.0.1:11434", 8192)
    assert isinstance(openai, CloudTier)
    assert (openai.provider, openai.base_url, openai.api_key.source) == ("openai", "", "OPENAI_API_KEY")
    assert config.ladder("vllm-qwen") == ("vllm-qwen", "ollama-qwen", "openai-gpt4o")
    assert config.models["vllm-qwen"].backend_model == "Qwen/Qwen2.5-7B-Instruct"
    assert config.models["vllm-qwen"].deadlines.first_token == Duration(3)
    assert config.models["vllm-qwen"].deadlines.total == Duration(600)
    assert config.models["ollama-qwen"].context_window == 8192
    assert config.models["openai-gpt4o"].quota == Quota(requests=(Rate(100, "minute"),))
    groq = config.models["groq/llama-3.3-70b-versatile"]
    assert (groq.tier, groq.backend_model) == ("groq", "llama-3.3-70b-versatile")
    assert (config.server.host, config.server.port) == ("0.0.0.0", 4000)
    assert [key.key.source for key in config.server.api_keys] == ["LITELLM_MASTER_KEY"]
    assert not made.holds_secrets
    for word in (
        "rpm (openai-gpt4o)",
        "litellm_settings.num_retries",
        "wildcard groq/*",
        "export GROQ_API_KEY",
    ):
        assert word in said(made)


def test_what_is_said_stands_in_the_file_too(tmp_path: Path) -> None:
    """Every line of the list is a comment at the file's top."""
    _, made = imported(tmp_path, HOME)
    comments = [line.removeprefix("# ") for line in made.text.splitlines() if line.startswith("# ")]
    assert [line for line in made.findings if line] == [line for line in comments if line in made.findings]


def test_prices_come_over(tmp_path: Path) -> None:
    """What a token costs becomes what a million costs, from either section; what is no price is said."""
    text = models(
        "a: {model: gpt-4o-mini, input_cost_per_token: 1.5e-07, output_cost_per_token: '0.0000006'}",
        "b: {model: gpt-4o, output_cost_per_token: 0.00001}",
        "c: {model: gpt-4o, input_cost_per_token: 0}",
        "d: {model: gpt-4o, input_cost_per_token: much}",
    ).replace("much}}", "much}, model_info: {output_cost_per_token: 2.0e-6}}")
    config, made = imported(tmp_path, text)
    assert [config.models[name].price for name in "abcd"] == [
        Price(prompt=Money(0.15), completion=Money(0.6)),
        Price(completion=Money(10)),
        Price(),
        Price(completion=Money(2)),
    ]
    assert "input_cost_per_token (d): is no price of a token" in said(made)
    assert "cost_per_token (a)" not in said(made)


def test_limits_become_quotas(tmp_path: Path) -> None:
    """A provider's model keeps its rpm and tpm, under two names the first's; an own engine does not."""
    text = models(
        "a: {model: gpt-4o, rpm: 60, tpm: '90000'}",
        "b: {model: gpt-4o, rpm: 10}",
        "c: {model: gpt-4o}",
        "d: {model: hosted_vllm/x, api_base: 'http://gpu:8000/v1', rpm: 5}",
    )
    config, made = imported(tmp_path, text)
    quota = Quota(requests=(Rate(60, "minute"),), tokens=(Rate(90_000, "minute"),))
    assert [config.models[name].quota for name in "abcd"] == [quota, quota, Quota(), Quota()]
    assert "rpm and tpm (b): gpt-4o has another one under another name" in said(made)
    assert "rpm (d): only cloud tiers have quotas" in said(made)
    assert "rpm (a, b): a quota of the model now" in said(made)


@pytest.mark.parametrize(
    ("params", "kind", "expected"),
    [
        ("{model: gpt-4o}", "cloud", ("openai", "", "OPENAI_API_KEY", "gpt-4o")),
        ("{model: groq/llama, api_key: os.environ/G}", "cloud", ("groq", "", "G", "llama")),
        ("{model: gemini/gemini-2.5-flash}", "cloud", ("gemini", "", "GEMINI_API_KEY", "gemini-2.5-flash")),
        ("{model: mistral/mistral-small}", "cloud", ("mistral", "", "MISTRAL_API_KEY", "mistral-small")),
        (
            "{model: azure/my-gpt, api_base: 'https://res.openai.azure.com/', api_version: '2024-02-01'}",
            "cloud",
            ("azure", "https://res.openai.azure.com/openai/v1", "AZURE_API_KEY", "my-gpt"),
        ),
        (
            "{model: openrouter/meta/llama, api_key: os.environ/OR}",
            "cloud",
            ("openrouter", "https://openrouter.ai/api/v1", "OR", "meta/llama"),
        ),
        (
            "{model: openai/big, api_base: 'https://api.example.com/v1', api_key: os.environ/K}",
            "cloud",
            ("example", "https://api.example.com/v1", "K", "big"),
        ),
        (
            "{model: openai/big, api_base: 'http://10.0.0.7:8000/v1/completions', api_key: os.environ/K}",
            "vllm",
            ("", "http://10.0.0.7:8000/v1", "K", "big"),
        ),
        (
            "{model: text-embedding-3-small, mode: embedding}",
            "cloud",
            ("openai", "", "OPENAI_API_KEY", "text-embedding-3-small"),
        ),
        ("{model: vllm/org/m}", "vllm", ("", "http://127.0.0.1:8000/v1", "", "org/m")),
        (
            "{model: text-completion-openai/m, api_base: 'http://localhost:8000/v1'}",
            "vllm",
            ("", "http://localhost:8000/v1", "", "m"),
        ),
        (
            "{model: m, custom_llm_provider: openai, api_base: 'http://box.lan/v1'}",
            "vllm",
            ("", "http://box.lan/v1", "", "m"),
        ),
        (
            "{model: ollama/m:1b, api_base: 'http://box:11434/v1'}",
            "ollama",
            ("", "http://box:11434", "", "m:1b"),
        ),
    ],
)
def test_each_provider_finds_its_worker(
    tmp_path: Path, params: str, kind: str, expected: tuple[str, str, str, str]
) -> None:
    """Provider, address, the key's variable and the backend's model name, for each of LiteLLM's prefixes."""
    config, _ = imported(tmp_path, models(f"a: {params}"))
    tier = config.tiers[config.models["a"].tier]
    key: Any = getattr(tier, "api_key", None)
    found = (
        getattr(tier, "provider", ""),
        tier.base_url,
        key.source if key else "",
        config.models["a"].backend_model,
    )
    assert (tier.kind, found) == (kind, expected)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("a: {model: anthropic/claude-sonnet}", "no worker speaks Anthropic's API"),
        ("a: {model: bedrock/x}", "no worker for this provider"),
        ("a: {model: azure/dall-e-3}", "is for neither chat nor completions nor embeddings"),
        ("a: {model: no-such-thing}", "names no provider"),
        ("a: {api_key: x}", "has no litellm_params.model"),
    ],
)
def test_what_cannot_be_served_is_named_with_the_reason(tmp_path: Path, entry: str, why: str) -> None:
    """The rest of the file still comes over, and fallbacks to what did not are named too."""
    text = models(entry, "b: {model: gpt-4o}") + "router_settings: {fallbacks: [{b: [a]}]}\n"
    config, made = imported(tmp_path, text)
    assert list(config.models) == ["b"]
    assert why in said(made)
    assert "fallback a (b): is no model of the new file" in said(made)


def test_a_file_without_any_model_of_ours_is_refused(tmp_path: Path) -> None:
    """With the reasons, as there is no file to hold them."""
    with pytest.raises(ConfigError, match=r"(?s)no model of it can be carried over.*Anthropic's API"):
        imported(tmp_path, models("a: {model: anthropic/claude-sonnet}"))


def test_deployments_of_one_name_become_a_ladder(tmp_path: Path) -> None:
    """Equal ones are one model; others come after each other, by `order`, also in the ladders of others."""
    text = models(
        "a: {model: azure/m, api_base: 'https://east.openai.azure.com', order: 2}",
        "a: {model: azure/m, api_base: 'https://west.openai.azure.com', order: 1, max_parallel_requests: 7}",
        "a: {model: azure/m, api_base: 'https://west.openai.azure.com', order: 3, max_parallel_requests: 5}",
        "b: {model: gpt-4o}",
    )
    config, made = imported(tmp_path, text + "litellm_settings: {default_fallbacks: [a]}\n")
    assert config.ladder("a") == ("a", "a-2")
    assert config.ladder("b") == ("b", "a", "a-2")
    first = config.tiers[config.models["a"].tier]
    assert first.base_url == "https://west.openai.azure.com/openai/v1"
    assert first.max_in_flight == 12
    assert "2 deployments (a): LiteLLM spreads requests over them" in said(made)
    assert "deployments with the same address, key and model (a)" in said(made)


def test_fallbacks_follow_litellms_order(tmp_path: Path) -> None:
    """Depth first, nothing twice, cycles end; the default is for names without their own; aliases inherit."""
    text = models(*(f"{name}: {{model: gpt-4o-{name}}}" for name in "abcd"))
    text += """
router_settings:
  fallbacks: [{a: [b, c]}, {b: [d, a]}]
  default_fallbacks: [c]
  model_group_alias: {smart: a, hid: {model: b, hidden: true}}
litellm_settings:
  fallbacks: [{a: [d]}]
"""
    config, made = imported(tmp_path, text)
    assert config.ladder("a") == ("a", "b", "d", "c")
    assert config.ladder("b") == ("b", "d", "c", "a")
    assert config.ladder("c") == ("c",)
    assert config.ladder("d") == ("d", "c")
    assert config.ladder("smart") == ("smart", "b", "d", "c")
    assert config.models["smart"].backend_model == "gpt-4o-a"
    assert "litellm_settings.fallbacks: LiteLLM too lets router_settings win" in said(made)
    assert "hidden alias (hid)" in said(made)


def test_context_window_fallbacks_join_the_ladder(tmp_path: Path) -> None:
    """Behind the others, with a word about the windows that the file does not tell."""
    text = models("a: {model: gpt-4o-a}", "b: {model: gpt-4o-b}", "big: {model: gpt-4o-big}")
    text += "litellm_settings: {fallbacks: [{a: [b]}], context_window_fallbacks: [{a: [big]}]}\n"
    config, made = imported(tmp_path, text)
    assert config.ladder("a") == ("a", "b", "big")
    assert "give the model a context_window (tokens) (a, b, big)" in said(made)


@pytest.mark.parametrize(
    ("own", "of_all", "expected"),
    [
        ("", "", (30, 600, 900)),
        (", stream_timeout: 2, timeout: 300", "request_timeout: 6", (2, 300, 900)),
        (", stream_timeout: 0.5, timeout: 5", "", (0.5, 5, 900)),
        (", timeout: 3", "request_timeout: 600", (3, 600, 900)),
        ("", "request_timeout: 20", (20, 600, 900)),
        ("", "request_timeout: 6000", (30, 6000, 6000)),
        (", timeout: os.environ/LIMIT", "", (7, 600, 900)),
        (", stream_timeout: 700", "", (700, 700, 900)),
    ],
)
def test_time_limits_become_clocks(
    tmp_path: Path, own: str, of_all: str, expected: tuple[float, float, float]
) -> None:
    """`stream_timeout` and short `timeout`s are first-token deadlines, long ones the total; budgets fit."""
    text = models(f"a: {{model: gpt-4o{own}}}") + f"litellm_settings: {{{of_all}}}\n"
    config, _ = imported(tmp_path, text, LIMIT="7")
    deadlines = config.models["a"].deadlines
    assert (deadlines.first_token, deadlines.total, deadlines.budget) == expected
    assert not [note for note in notes(config) if "budget" in note]


def test_keys_in_the_file_stay_keys_in_the_file(tmp_path: Path) -> None:
    """They work as before, no list shows them, and the new file is its owner's alone."""
    secrets = ("sk-master-0123", 'sk-"quoted"-4567')
    text = models(f"a: {{model: gpt-4o, api_key: '{secrets[1]}'}}")
    text += f"general_settings: {{master_key: {secrets[0]}}}\nenvironment_variables: {{X: {secrets[0]}}}\n"
    config, made = imported(tmp_path, text)
    tier = config.tiers["openai"]
    assert isinstance(tier, CloudTier)
    assert (config.server.api_keys[0].key.value, tier.api_key.value) == secrets
    assert made.holds_secrets
    assert not any(secret in said(made) for secret in secrets)
    output = tmp_path / "new.yaml"

    def written(*, force: bool = False) -> int:
        """The command's exit status."""
        source, out, err = tmp_path / "config.yaml", io.StringIO(), io.StringIO()
        return run(source, output=output, force=force, wanted=(), environ={}, out=out, err=err)

    assert written() == 0
    assert output.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="is there already"):
        written()
    assert written(force=True) == 0


def test_without_a_master_key_it_stays_on_loopback(tmp_path: Path) -> None:
    """LiteLLM would answer everybody; Tierfall does not, and says so."""
    config, made = imported(tmp_path, models("a: {model: gpt-4o}"))
    assert config.server.host == "127.0.0.1"
    assert "no master_key" in said(made)


def test_an_address_from_the_environment_is_filled_in(tmp_path: Path) -> None:
    """With the value that it has now; one that is not set becomes an address that cannot exist."""
    text = models(
        "a: {model: openai/m, api_base: os.environ/ONE}", "b: {model: openai/m, api_base: os.environ/TWO}"
    )
    config, made = imported(tmp_path, text, ONE="http://box:1/v1")
    bases = [config.tiers[config.models[name].tier].base_url for name in ("a", "b")]
    assert bases == ["http://box:1/v1", "http://two.invalid/v1"]
    assert "ONE (a): its present value stands in the file now" in said(made)
    assert "in place of http://two.invalid/v1 (b)" in said(made)


def test_wildcards_give_the_models_that_are_named(tmp_path: Path) -> None:
    """By --model, in fallbacks and by alias; the longest pattern wins; what matches nothing is told."""
    text = models(
        '"*": {model: "openai/*"}',
        '"groq/*": {model: "groq/*"}',
        '"anthropic/*": {model: "anthropic/*"}',
    )
    text += "router_settings: {model_group_alias: {fast: groq/llama}, fallbacks: [{gpt-4o: [groq/llama]}]}\n"
    config, made = imported(tmp_path, text, "anthropic/claude", "o3")
    assert set(config.models) == {"o3", "gpt-4o", "groq/llama", "fast"}
    assert config.ladder("gpt-4o") == ("gpt-4o", "groq/llama")
    assert (config.models["fast"].tier, config.models["fast"].backend_model) == ("groq", "llama")
    assert config.models["o3"].tier == "openai"
    assert "--model anthropic/claude: no entry of the file matches it" in said(made)


def test_no_key_of_any_section_goes_unsaid(tmp_path: Path) -> None:
    """What has no place here is named, whether LiteLLM knows it or not."""
    text = """
model_list:
  - model_name: a
    litellm_params:
      model: gpt-4o
      temperature: 0.2
      made_up_param: 1
      input_cost_per_second: 1
      litellm_credential_name: c
    model_info: {id: x, made_up_info: 1}
    made_up_key: 1
credential_list: [{credential_name: c, credential_values: {api_key: os.environ/CREDENTIAL}}]
litellm_settings: {drop_params: true, content_policy_fallbacks: [{a: [b]}], made_up_setting: 1}
litellm_settings: {drop_params: true, content_policy_fallbacks: [{a: [b]}], made_up_setting: 1}
router_settings: {routing_strategy: least-busy, redis_host: h, made_up_routing: 1}
general_settings: {store_model_in_db: true, made_up_general: 1}
guardrails: [{guardrail_name: g}]
made_up_section: {x: 1}
"""
    config, made = imported(tmp_path, text)
    tier = config.tiers["openai"]
    assert isinstance(tier, CloudTier)
    assert tier.api_key.source == "CREDENTIAL"
    for key in (
        "temperature",
        "made_up_param",
        "input_cost_per_second",
        "model_info.id",
        "model_info.made_up_info",
        "made_up_key",
        "the first litellm_settings",
        "litellm_settings.drop_params",
        "content_policy_fallbacks",
        "litellm_settings.made_up_setting",
        "router_settings.routing_strategy",
        "router_settings.redis_host",
        "router_settings.made_up_routing",
        "general_settings.store_model_in_db",
        "general_settings.made_up_general",
        "guardrails",
        "made_up_section",
    ):
        assert key in said(made), key


def test_included_files_are_read(tmp_path: Path) -> None:
    """As LiteLLM merges them: lists grow."""
    (tmp_path / "more.yaml").write_text(models("b: {model: gpt-4o-mini}"))
    config, _ = imported(tmp_path, "include: [more.yaml]\n" + models("a: {model: gpt-4o}"))
    assert list(config.models) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["qwen2.5:3b", "null", "yes", "a: b", "#1", "it's [odd], {very}", "é", "1.10"]
)
def test_odd_names_survive(tmp_path: Path, name: str) -> None:
    """A model's name is the same afterwards, as a key and in a ladder."""
    quoted = name.replace("'", "''")
    text = f"model_list: [{{model_name: '{quoted}', litellm_params: {{model: gpt-4o}}}},"
    text += "{model_name: b, litellm_params: {model: gpt-4o-mini}}]\n"
    config, _ = imported(tmp_path, text + f"router_settings: {{fallbacks: [{{b: ['{quoted}']}}]}}\n")
    assert list(config.models) == [name, "b"]
    assert config.ladder("b") == ("b", name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "a LiteLLM config is a mapping"),
        ("model_list: {a: 1}\n", "model_list must be a list"),
        ("model_list: [\n", "not YAML"),
        ("a: !env X\n", "not YAML"),
        ("", "a LiteLLM config is a mapping"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """With what it should be, and no traceback."""
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, text)
