"""NATS: is it there, does it let us in, what does its clock say."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from tierfall.bus import Bus, BusOptions
from tierfall.cli.doctor.finding import Finding, Level
from tierfall.config import EMBEDDED
from tierfall.config.check import is_loopback
from tierfall.errors import BusDown, BusUnfit
from tierfall.protocol.presence import CLOCK_SKEW_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tierfall.config import Config, Nats

GREETING_S: Final = 2.0
CONNECT_S: Final = 4.0
ASK_S: Final = 1.0
SMALL_PAYLOAD_BYTES: Final = 128 * 1024
BYTES_PER_MIB: Final = 1024 * 1024
DEFAULT_PORT: Final = 4222

USER_INFO: Final = "$SYS.REQ.USER.INFO"
"""Answered by nats-server itself, to any user; its answer has the server's time."""
_GREETING: Final = b"INFO "
_SAME_USER: Final = "tierfall up, as this user and with this config"
_SYNC_CLOCK: Final = "timedatectl set-ntp true"


async def examine(config: Config, path: Path) -> tuple[Bus | None, list[Finding]]:
    """Connects as a service would.

    Returns:
        A connected bus, which the caller closes, or ``None``; and what was found.
    """
    found = []
    greetings = {}
    for url in config.nats.address.split(","):
        host, port = _host_and_port(url.strip())
        try:
            greetings[f"{host}:{port}"] = await _greeting(host, port)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            level = Level.WARN if "," in config.nats.address else Level.FAIL
            text = f"nothing answers at {host}:{port}: {why}"
            found.append(Finding(level, "nats", text, _start(config.nats, path, host, port)))
    if not greetings:
        return None, found
    try:
        bus = await Bus.connect(BusOptions.of(config.nats, "tierfall-doctor", CONNECT_S))
    except BusUnfit as error:
        return None, [*found, Finding(Level.FAIL, "nats", error.message)]  # it says itself what to change
    except BusDown as error:
        return None, [*found, Finding(Level.FAIL, "nats", *_refused(config.nats, error.message, greetings))]
    found += [_greeted(address, greeting) for address, greeting in greetings.items()]
    return bus, found


async def clock(bus: Bus) -> Finding:
    """Compares this machine's clock with the server's."""
    asked_at = time.time()
    try:
        answer = await bus.request(USER_INFO, b"", timeout_s=ASK_S)
        told = msgspec.json.decode(answer.data)["server"]["time"]
        server_s = dt.datetime.fromisoformat(f"{told[:19]}+00:00").timestamp() + float(
            f"0{told[19:].rstrip('Z')}"
        )
    except (TimeoutError, BusDown, msgspec.DecodeError, KeyError, TypeError, ValueError):
        text = "not compared: this NATS user may not ask the server for its time, or the server is an old one"
        return Finding(Level.WARN, "clock", text, "timedatectl")
    return compared("the NATS server's", (asked_at + time.time()) / 2 - server_s)


def compared(whose: str, ahead_s: float, of: str = "") -> Finding:
    """What it means that a clock, usually this machine's, is ``ahead_s`` seconds ahead of another one."""
    if abs(ahead_s) < CLOCK_SKEW_S:
        return Finding(Level.OK, "clock", f"{of}within {CLOCK_SKEW_S:g} s of {whose}")
    way = "ahead of" if ahead_s > 0 else "behind"
    text = f"{of}{abs(ahead_s):.0f} s {way} {whose}: logs do not match, and certificates may look expired"
    return Finding(Level.WARN, "clock", text, _SYNC_CLOCK)


@contextlib.asynccontextmanager
async def closing(bus: Bus | None) -> AsyncIterator[None]:
    """Closes the bus at the end, if there is one."""
    try:
        yield
    finally:
        if bus is not None:
            await bus.close()


async def _greeting(host: str, port: int) -> dict[str, Any]:
    """What a server says to whoever connects, before it asks who that is; empty if it says something else."""
    try:
        async with asyncio.timeout(GREETING_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return {}  # one that wants TLS first
    except ValueError:
        return {}  # a line without end: no NATS
    try:
        greeting = msgspec.json.decode(line.removeprefix(_GREETING))
    except msgspec.DecodeError:
        return {}
    return greeting if isinstance(greeting, dict) else {}


def _greeted(address: str, greeting: dict[str, Any]) -> Finding:
    payload = greeting.get("max_payload")
    if not isinstance(payload, int):
        return Finding(Level.OK, "nats", f"{address} lets us in")
    size = f"{payload / BYTES_PER_MIB:g} MiB"
    text = f"{address} lets us in: nats-server {greeting.get('version')}, messages up to {size}"
    if payload < SMALL_PAYLOAD_BYTES:
        return Finding(Level.WARN, "nats", f"{text}, which is little", "max_payload: 1MB in nats.conf")
    return Finding(Level.OK, "nats", text)


def _refused(nats: Nats, message: str, greetings: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """What a server's refusal means, and what to do."""
    wants_auth = any(greeting.get("auth_required") for greeting in greetings.values())
    if not any(greetings.values()) and not (nats.tls and nats.tls.handshake_first):
        return f"{message}. What listens there does not greet as a NATS server does", "tierfall check FILE"
    if wants_auth and nats.url == EMBEDDED and not nats.token:
        if Path(nats.token_file).exists():
            message += f". The server was not started with the token in {nats.token_file}"
        return message, _SAME_USER
    if wants_auth and not (nats.token or nats.token_file or nats.creds or nats.nkey):
        return f"{message}. The server wants a token or a user, and the config has none", "set nats.token"
    if wants_auth:
        name = nats.token.source
        return f"{message}. The server does not know this token or user", f"export {name}=..." if name else ""
    return message, ""


def _start(nats: Nats, path: Path, host: str, port: int) -> str:
    if nats.url == EMBEDDED:
        return f"tierfall up --config {path}"
    return f"nats-server --port {port}" if is_loopback(host) else f"nc -vz {host} {port}"


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT
