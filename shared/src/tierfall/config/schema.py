"""The config file's shape, as frozen structs. Decoded by :mod:`tierfall.config.load`, read once at the entry.

Durations are in seconds once decoded (``3s``, ``500ms``, ``10m`` in the file), sizes in bytes (``32MiB``).
"""

from __future__ import annotations

from typing import Final, Literal, NoReturn

import msgspec

DEFAULT_PORT: Final = 4000
DEFAULT_NATS_PORT: Final = 4222
DEFAULT_MAX_BODY_BYTES: Final = 32 * 1024 * 1024
DEFAULT_MAX_BODIES_BYTES: Final = 512 * 1024 * 1024
DEFAULT_MAX_WAITING: Final = 512
EMBEDDED: Final = "embedded"


class Duration(float):
    """Seconds; written ``500ms``, ``3s``, ``10m`` or ``1h`` in the file."""


class Size(int):
    """Bytes; written ``512KiB``, ``32MiB`` or a plain number in the file."""


class Secret:
    """A secret that knows where it came from and does not show itself.

    Not a struct: msgspec, ``dataclasses.asdict`` and their like would write out its value.

    Attributes:
        value: Empty when the environment variable is not set.
        source: The environment variable's name, empty for one written into the file.
    """

    __slots__ = ("source", "value")
    value: str
    source: str

    def __init__(self, value: str = "", source: str = "") -> None:
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "source", source)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Secret does not change, so {name!r} cannot be set")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self.value, self.source) == (other.value, other.source)

    def __hash__(self) -> int:
        return hash((self.value, self.source))

    def __repr__(self) -> str:
        return f"Secret(source={self.source!r})"

    def __bool__(self) -> bool:
        return bool(self.value)


class Wait:
    """``when_full: wait(5s)``: stand in line for a slot that long, then escalate. ``escalate`` is 0 s."""

    __slots__ = ("seconds",)
    seconds: float

    def __init__(self, seconds: float = 0.0) -> None:
        object.__setattr__(self, "seconds", float(seconds))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Wait does not change, so {name!r} cannot be set")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Wait):
            return NotImplemented
        return self.seconds == other.seconds

    def __hash__(self) -> int:
        return hash(self.seconds)

    def __repr__(self) -> str:
        return f"Wait({self.seconds:g})"


class Rate:
    """So much in so long: ``30/m``, ``6000/d``, ``100000/month``, ``1000000/total`` in the file.

    Attributes:
        amount: A whole number.
        window: ``minute``, ``day``, ``month`` or ``total``.
    """

    __slots__ = ("amount", "window")
    amount: int
    window: str

    def __init__(self, amount: int, window: str) -> None:
        object.__setattr__(self, "amount", amount)
        object.__setattr__(self, "window", window)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} does not change, so {name!r} cannot be set")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self) or not isinstance(other, Rate):
            return NotImplemented
        return (self.amount, self.window) == (other.amount, other.window)

    def __hash__(self) -> int:
        return hash((self.amount, self.window))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.amount}, {self.window!r})"


class Spend(Rate):
    """So much money in so long: ``0.5/d``, ``20/month``, ``100/total``; ``amount`` is in millionths of it."""

    __slots__ = ()


class Money(float):
    """An amount of the currency in which all prices and budgets of the file are; which one, nobody asks."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client key may use; nothing is counted of a key without any."""

    requests: tuple[Rate, ...] = ()
    tokens: tuple[Rate, ...] = ()
    """Of prompt and answer together."""
    budget: tuple[Spend, ...] = ()
    """Money, by ``models.X.price`` of the model that answered."""
    timezone: str = "UTC"
    """IANA name of the time zone at whose midnight days and months begin."""

    def __bool__(self) -> bool:
        return bool(self.requests or self.tokens or self.budget)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One client key: the bare key, or ``{key: ..., name: ..., models: [...], limits: {...}}``."""

    key: Secret
    name: str = ""
    """Shown in logs in the key's stead; the default counts them: ``key-1``."""
    models: tuple[str, ...] | None = None
    """The models that this key may use; all when left out."""
    limits: Limits = Limits()


