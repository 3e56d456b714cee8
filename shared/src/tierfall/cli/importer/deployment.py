"""One entry of LiteLLM's ``model_list`` in Tierfall's terms: which backend, which model, which limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from tierfall.cli.importer import providers, values
from tierfall.cli.importer.values import Key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.cli.importer.findings import Findings
    from tierfall.cli.importer.providers import Target
    from tierfall.cli.importer.source import Entry

SERVED_MODES: Final = frozenset({"", "chat", "completion", "responses", "embedding"})
OLLAMA_PATHS: Final = ("/v1", "/api")
AZURE_PATH: Final = "/openai/v1"
OPENAI_ADDRESSES: Final = ("", "https://api.openai.com/v1", "https://api.openai.com")
LAST: Final = 1 << 30
"""The place of a deployment without an ``order``."""

PRICES: Final = ("input_cost_per_token", "output_cost_per_token")
"""In ``litellm_params`` or in ``model_info``."""
_USED: Final = frozenset(
    {
        "model",
        "api_base",
        "api_key",
        "base_url",
        "custom_llm_provider",
        "timeout",
        "stream_timeout",
        "order",
        "num_ctx",
        "keep_alive",
        "max_parallel_requests",
        *PRICES,
    }
)
_PARAMS: Final = {
    "rpm": "only cloud tiers have quotas. The tier's max_in_flight bounds how many run at once",
    "tpm": "only cloud tiers have quotas. The tier's max_in_flight bounds how many run at once",
    "api_version": "Azure's /openai/v1 address takes none",
    "max_retries": "Tierfall tries once more on the same tier, then goes on to the next",
    "num_retries": "Tierfall tries once more on the same tier, then goes on to the next",
    "weight": "a ladder has an order and no weights",
    "tags": "Tierfall does not route by tag: give each a name of its own, and keys that may use it",
    "region_name": "Tierfall does not route by region",
    "organization": "Tierfall sends no OpenAI-Organization header: use a key of that organization's project",
    "extra_headers": "Tierfall sends no headers of its own to a backend",
    "extra_body": "clients have to send these fields; Tierfall passes unknown ones on",
    "drop_params": "what a backend cannot honour goes to the next tier, or is refused with its name",
}
_SAMPLING: Final = frozenset(
    {
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "n",
        "reasoning_effort",
        "thinking",
        "response_format",
        "top_k",
        "repetition_penalty",
    }
)
_NEEDLESS_INFO: Final = frozenset({"id", "mode", "base_model", "db_model", "max_tokens", "max_output_tokens"})


_QUOTAS: Final = ("rpm", "tpm")
_EXACT: Final = "a quota of the model now, held exactly over all workers; needs JetStream"


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """What makes two deployments share a tier."""

    worker: str
    provider: str = ""
    base_url: str = ""
    key: Key = Key()
    keep_alive: str = ""
    num_ctx: int | None = None


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One backend's model under one of LiteLLM's names; limits in seconds and counts."""

    name: str
    was: str
    """``litellm_params.model``."""
    backend: Backend
    model: str
    timeout_s: float | None
    stream_timeout_s: float | None
    order: int
    parallel: int | None
    context_window: int | None
    rpm: int | None = None
    tpm: int | None = None
    prices: tuple[float, float] | None = None
    """Of a million tokens of prompt and of answer."""


