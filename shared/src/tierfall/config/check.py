"""What one key of the file alone cannot show: references, clocks against each other, doors left open."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from tierfall.config import quotas
from tierfall.config.decode import near
from tierfall.config.problem import Problem, within
from tierfall.config.scalars import show_duration, shown
from tierfall.config.schema import EMBEDDED, CloudTier, OllamaTier, Secret, VllmTier
from tierfall.protocol.subjects import TIER_NAME
from tierfall.tls import TlsFileError, client_tls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tierfall.config.schema import (
        ApiKey,
        Config,
        Deadlines,
        Limits,
        Model,
        Nats,
        NatsTls,
        Server,
        Tier,
    )

KNOWN_PROVIDERS: Final = ("openai", "groq", "gemini", "mistral")
"""Cloud providers whose address need not be written."""
_NATS_SCHEMES: Final = ("nats", "tls")
KEY_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
"""Of a client key whose use is counted: it becomes part of a NATS subject."""
KEY_NAME_SAID: Final = "letters, digits, _ and -, with dots between"
INBOX_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_WEB_SCHEMES: Final = ("http", "https")
_APP_ORIGIN: Final = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+")
"""What desktop programs made of web pages, and extensions of browsers, send: ``app://obsidian.md``."""
_HOST_NAME: Final = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
"""As a browser writes it into ``Host``: in lower case."""
_MAX_PORT: Final = 65535
_MAX_REPLICAS: Final = 5
"""Of a JetStream stream."""


def problems(config: Config, *, for_worker: bool = False) -> list[str]:
    """What makes the config unusable, one line each, with the path: ``models.a.tier: ...``.

    Args:
        config: Decoded.
        for_worker: Leaves out the client keys, which a worker does not have.
    """
    return [str(problem) for problem in find(config, for_worker=for_worker)]


def find(config: Config, *, for_worker: bool = False) -> list[Problem]:
    """The same as :func:`problems`, with path and text apart."""
    found = [*_server(config.server), *_nats(config.nats)]
    if not for_worker:
        found += [*_client_keys(config), *_admin_keys(config.server)]
    for group in ("tiers", "models"):
        if not getattr(config, group):
            found.append(Problem(group, "is empty; without one nothing can be answered"))
    for name, tier in config.tiers.items():
        found += _tier(name, tier)
    for name, model in config.models.items():
        found += _model(name, model, config)
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _server(server: Server) -> Iterator[Problem]:
    # Port 0 is the system's way to say: any free one.
    yield from _range("server.port", server.port, 0, _MAX_PORT)
    if not server.host:
        yield Problem("server.host", "is empty; write 127.0.0.1 for this machine only, 0.0.0.0 for all")
    if server.admin is not None:
        yield from _range("server.admin.port", server.admin.port, 0, _MAX_PORT)
        if server.admin.port == server.port != 0:
            yield Problem("server.admin.port", "is server.port too; operators' pages need another one")
        if not server.admin.host:
            yield Problem("server.admin.host", "is empty; write 127.0.0.1 for this machine only")
    if server.max_body < 1:
        yield Problem("server.max_body", "is 0, so that no request would fit")
    if server.max_bodies < server.max_body:
        yield Problem(
            "server.max_bodies",
            f"is smaller than server.max_body ({server.max_body} bytes): the largest request would not fit",
        )
    yield from _web_pages(server)


def _web_pages(server: Server) -> Iterator[Problem]:
    for index, origin in enumerate(server.cors_origins):
        if origin != "*" and not _APP_ORIGIN.fullmatch(origin) and (text := _web_address(origin, path=False)):
            yield Problem(within("server.cors_origins", index), f"{text}, or *")
    for index, name in enumerate(server.allowed_hosts):
        if not _HOST_NAME.fullmatch(name):
            text = "must be a name or address without a port, such as gateway.lan, or *.example.org"
            yield Problem(within("server.allowed_hosts", index), f"is {shown(name)}, {text}")


def _client_keys(config: Config) -> Iterator[Problem]:
    server = config.server
    if not server.api_keys and not server.stored_keys and not is_loopback(server.host):
        yield Problem(
            "server.api_keys",
            f"is empty while host is {shown(server.host)}, which other machines can reach; name a key, "
            "set stored_keys: true, or listen on 127.0.0.1",
        )
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    for index, key in enumerate(server.api_keys):
        path = within("server.api_keys", index)
        if not key.key:
            said = f"{key.key.source} is not set; " if key.key.source else ""
            yield Problem(path, f"{said}an empty key would let everybody in")
        elif (earlier := first.setdefault(key.key.value, path)) != path:
            yield Problem(path, f"is the same key as {earlier}")
        if key.limits:
            yield from _key_limits(path, key, index, names)
        for place, model in enumerate(key.models or ()):
            if model not in config.models:
                yield Problem(within(f"{path}.models", place), _unknown("model", model, config.models))


