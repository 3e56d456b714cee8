"""What an engine says of itself beside chat: its health, its models, its token counts.

vLLM does not listen before its model is loaded, answers ``/health`` with an empty 200 afterwards and with an
empty 503 once its engine is dead. llama.cpp's server listens at once and answers 503 ``Loading model`` until
it is ready. SGLang has ``/health`` too; LM Studio and others have only ``/v1/models``.
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.engines import LLAMA_CPP, VLLM, engine_of
from tierfall.errors import BackendDown, BackendError
from tierfall.worker import Health

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tierfall.upstream import OpenAIUpstream, Reply

PROBE_TIMEOUT_S: Final = 1.0
MODELS_EVERY_S: Final = 60.0
TOLERATED_TIMEOUTS: Final = 2
"""An engine deep in a long prompt may be late with its health; that often in a row it still counts as up."""
TOKENIZE_TIMEOUT_S: Final = 1.5
"""Below what the worker runtime waits for the tail of a complete answer."""
MAX_SIDE_BYTES: Final = 32 * 1024 * 1024
BYTES_PER_TOKEN: Final = 4
"""English text has about four bytes a token; used only when the engine cannot count."""
MAX_PARSED_BYTES: Final = 256 * 1024
"""A longer prompt is estimated by its JSON text: to take it apart would hold up every other answer."""
NAMES_SHOWN: Final = 5

_OK: Final = 200
_UNAVAILABLE: Final = 503
_NO_PATH: Final = frozenset({404, 405, 501})
_KEY_STATUSES: Final = frozenset({401, 403})
_encoder: Final = msgspec.json.Encoder()


class Flavour(enum.Enum):
    """Which engine it is, as its model list's ``owned_by`` tells."""

    VLLM = "vllm"
    LLAMA_CPP = "llamacpp"
    OTHER = ""


_VERSIONS: Final = {
    Flavour.VLLM: (VLLM, "/version", "version"),
    Flavour.LLAMA_CPP: (LLAMA_CPP, "/props", "build_info"),
}
"""Where an engine tells its version: its name, the path, and the member of the answer."""


