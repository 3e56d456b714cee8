"""JetStream, where the config needs it: is it there, may it be used, and does it take writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tierfall.cli.doctor.finding import Finding, Level
from tierfall.errors import BusError, StoreUnreadable
from tierfall.keys import KeyStore, config_scope
from tierfall.ledger import Ledger
from tierfall.quota import plans
from tierfall.store import KEYS, QUOTA, Bucket
from tierfall.store.jetstream import NO_JETSTREAM

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tierfall.bus import Bus
    from tierfall.config import Config
    from tierfall.keys import KeyRecord

SUBJECT: Final = "jetstream"
WRITES: Final = "store"
SWITCH_ON: Final = 'jetstream { store_dir: "/var/lib/nats" } in the NATS server\'s config'


async def examine(config: Config, path: Path, bus: Bus) -> list[Finding]:
    """Looks at the stored keys, and at what limits and quotas need, as far as the config has them."""
    limited = [key.name for key in config.server.api_keys if key.limits]
    found = [] if not config.server.stored_keys and not limited else await _keys(config, path, bus, limited)
    if found and found[0].level is Level.FAIL:
        return found
    return [*found, *await _written(config, bus, limited)]


async def _written(config: Config, bus: Bus, limited: list[str]) -> list[Finding]:
    """Whether the bucket of limits and quotas takes a write; nothing is said of one that was never made."""
    quotas = list(plans(config))
    if not limited and not config.server.stored_keys and not quotas:
        return []
    bucket = Bucket(bus, QUOTA)
    refused = bus.counters.permission_violations
    try:
        made = await bucket.made()
        if made is None:
            return []
        await bucket.try_write()
    except BusError as error:
        if bus.counters.permission_violations > refused:
            text = "whether it takes writes was not tried: this NATS user may not write there"
            return [Finding(Level.WARN, WRITES, text, "tierfall doctor, with the admin's nats.nkey")]
        said = ["keys with limits are answered 503"] if limited or config.server.stored_keys else []
        said += [f"nothing is sent to models with a quota: {', '.join(quotas)}"] if quotas else []
        text = f"{error.message}. Until then {' and '.join(said)}"
        return [Finding(Level.FAIL, WRITES, text, "df -h")]
    return [Finding(Level.OK, WRITES, f"counts limits and quotas in {QUOTA}, made {_minute(made)}")]


async def _keys(config: Config, path: Path, bus: Bus, limited: list[str]) -> list[Finding]:
    try:
        found, unreadable = await KeyStore(bus, config.nats.replicas).all()
        closed = await _unreadable_accounts(config, bus, found)
    except BusError as error:
        text = f"{error.message}. Without it {_without(config, limited)}"
        return [Finding(Level.FAIL, SUBJECT, text, SWITCH_ON if error.message == NO_JETSTREAM else "")]
    count = f"{len(found)} client key" + ("" if len(found) == 1 else "s")
    findings = [Finding(Level.OK, SUBJECT, f"keeps {KEYS}: {count}")]
    if config.server.stored_keys and not found and not unreadable:
        text = f"{KEYS} is empty: if client keys had been made, the NATS server has lost its store"
        command = f"tierfall keys create --config {path} --name NAME"
        findings.append(Finding(Level.WARN, SUBJECT, text, command))
    for name in unreadable:
        text = f"the record of {name} is of another version, so no ingress lets it in"
        command = f"tierfall keys revoke --config {path} {name}"
        findings.append(Finding(Level.WARN, SUBJECT, text, command))
    for scope, text in closed.items():
        findings.append(Finding(Level.FAIL, SUBJECT, text, f"nats kv del {QUOTA} {scope}"))
    if found and not config.server.stored_keys:
        text = "no ingress lets them in, as the config has no server.stored_keys: true"
        findings.append(Finding(Level.WARN, SUBJECT, text, "server: {stored_keys: true}"))
    return findings


async def _unreadable_accounts(config: Config, bus: Bus, stored: Mapping[str, KeyRecord]) -> dict[str, str]:
    """By account, what it means that it cannot be read."""
    scopes = {config_scope(key.name): key.name for key in config.server.api_keys if key.limits}
    scopes |= {record.scope: name for name, record in stored.items() if record.limits}
    ledger = Ledger(Bucket(bus, QUOTA))
    found = {}
    for scope, name in scopes.items():
        try:
            await ledger.look(scope)
        except StoreUnreadable as error:
            found[scope] = f"{name} is answered 503: {error.message}; without it, counting begins at zero"
    return found


def _minute(made: str) -> str:
    """``2026-11-28 13:43 UTC`` of NATS's notation."""
    return f"{made[:16].replace('T', ' ')} UTC"


def _without(config: Config, limited: list[str]) -> str:
    said = []
    if config.server.stored_keys:
        said.append("no stored key is let in")
    if limited:
        said.append(f"keys with limits are answered 503: {', '.join(limited)}")
    return " and ".join(said)