class Admin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A port of their own for the pages of operators: metrics, documentation, the whole ``/health``."""

    port: int
    host: str = "127.0.0.1"


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: tuple[ApiKey, ...] = ()
    """None is allowed only while ``host`` is loopback, or with ``stored_keys``."""
    stored_keys: bool = False
    """Whether the keys made with ``tierfall keys``, which NATS keeps, are let in too."""
    max_body: Size = Size(DEFAULT_MAX_BODY_BYTES)
    max_bodies: Size = Size(DEFAULT_MAX_BODIES_BYTES)
    """What the bodies of all requests under way may take of the process's memory together."""
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    """What a request's ``Host`` may be beside loopback names while no key is needed; ``*.example.org`` for
    all below one."""
    admin: Admin | None = None
    """Without it operators' pages are on the port of the API."""
    admin_keys: tuple[Secret, ...] = ()
    """What operators' pages ask for; nothing when empty, which is allowed only while they are on loopback or
    on the port of the API."""


class NatsTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS towards NATS. Where this stands, even empty, no connection without TLS is used."""

    ca_file: str = ""
    """PEM file of the CAs that the server's certificate may be of; the system's when empty."""
    cert_file: str = ""
    """PEM file of our certificate, for a server with ``verify: true``."""
    key_file: str = ""
    """PEM file of its private key, without a password."""
    handshake_first: bool = False
    """Whether TLS begins before the server's greeting; the server must be set to it too."""


class Nats(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach NATS, or that ``tierfall up`` starts its own."""

    url: str = EMBEDDED
    """``embedded``, or ``nats://host:4222`` (several, separated by commas, for a cluster)."""
    host: str = "127.0.0.1"
    """Where an embedded server listens: another address lets a worker on another machine dial in."""
    port: int = DEFAULT_NATS_PORT
    token: Secret = Secret()
    """Needed as soon as an embedded server listens beyond loopback."""
    token_file: str = ""
    """Path of a file that holds the token, read at each connect. Where an embedded server has neither, it is
    filled in as the config is read: ``tierfall up`` writes a random token there."""
    creds: str = ""
    """Path of a NATS credentials file."""
    nkey: str = ""
    """Path of a file with an nkey seed, as ``tierfall nats-config`` writes them."""
    inbox_prefix: str = ""
    """Where replies go; when empty it follows from the nkey."""
    tls: NatsTls | None = None
    """Needed for ``tls://`` only where the defaults do not fit; with ``nats://`` it makes TLS required."""
    replicas: int = 0
    """On how many servers of a cluster JetStream keeps what must last; 0: three in a cluster, else one."""

    @property
    def address(self) -> str:
        """What a client connects to."""
        if self.url != EMBEDDED:
            return self.url
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host
        return f"nats://{host}:{self.port}"


class TierBase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="worker"):
    """What every kind of tier has."""

    max_in_flight: int = 8
    """Requests that one worker process sends to this tier's backend at a time."""
    max_waiting: int = DEFAULT_MAX_WAITING
    """Requests that one ingress lets stand in line for this tier."""
    run: tuple[str, ...] = ()
    """A command that ``tierfall up`` starts and keeps alive beside the worker: the engine itself."""
    extra_fields: Literal["pass", "refuse"] = "pass"
    """What happens to fields of a request that OpenAI's API does not know; engines take many of them."""

    @property
    def kind(self) -> str:
        """The kind of worker that serves this tier: ``vllm``, ``ollama``, ``cloud``."""
        return str(self.__struct_config__.tag)


