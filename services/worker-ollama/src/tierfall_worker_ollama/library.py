"""Which models Ollama has, and which of them are in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.engines import OLLAMA, engine_of
from tierfall.errors import BackendError
from tierfall_worker_ollama.client import StatusRefusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall_worker_ollama.client import OllamaClient

VERSION_EVERY_S: Final = 60.0
FRESH_S: Final = 2.5
"""How old a look at Ollama may be and still tell whether a model is loaded; probes come each second."""
# What Ollama leaves out when it shows a name.
DEFAULT_PREFIXES: Final = ("registry.ollama.ai/", "library/")
DEFAULT_TAG: Final = "latest"


class _Model(msgspec.Struct):
    name: str
    remote_host: str = ""
    context_length: int = 0


class _Models(msgspec.Struct):
    models: list[_Model] | None = None


class _Details(msgspec.Struct):
    capabilities: list[str] | None = None


class _Version(msgspec.Struct):
    version: str = ""


_models: Final = msgspec.json.Decoder(_Models)


def full_name(name: str) -> str:
    """A model's name in one spelling: ``Qwen2.5`` and ``library/qwen2.5:latest`` are the same model."""
    name = name.casefold()
    for prefix in DEFAULT_PREFIXES:
        name = name.removeprefix(prefix)
    return name if ":" in name.rpartition("/")[2] else f"{name}:{DEFAULT_TAG}"


class Library:
    """What one Ollama has, as of the last look.

    Args:
        client: The way to Ollama.
        wanted: The models that the config names for this tier, in its spelling.

    Attributes:
        names: What Ollama has, in its own spelling.
        engine: Its version, as :mod:`tierfall.engines` writes it; empty if unknown.
    """

    def __init__(self, client: OllamaClient, wanted: Iterable[str]) -> None:
        self._client = client
        self._wanted = tuple(dict.fromkeys(wanted))
        self._pulled: frozenset[str] | None = None
        self._loaded: dict[str, int] = {}
        """The models in memory, with their context windows."""
        self._remote: frozenset[str] = frozenset()
        self._looked_at = float("-inf")
        self._sees: dict[str, bool] = {}
        self._version_due = 0.0
        self.names: tuple[str, ...] = ()
        self.engine = ""

    async def look(self) -> None:
        """Asks Ollama for both lists.

        Raises:
            BackendError, StatusRefusal: As :meth:`OllamaClient.ask`.
            msgspec.DecodeError: What answers is not Ollama.
        """
        pulled, loaded = await asyncio.gather(
            self._client.ask("GET", "/api/tags"), self._client.ask("GET", "/api/ps")
        )
        models = _models.decode(pulled).models or []
        self.names = tuple(model.name for model in models)
        self._pulled = frozenset(map(full_name, self.names))
        self._remote = frozenset(full_name(model.name) for model in models if model.remote_host)
        self._loaded = {
            full_name(model.name): model.context_length for model in _models.decode(loaded).models or []
        }
        self._looked_at = asyncio.get_running_loop().time()

    async def look_at_version(self) -> None:
        """Asks Ollama for its version, once a minute and after :meth:`forget_version`; it may stay unknown.

        An update may restart it between two probes, so that nothing else shows it.
        """
        now = asyncio.get_running_loop().time()
        if now < self._version_due:
            return
        try:
            answer = await self._client.ask("GET", "/api/version")
            self.engine = engine_of(OLLAMA, msgspec.json.decode(answer, type=_Version).version)
        except BackendError:
            return  # it is busy, and asked again with the next probe
        except (StatusRefusal, msgspec.DecodeError):
            self.engine = ""
        self._version_due = now + VERSION_EVERY_S

    def forget_version(self) -> None:
        """Ollama was away: another one may come back."""
        self.engine = ""
        self._version_due = 0.0

    @property
    def fresh(self) -> bool:
        """Whether the last look is recent."""
        return asyncio.get_running_loop().time() - self._looked_at < FRESH_S

    @property
    def missing(self) -> tuple[str, ...]:
        """The configured models that Ollama does not have; none before the first look."""
        return tuple(name for name in self._wanted if self.lacks(name))

    @property
    def useless(self) -> bool:
        """Whether Ollama has none of the configured models."""
        return bool(self._wanted) and len(self.missing) == len(self._wanted)

    def lacks(self, name: str) -> bool:
        """Whether Ollama is known not to have this model."""
        return self._pulled is not None and full_name(name) not in self._pulled

    def loaded(self, name: str) -> bool:
        """Whether the model is in memory; one that Ollama reaches over the network counts as loaded."""
        return full_name(name) in self._loaded or full_name(name) in self._remote

    def window(self, name: str) -> int:
        """The context window of a model in memory; 0 where that is not known."""
        return self._loaded.get(full_name(name), 0)

    async def sees(self, name: str) -> bool:
        """Whether the model takes images; a version of Ollama that does not say so is believed to.

        Raises:
            BackendError, StatusRefusal: As :meth:`OllamaClient.ask`.
        """
        key = full_name(name)
        if key not in self._sees:
            answer = await self._client.ask("POST", "/api/show", {"model": name})
            capabilities = msgspec.json.decode(answer, type=_Details).capabilities
            self._sees[key] = capabilities is None or "vision" in capabilities
        return self._sees[key]
