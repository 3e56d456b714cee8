"""JetStream, where the config needs it: is it there, and may it be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tierfall.cli.doctor.finding import Finding, Level
from tierfall.errors import BusError
from tierfall.keys import KeyStore
from tierfall.store import KEYS
from tierfall.store.jetstream import NO_JETSTREAM

if TYPE_CHECKING:
    from pathlib import Path

    from tierfall.bus import Bus
    from tierfall.config import Config

SUBJECT: Final = "jetstream"
SWITCH_ON: Final = 'jetstream { store_dir: "/var/lib/nats" } in the NATS server\'s config'


async def examine(config: Config, path: Path, bus: Bus) -> list[Finding]:
    """Looks at the stored keys, and at what keys with limits need; nothing where the config needs neither."""
    limited = [key.name for key in config.server.api_keys if key.limits]
    if not config.server.stored_keys and not limited:
        return []
    try:
        found, unreadable = await KeyStore(bus, config.nats.replicas).all()
    except BusError as error:
        text = f"{error.message}. Without it {_without(config, limited)}"
        return [Finding(Level.FAIL, SUBJECT, text, SWITCH_ON if error.message == NO_JETSTREAM else "")]
    count = f"{len(found)} client key" + ("" if len(found) == 1 else "s")
    findings = [Finding(Level.OK, SUBJECT, f"keeps {KEYS}: {count}")]
    for name in unreadable:
        text = f"the record of {name} is of another version, so no ingress lets it in"
        command = f"tierfall keys revoke --config {path} {name}"
        findings.append(Finding(Level.WARN, SUBJECT, text, command))
    if found and not config.server.stored_keys:
        text = "no ingress lets them in, as the config has no server.stored_keys: true"
        findings.append(Finding(Level.WARN, SUBJECT, text, "server: {stored_keys: true}"))
    return findings


def _without(config: Config, limited: list[str]) -> str:
    said = []
    if config.server.stored_keys:
        said.append("no stored key is let in")
    if limited:
        said.append(f"keys with limits are answered 503: {', '.join(limited)}")
    return " and ".join(said)