class VllmTier(TierBase, frozen=True, kw_only=True, tag="vllm"):
    """vLLM, or any engine that speaks OpenAI's API: llama.cpp's server, SGLang, LM Studio."""

    base_url: str
    """With the ``/v1``: ``http://127.0.0.1:8000/v1``."""
    api_key: Secret = Secret()
    max_in_flight: int = 32


class OllamaTier(TierBase, frozen=True, kw_only=True, tag="ollama"):
    """Ollama's native API."""

    base_url: str
    """Without a path: ``http://127.0.0.1:11434``."""
    max_in_flight: int = 4
    """Beyond ``OLLAMA_NUM_PARALLEL`` Ollama queues by itself, where nobody can see it."""
    keep_alive: str = ""
    """How long Ollama keeps the model loaded (``30m``, ``-1`` for ever); its own default when empty."""
    num_ctx: int | None = None
    """Context window in tokens; Ollama's own default is small and silently cuts long prompts."""
    pull: bool = False
    """Whether to pull a configured model that Ollama does not have."""


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a provider lets one of its keys use, of all its models or of one; held by the worker, exactly."""

    requests: tuple[Rate, ...] = ()
    tokens: tuple[Rate, ...] = ()
    """Of prompt and answer together."""
    timezone: str = ""
    """IANA name of the time zone at whose midnight days and months begin; the provider's own when empty."""
    smooth: Rate | None = None
    """Spaces requests evenly, and lets a burst queue for its turns until the first-token deadline."""

    def __bool__(self) -> bool:
        return bool(self.requests or self.tokens or self.smooth)


class CloudTier(TierBase, frozen=True, kw_only=True, tag="cloud"):
    """A provider on the internet with OpenAI's API or one close to it."""

    provider: str
    """``openai``, ``groq``, ``gemini``, ``mistral``, or any name together with ``base_url``."""
    base_url: str = ""
    """The provider's own when empty."""
    api_key: Secret = Secret()
    api_keys: tuple[Secret, ...] = ()
    """Several instead of one: requests go round among those that have quota left."""
    quota: Quota = Quota()
    """What each key may use, of all models together."""
    max_in_flight: int = 64

    @property
    def keys(self) -> tuple[Secret, ...]:
        """The provider's keys, one or several."""
        return self.api_keys or (self.api_key,)


Tier = VllmTier | OllamaTier | CloudTier


class Deadlines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The clocks of one attempt, and the budget of the whole request; all in seconds."""

    first_token: Duration = Duration(30)
    """Until the first content, reasoning or tool call; the last live tier is not cut by it."""
    load: Duration | None = None
    """Runs instead of ``first_token`` while the worker says that it is loading the model."""
    idle: Duration = Duration(60)
    """Between outputs."""
    total: Duration = Duration(600)
    """One attempt from beginning to end."""
    budget: Duration = Duration(900)
    """The request over its whole ladder; read from the model that the client asked for."""


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a million tokens cost, for the budgets of client keys."""

    prompt: Money = Money(0)
    completion: Money = Money(0)


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One name that clients may ask for."""

    tier: str
    backend_model: str
    """The name that the tier's backend knows it by."""
    deadlines: Deadlines = Deadlines()
    fallbacks: tuple[str, ...] = ()
    """Models to go to, in order, when this one does not answer. Their own fallbacks do not count."""
    when_full: Wait = Wait()
    on_stream_failure: Literal["resume", "error"] = "resume"
    """What happens to a stream that breaks after its first output."""
    context_window: int | None = None
    """Tokens; lets a prompt that is too long for one tier go to a larger one."""
    quota: Quota = Quota()
    """What each of a cloud tier's keys may use of this model."""
    price: Price = Price()
    """Nothing when left out."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    tiers: dict[str, Tier]
    models: dict[str, Model]
    server: Server = Server()
    nats: Nats = Nats()

    def ladder(self, name: str) -> tuple[str, ...]:
        """The model itself and its fallbacks, in the order in which they are tried."""
        return (name, *self.models[name].fallbacks)