class Engine:
    """The side of one engine that is not chat.

    Args:
        upstream: Its HTTP client; ``/health`` and ``/tokenize`` are beside the base URL's ``/v1``.
        expected: The models that the config has there, in the engine's names.
    """

    def __init__(self, upstream: OpenAIUpstream, expected: frozenset[str]) -> None:
        self._upstream = upstream
        self._root = upstream.base_url.removesuffix("/v1")
        self._expected = expected
        self._last = Health("down", "not probed yet")
        self._timeouts = 0
        self._was_up = False
        """Whether the process that listens there has been up before."""
        self._has_health = True
        self._models: tuple[str, ...] = ()
        self._models_due = 0.0
        self._name = ""
        """The engine with its version; empty if unknown."""
        self.flavour = Flavour.OTHER

    async def probe(self) -> Health:
        """Asks the engine how it is; never raises for one that is down."""
        try:
            self._last = await self._asked()
            self._timeouts = 0
        except TimeoutError:
            self._timeouts += 1
            if self._last.state != "up" or self._timeouts > TOLERATED_TIMEOUTS:
                self._last = Health("down", f"{self._root} does not answer within {PROBE_TIMEOUT_S:g} s")
        except BackendError as error:
            self._was_up = self._was_up and not isinstance(error, BackendDown)
            self._last = Health("down", error.internal)
        if self._last.state == "up":
            self._was_up = True
        else:
            self._models_due = 0.0
            self._name = ""
            self._has_health = True  # another engine may come up at the same address
        return self._last

    async def _asked(self) -> Health:
        if self._has_health:
            reply = await self._get(f"{self._root}/health")
            if reply.status in _NO_PATH:
                self._has_health = False
            elif reply.status != _OK:
                return self._unwell(reply, "/health")
        if not self._has_health or time.monotonic() >= self._models_due:
            reply = await self._get(f"{self._upstream.base_url}/models")
            if reply.status in _KEY_STATUSES:
                key = self._upstream.source.key
                return Health("down", f"{self._root} refused the key ({reply.status}): check {key}")
            if not self._has_health and reply.status != _OK:
                return self._unwell(reply, "/v1/models")
            self._models = _names(reply.json)
            self.flavour = _flavour(reply.json)
            await self._look_at_version()
            self._models_due = time.monotonic() + MODELS_EVERY_S
        return Health("up", self._hint(), self._models, self._name)

    async def _look_at_version(self) -> None:
        """With the models, as an update may restart an engine between two probes; it may stay unknown."""
        if self.flavour is Flavour.OTHER or not self._has_health:
            self._name = ""
            return
        name, path, member = _VERSIONS[self.flavour]
        try:
            reply = await self._get(f"{self._root}{path}")
        except (TimeoutError, BackendError):
            return  # what is known of its health does not change by that
        found = reply.json if reply.status == _OK else None
        self._name = engine_of(name, found.get(member)) if isinstance(found, dict) else ""

    def _unwell(self, reply: Reply, path: str) -> Health:
        """503 means loading where the engine says so, or where it has not been up yet."""
        if reply.status == _UNAVAILABLE and (b"oading" in reply.body or not self._was_up):
            return Health("loading", f"{self._root} is loading its model")
        return Health("down", f"{self._root}{path} answers {reply.status}: see the engine's log")

    def _hint(self) -> str:
        """What is served, if a configured model is not among it. Only a hint: llama.cpp ignores the name."""
        missing = sorted(self._expected - set(self._models))
        if not missing or not self._models:
            return ""
        shown = ", ".join(self._models[:NAMES_SHOWN])
        more = "" if len(self._models) <= NAMES_SHOWN else f" and {len(self._models) - NAMES_SHOWN} more"
        return f"{self._root} serves {shown}{more}, not {', '.join(missing)}: check backend_model"

    async def _get(self, url: str) -> Reply:
        return await self._upstream.ask("GET", url, timeout_s=PROBE_TIMEOUT_S)

    async def count_tokens(self, model: str, field: str, asked: msgspec.Raw) -> int:
        """The prompt's tokens: as vLLM counts them, else as llama.cpp does, else from the text's length.

        Args:
            model: The engine's name of it.
            field: ``messages`` or ``prompt``.
            asked: That field of the request.
        """
        try:
            async with asyncio.timeout(TOKENIZE_TIMEOUT_S):
                counted = await self._as_vllm(model, field, asked)
                if counted is None:
                    counted = await self._as_llama_cpp(field, asked)
        except (TimeoutError, BackendError):
            counted = None
        return _from_length(asked) if counted is None else counted

    async def _as_vllm(self, model: str, field: str, asked: msgspec.Raw) -> int | None:
        found = await self._post("/tokenize", {"model": model, field: asked})
        count = found.get("count")
        return count if isinstance(count, int) else None

    async def _as_llama_cpp(self, field: str, asked: msgspec.Raw) -> int | None:
        prompt: Any = asked
        if field == "messages":
            prompt = (await self._post("/apply-template", {"messages": asked})).get("prompt")
            if not isinstance(prompt, str):
                return None
        tokens = (await self._post("/tokenize", {"content": prompt, "add_special": True})).get("tokens")
        return len(tokens) if isinstance(tokens, list) else None

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's object; empty when there is none."""
        reply = await self._upstream.ask(
            "POST",
            f"{self._root}{path}",
            body=_encoder.encode(body),
            timeout_s=TOKENIZE_TIMEOUT_S,
            max_bytes=MAX_SIDE_BYTES,
        )
        found = reply.json if reply.status == _OK else None
        return found if isinstance(found, dict) else {}


def _flavour(listed: Any) -> Flavour:
    data = listed.get("data") if isinstance(listed, dict) else None
    owners = {each.get("owned_by") for each in data or () if isinstance(each, dict)}
    return next((flavour for flavour in Flavour if flavour.value in owners), Flavour.OTHER)


def _names(listed: Any) -> tuple[str, ...]:
    """The ids of an OpenAI model list."""
    data = listed.get("data") if isinstance(listed, dict) else None
    found = [each.get("id") for each in data or () if isinstance(each, dict)]
    return tuple(name for name in found if isinstance(name, str))


def _from_length(asked: msgspec.Raw) -> int:
    """An estimate from the text's bytes; images and other parts are not text, numbers are tokens."""
    size = memoryview(asked).nbytes
    if size > MAX_PARSED_BYTES:
        return -(-size // BYTES_PER_TOKEN)
    try:
        decoded = msgspec.json.decode(asked)
    except msgspec.DecodeError:  # a number out of range, which some engines take
        return -(-size // BYTES_PER_TOKEN)
    tokens, text = 0, 0
    for part in _parts(decoded if isinstance(decoded, list) else [decoded]):
        if isinstance(part, str):
            text += len(part.encode())
        else:
            tokens += isinstance(part, int)
    return tokens - (-text // BYTES_PER_TOKEN)


def _parts(listed: list[Any]) -> Iterator[Any]:
    """The texts and tokens of messages, or of prompts."""
    for each in listed:
        if isinstance(each, list):
            yield from _parts(each)
        elif isinstance(each, dict):
            yield from _parts([each.get("content") or each.get("text")])
        else:
            yield each