def _admin_keys(server: Server) -> Iterator[Problem]:
    if server.admin is not None and not server.admin_keys and not is_loopback(server.admin.host):
        yield Problem(
            "server.admin_keys",
            f"is empty while server.admin.host is {shown(server.admin.host)}, which other machines can "
            "reach; name a key, or listen on 127.0.0.1",
        )
    known = {key.key.value: within("server.api_keys", place) for place, key in enumerate(server.api_keys)}
    for index, secret in enumerate(server.admin_keys):
        path = within("server.admin_keys", index)
        if not secret:
            said = f"{secret.source} is not set; " if secret.source else ""
            yield Problem(path, f"{said}an empty key would let everybody in")
        elif (earlier := known.setdefault(secret.value, path)) != path:
            yield Problem(path, f"is the same key as {earlier}; give operators and clients different keys")


def _key_limits(path: str, key: ApiKey, index: int, names: dict[str, str]) -> Iterator[Problem]:
    # What it uses is kept under its name, so the name must not depend on its place in the list.
    if key.name == f"key-{index + 1}":
        yield Problem(f"{path}.name", "is missing; a key with limits needs one, under which its use is kept")
    elif not KEY_NAME.fullmatch(key.name):
        yield Problem(
            f"{path}.name", f"is {shown(key.name)}, must be {KEY_NAME_SAID} where the key has limits"
        )
    elif (earlier := names.setdefault(key.name, path)) != path:
        yield Problem(f"{path}.name", f"is that of {earlier} too; the use of both would be counted as one")
    yield from limits(f"{path}.limits", key.limits)


def limits(path: str, found: Limits) -> Iterator[Problem]:
    """What is wrong with a key's limits: the same window twice, a time zone that does not exist."""
    for metric in ("requests", "tokens", "budget"):
        yield from quotas.rates(f"{path}.{metric}", getattr(found, metric))
    yield from quotas.timezone(path, found.timezone)


def _nats(nats: Nats) -> Iterator[Problem]:
    # A server of its own must have a port that its clients know.
    yield from _range("nats.port", nats.port, 1, _MAX_PORT)
    if nats.replicas and (nats.replicas > _MAX_REPLICAS or nats.replicas % 2 == 0):
        yield Problem("nats.replicas", f"is {nats.replicas}, must be 1, 3 or 5: a majority has to agree")
    if nats.creds and nats.nkey:
        yield Problem("nats.nkey", "stands beside creds; a client shows one or the other")
    if nats.token and nats.token_file:
        yield Problem("nats.token_file", "cannot be combined with nats.token")
    if nats.inbox_prefix and not INBOX_PREFIX.fullmatch(nats.inbox_prefix):
        text = "must be subject tokens such as _INBOX_ingress: letters, digits, _ and -, with dots between"
        yield Problem("nats.inbox_prefix", f"is {shown(nats.inbox_prefix)}, {text}")
    if nats.url == EMBEDDED:
        if not nats.token and not nats.token_file and not is_loopback(nats.host):
            said = f"{nats.token.source} is not set" if nats.token.source else "is missing"
            yield Problem(
                "nats.token",
                f"{said} while the embedded server listens on {shown(nats.host)}, "
                "which other machines can reach",
            )
        if nats.tls is not None:
            yield Problem("nats.tls", "is for a server that nats.url names; the embedded one offers no TLS")
        return
    if nats.tls is not None:
        yield from _nats_tls(nats.tls)
    yield from _nats_url(nats.url)


def _nats_url(url: str) -> Iterator[Problem]:
    addresses = [_split(address.strip()) for address in url.split(",")]
    if {parts.scheme for parts in addresses if parts is not None} >= set(_NATS_SCHEMES):
        yield Problem("nats.url", "mixes tls:// and nats://; write tls:// for all of them")
    for parts in addresses:
        if parts is not None and (parts.username or parts.password):
            yield Problem("nats.url", "holds a user or password; put it into token or creds")
        elif parts is None or parts.scheme not in _NATS_SCHEMES or not parts.hostname:
            yield Problem("nats.url", f"is {shown(url)}, must be embedded, or nats://host:4222")


def _nats_tls(tls: NatsTls) -> Iterator[Problem]:
    if tls.key_file and not tls.cert_file:
        yield Problem("nats.tls.key_file", "needs its certificate too, in nats.tls.cert_file")
        return
    try:
        client_tls(tls)
    except TlsFileError as error:
        yield Problem(f"nats.tls.{error.key}", error.text)


def _tier(name: str, tier: Tier) -> Iterator[Problem]:
    path = within("tiers", name)
    if not TIER_NAME.fullmatch(name):
        yield Problem(
            path, "a tier's name is up to 63 of a-z, 0-9, _ and -, and begins with a letter or digit"
        )
    yield from _at_least(f"{path}.max_in_flight", tier.max_in_flight, 1)
    yield from _at_least(f"{path}.max_waiting", tier.max_waiting, 0)
    if tier.run and not tier.run[0]:
        yield Problem(f"{path}.run", "begins with an empty text, must begin with a command")
    match tier:
        case CloudTier():
            yield from _cloud(path, tier)
        case OllamaTier():
            yield from _base_url(path, tier.base_url)
            if url_path(tier.base_url).endswith(("/v1", "/api")):
                text = f"is {shown(tier.base_url)}, must be Ollama's address without /v1 or /api"
                yield Problem(f"{path}.base_url", text)
            yield from _at_least(f"{path}.num_ctx", tier.num_ctx, 1)
        case VllmTier():
            yield from _base_url(path, tier.base_url)