class Reader:
    """Reads entries.

    Args:
        environ: For what Tierfall cannot take from the environment itself: addresses and times.
        findings: Told what does not come over.
    """

    def __init__(self, environ: Mapping[str, str], findings: Findings) -> None:
        self._environ = environ
        self._findings = findings

    def read(self, entry: Entry) -> Deployment | None:
        """The entry as a deployment; ``None``, with a finding, for one that Tierfall cannot serve."""
        params = entry.params
        was = str(params["model"]).strip()
        provider, model = providers.split(was, str(params.get("custom_llm_provider") or ""))
        target = providers.TARGETS.get(provider)
        if not self._is_served(entry, was):
            return None
        if target is None:
            advice = providers.ADVICE.get(provider, providers.ADVICE_ELSE)
            said = f"provider {provider}" if provider else f"model {was}, which names no provider"
            self._findings.lost(said, advice, entry.name)
            return None
        if not model.strip():
            self._findings.lost(f"model {was}", "names no model of the provider", entry.name)
            return None
        if provider in providers.COMPLETIONS_ONLY:
            self._findings.changed(
                f"{provider}/", "chats go to its /chat/completions; /v1/completions is there too", entry.name
            )
        backend = self._backend(entry, target)
        counted = backend.worker == "cloud"
        self._tell_params(entry, target, counted=counted)
        return Deployment(
            name=entry.name,
            was=was,
            backend=backend,
            model=model if not target.prefix or "/" in model else f"{target.prefix}{model}",
            timeout_s=self._seconds(entry, "timeout"),
            stream_timeout_s=self._seconds(entry, "stream_timeout"),
            order=values.whole(params.get("order")) or LAST,
            parallel=values.whole(params.get("max_parallel_requests")),
            context_window=values.whole(entry.info.get("max_input_tokens")),
            rpm=values.whole(params.get("rpm")) if counted else None,
            tpm=values.whole(params.get("tpm")) if counted else None,
            prices=self._prices(entry),
        )

    def _prices(self, entry: Entry) -> tuple[float, float] | None:
        found = []
        for key in PRICES:
            written = entry.params.get(key, entry.info.get(key))
            price = values.price(written)
            if written is not None and price is None:
                self._findings.lost(key, "is no price of a token", entry.name)
            found.append(price or 0.0)
        return (found[0], found[1]) if any(found) else None

    def _is_served(self, entry: Entry, was: str) -> bool:
        mode = str(entry.info.get("mode") or "")
        if mode not in SERVED_MODES:
            self._findings.lost(f"mode {mode}", "Tierfall serves chat, completions, embeddings", entry.name)
            return False
        if not mode and providers.NOT_SERVED.search(was):
            why = "is for neither chat nor completions nor embeddings"
            self._findings.lost(f"model {was}", why, entry.name)
            return False
        return True

    def _backend(self, entry: Entry, target: Target) -> Backend:
        params = entry.params
        base_url = self._base_url(entry, target)
        if target.speaks == "ollama":
            for path in OLLAMA_PATHS:
                base_url = base_url.removesuffix(path)
            if params.get("api_key"):
                self._findings.lost("api_key", "worker-ollama sends none", entry.name)
            return Backend(
                worker="ollama",
                base_url=base_url,
                keep_alive=str(params.get("keep_alive") or ""),
                num_ctx=values.whole(params.get("num_ctx")),
            )
        if target.speaks == "azure":
            return self._azure(entry, base_url, values.key(params.get("api_key"), target.key))
        if target.speaks == "cloud" and (target.provider != "openai" or base_url in OPENAI_ADDRESSES):
            known = target.provider == "openai"
            key = values.key(params.get("api_key"), target.key)
            return Backend(
                worker="cloud", provider=target.provider, base_url="" if known else base_url, key=key
            )
        return self._openai_like(entry, base_url)

    def _openai_like(self, entry: Entry, base_url: str) -> Backend:
        """An engine nearby, or a provider on the internet that Tierfall has no name for."""
        key = values.key(entry.params.get("api_key"))
        if values.is_near(base_url) or not key:
            if not key and not values.is_near(base_url):
                advice = (
                    "LiteLLM would send OPENAI_API_KEY there; Tierfall sends no key. Set the tier's"
                    " api_key if the address wants one"
                )
                self._findings.changed(base_url, advice, entry.name)
            return Backend(worker="vllm", base_url=base_url, key=key)
        labels = [label for label in (urlsplit(base_url).hostname or "").split(".") if label]
        while len(labels) > 1 and labels[0] in {"api", "www"}:
            labels = labels[1:]
        return Backend(worker="cloud", provider=labels[0], base_url=base_url, key=key)

    def _azure(self, entry: Entry, base_url: str, key: Key) -> Backend:
        parts = urlsplit(base_url)
        advice = (
            "asked at the resource's /openai/v1, which takes the deployment's name as the model. Resources"
            " that lack that address (older clouds) do not work"
        )
        self._findings.changed("azure/", advice, entry.name)
        for name in ("azure_ad_token", "tenant_id", "client_id", "client_secret"):
            if entry.params.get(name):
                self._findings.lost(name, "worker-cloud signs in with a key alone", entry.name)
        base_url = f"{parts.scheme}://{parts.netloc}{AZURE_PATH}"
        return Backend(worker="cloud", provider="azure", base_url=base_url, key=key)

    def _base_url(self, entry: Entry, target: Target) -> str:
        """The address to ask; empty for a provider whose address Tierfall knows."""
        given = entry.params.get("api_base") or entry.params.get("base_url")
        name = values.variable(given)
        if given is None:
            if target.speaks == "cloud":
                return target.base_url
            name = target.base
            given = self._environ.get(name) or target.base_url or None
            if given is None and not name:
                name = f"{entry.params['model']}'s api_base"
        elif name:
            given = self._environ.get(name)
        if given is not None and values.is_address(str(given)):
            url, cut = values.trimmed(str(given))
            if cut:
                self._findings.lost("query or user in api_base", "an address has none here", entry.name)
            if name and self._environ.get(name):
                self._findings.changed(name, "its present value stands in the file now", entry.name)
            return url
        label = "".join(letter if letter.isalnum() else "-" for letter in name or "api-base").strip("-")
        url = f"http://{label.lower()[:60]}.invalid/v1"
        self._findings.todo(
            f"write the tier's base_url in place of {url}", "its address is not known", entry.name
        )
        return url

    def _seconds(self, entry: Entry, key: str) -> float | None:
        value = entry.params.get(key)
        limit_s = values.seconds(value, self._environ)
        if value is not None and limit_s is None:
            self._findings.lost(key, "is no positive number of seconds that is known now", entry.name)
        return limit_s

    def _tell_params(self, entry: Entry, target: Target, *, counted: bool) -> None:
        """A finding for each key that has no place in what was made."""
        only_ollama = {"num_ctx", "keep_alive"} if target.speaks != "ollama" else set()
        for key, value in entry.params.items():
            if (key in _USED and key not in only_ollama) or value is None:
                continue
            if counted and key in _QUOTAS and values.whole(value):
                self._findings.changed(key, _EXACT, entry.name)
            elif key in _SAMPLING:
                self._findings.lost(key, "clients have to send it themselves", entry.name)
            elif key == "api_version":
                self._findings.needless(key, _PARAMS[key], entry.name)
            elif "cost" in key:
                self._findings.lost(key, "prices here are of tokens of prompts and answers alone", entry.name)
            else:
                self._findings.lost(key, _PARAMS.get(key, "Tierfall has nothing of that name"), entry.name)
        for key, value in entry.info.items():
            self._tell_info(entry, key, value)

    def _tell_info(self, entry: Entry, key: str, value: Any) -> None:
        name = f"model_info.{key}"
        if (key == "max_input_tokens" and values.whole(value)) or key in PRICES:
            return
        if "cost" in key:
            self._findings.lost(name, "prices here are of tokens of prompts and answers alone", entry.name)
        elif key in _NEEDLESS_INFO or key.startswith("supports_"):
            self._findings.needless(name, "the backend is asked what the client asks", entry.name)
        else:
            self._findings.lost(name, "Tierfall has nothing of that name", entry.name)
