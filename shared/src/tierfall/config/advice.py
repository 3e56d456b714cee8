"""What an operator should know of a config that can be used: warnings and notes.

``tierfall check`` and ``tierfall doctor`` print them.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tierfall.config.check import is_loopback, url_path
from tierfall.config.problem import within
from tierfall.config.scalars import show_duration, shown
from tierfall.config.schema import EMBEDDED, CloudTier, OllamaTier, Secret, VllmTier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tierfall.config.schema import Config, Nats, Server

_LOCAL_NAMES: Final = (".local", ".lan", ".internal", ".home.arpa", ".svc", ".localhost")
"""Ends of names that no public name server has."""


def notes(config: Config) -> list[str]:
    """What works, but is perhaps not meant: one line each."""
    used = {model.tier for model in config.models.values()}
    said = [f"{within('tiers', name)}: no model uses it" for name in config.tiers if name not in used]
    for path, secret in secrets(config):
        if secret.source and not secret:
            said.append(f"{path}: {secret.source} is not set{_without(path, config)}")
        elif not secret.source:
            said.append(f"{path}: stands in the file; ${{NAME}} would keep it out")
    for name, tier in config.tiers.items():
        if isinstance(tier, VllmTier) and not url_path(tier.base_url).endswith("/v1"):
            said.append(f"{within('tiers', name)}.base_url: does not end in /v1, as vLLM's own does")
    for name, model in config.models.items():
        rungs = config.ladder(name)[:-1]
        before_last_s = sum(config.models[rung].deadlines.first_token for rung in rungs)
        if rungs and before_last_s >= model.deadlines.budget:
            said.append(
                f"{within('models', name)}.deadlines.budget: is {show_duration(model.deadlines.budget)}, "
                f"but the tiers before the ladder's last may take {show_duration(before_last_s)}"
            )
    said += _forbidden_fallbacks(config)
    return said + _server_notes(config.server) + _idle_credentials(config.nats) + _vain_budgets(config)


def warnings(config: Config) -> list[str]:
    """What works, and leaves a door open: one line each."""
    server = config.server
    said = _keys_in_plain_text(config)
    if "*" in server.cors_origins and not _needs_key(server):
        said.append(
            "server.cors_origins: * lets every web page that is open on this machine ask and read, as "
            "there are no client keys; name the origins, or add server.api_keys"
        )
    return said


def secrets(config: Config) -> Iterator[tuple[str, Secret]]:
    """Every secret that the file names, with its path."""
    for index, key in enumerate(config.server.api_keys):
        yield within("server.api_keys", index), key.key
    for index, secret in enumerate(config.server.admin_keys):
        yield within("server.admin_keys", index), secret
    if config.nats.token != Secret():
        yield "nats.token", config.nats.token
    for name, tier in config.tiers.items():
        if not isinstance(tier, OllamaTier) and tier.api_key != Secret():
            yield f"{within('tiers', name)}.api_key", tier.api_key
        if isinstance(tier, CloudTier):
            for index, secret in enumerate(tier.api_keys):
                yield within(f"{within('tiers', name)}.api_keys", index), secret


def _keys_in_plain_text(config: Config) -> list[str]:
    """Backends that are sent a key without TLS, over more than this machine or its own network."""
    said = []
    for name, tier in config.tiers.items():
        if isinstance(tier, OllamaTier):  # it has no key
            continue
        parts = urlsplit(tier.base_url)
        if parts.scheme != "http":
            continue
        host = parts.hostname or ""
        near_by = is_loopback(host) if isinstance(tier, CloudTier) else _is_local(host)
        keys = tier.keys if isinstance(tier, CloudTier) else (tier.api_key,)
        if not near_by and any(key or key.source for key in keys):
            said.append(
                f"{within('tiers', name)}.base_url: is {shown(tier.base_url)}, so the tier's key and all "
                "prompts travel unencrypted; write https://"
            )
    return said


def _is_local(host: str) -> bool:
    """Whether a host is on this machine or its network: a private address, or a name that only it knows."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host.rstrip(".") or host.rstrip(".").endswith(_LOCAL_NAMES)
    return address.is_private or address.is_link_local


def _idle_credentials(nats: Nats) -> list[str]:
    shown_in_vain = [key for key in ("creds", "nkey") if nats.url == EMBEDDED and getattr(nats, key)]
    return [f"nats.{key}: has no effect on an embedded server; it takes a token" for key in shown_in_vain]


def _server_notes(server: Server) -> list[str]:
    if server.allowed_hosts and _needs_key(server):
        return ["server.allowed_hosts: has no effect while clients need a key"]
    return []


def _needs_key(server: Server) -> bool:
    return bool(server.api_keys or server.stored_keys)


def _forbidden_fallbacks(config: Config) -> list[str]:
    """Ladders that are shorter for a key, as it may not use all of their models."""
    said = []
    for index, key in enumerate(config.server.api_keys):
        allowed = key.models or ()
        for name in allowed:
            left_out = [shown(rung) for rung in config.ladder(name) if rung not in allowed]
            if left_out:
                said.append(
                    f"{within('server.api_keys', index)}.models: {shown(name)} does not fall back to "
                    f"{' or '.join(left_out)} here, as the key may not use it"
                )
    return said


def _vain_budgets(config: Config) -> list[str]:
    """Budgets of which nothing is ever spent."""
    priced = {name for name, model in config.models.items() if model.price.prompt or model.price.completion}
    said = []
    for index, key in enumerate(config.server.api_keys):
        may_use = set(config.models if key.models is None else key.models)
        if key.limits.budget and not may_use & priced:
            path = within("server.api_keys", index)
            said.append(f"{path}.limits.budget: no model that the key may use has a price")
    return said


def _without(path: str, config: Config) -> str:
    if not path.startswith("tiers"):
        return ""
    for name, tier in config.tiers.items():
        if (
            isinstance(tier, CloudTier)
            and path.startswith(f"{within('tiers', name)}.api_keys")
            and any(tier.keys)
        ):
            return ", so this tier goes without it"
    return ", so this tier cannot answer"