def _cloud(path: str, tier: CloudTier) -> Iterator[Problem]:
    if tier.base_url:
        yield from _base_url(path, tier.base_url)
    elif tier.provider not in KNOWN_PROVIDERS:
        said = near(tier.provider, KNOWN_PROVIDERS)
        yield Problem(f"{path}.provider", f"{shown(tier.provider)} is not known and has no base_url; {said}")
    if tier.api_keys and tier.api_key != Secret():
        yield Problem(f"{path}.api_key", "stands beside api_keys; write all of them there")
    elif not tier.api_keys and tier.api_key == Secret():
        yield Problem(f"{path}.api_key", "is missing")
    for index, secret in enumerate(tier.api_keys):
        if secret in tier.api_keys[:index]:
            yield Problem(within(f"{path}.api_keys", index), "stands in the list already")
    yield from quotas.quota(f"{path}.quota", tier.quota)


def _model(name: str, model: Model, config: Config) -> Iterator[Problem]:
    path = within("models", name)
    if not name or not name.isprintable() or name != name.strip():
        yield Problem(path, "a model's name is printable text without white space around it")
    if model.tier not in config.tiers:
        yield Problem(f"{path}.tier", _unknown("tier", model.tier, config.tiers))
    if not model.backend_model:
        yield Problem(f"{path}.backend_model", "is empty; write the name that the backend knows the model by")
    for index, fallback in enumerate(model.fallbacks):
        here = within(f"{path}.fallbacks", index)
        if fallback == name:
            yield Problem(here, "is the model itself, which has failed when its fallbacks are tried")
        elif fallback not in config.models:
            yield Problem(
                here, _unknown("model", fallback, (other for other in config.models if other != name))
            )
        elif fallback in model.fallbacks[:index]:
            yield Problem(here, f"{shown(fallback)} stands in the list already")
    yield from _at_least(f"{path}.context_window", model.context_window, 1)
    if model.quota:
        yield from quotas.model_quota(name, model, config)
    yield from _deadlines(f"{path}.deadlines", model.deadlines)


def _deadlines(path: str, deadlines: Deadlines) -> Iterator[Problem]:
    positive = True
    for name in deadlines.__struct_fields__:
        seconds = getattr(deadlines, name)
        if seconds is not None and seconds <= 0:
            positive = False
            yield Problem(f"{path}.{name}", "is 0s, must be longer")
    if not positive:
        return
    first = f"is {show_duration(deadlines.first_token)}"
    if deadlines.first_token > deadlines.total:
        text = f"{first}, longer than total ({show_duration(deadlines.total)})"
        yield Problem(f"{path}.first_token", text)
    if deadlines.first_token > deadlines.budget:
        text = f"{first}, longer than budget ({show_duration(deadlines.budget)})"
        yield Problem(f"{path}.first_token", text)
    if deadlines.load is not None and deadlines.load > deadlines.total:
        loading, total = show_duration(deadlines.load), show_duration(deadlines.total)
        yield Problem(f"{path}.load", f"is {loading}, longer than total ({total})")


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"{shown(name)} is not a {what} of this file; {near(name, known)}"


def _at_least(path: str, value: int | None, least: int) -> Iterator[Problem]:
    if value is not None and value < least:
        yield Problem(path, f"is {value}, must be at least {least}")


def _range(path: str, value: int, least: int, most: int) -> Iterator[Problem]:
    if not least <= value <= most:
        yield Problem(path, f"is {value}, must be from {least} to {most}")


def _base_url(path: str, url: str) -> Iterator[Problem]:
    if text := _web_address(url, path=True):
        yield Problem(f"{path}.base_url", text)


def _web_address(url: str, *, path: bool) -> str:
    """What is wrong with an http(s) address, empty when nothing is."""
    parts = _split(url)
    if parts is not None and (parts.username or parts.password):
        return "holds a user or password, which logs would show"
    example = "http://127.0.0.1:8000/v1" if path else "https://chat.example.org"
    if (
        parts is None
        or parts.scheme not in _WEB_SCHEMES
        or not parts.hostname
        or parts.query
        or parts.fragment
    ):
        return f"is {shown(url)}, must be an http or https address such as {example}"
    if not path and parts.path:
        return f"is {shown(url)}, must be an origin without a path, such as {example}"
    return ""


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; ``None`` where it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one out of range
    except ValueError:
        return None
    return None if any(letter.isspace() for letter in url) else parts


def url_path(url: str) -> str:
    """The path of a URL without a slash at its end; empty if it is none."""
    parts = _split(url)
    return parts.path.rstrip("/") if parts else ""
