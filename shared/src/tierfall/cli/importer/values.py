"""Single values of a LiteLLM config: ``os.environ/NAME``, times, addresses."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRON: Final = "os.environ/"
TOKENS_PER_PRICE: Final = 1_000_000
HIGHEST_PRICE: Final = 1e9
PRICE_DIGITS: Final = 6
"""After the point, as the config reads them."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCAL_DOMAINS: Final = (".local", ".lan", ".internal", ".home", ".home.arpa", ".svc", ".cluster.local")
_ENDPOINTS: Final = ("/chat/completions", "/completions")


class Key(msgspec.Struct, frozen=True):
    """A secret: the name of a variable, or the secret as it stands in the file, or neither."""

    variable: str = ""
    literal: str = ""

    def __repr__(self) -> str:
        return f"Key(variable={self.variable!r})"

    def __bool__(self) -> bool:
        return bool(self.variable or self.literal)


def variable(value: object) -> str:
    """The variable that ``os.environ/NAME`` names; empty for anything else."""
    if not isinstance(value, str) or not value.startswith(ENVIRON):
        return ""
    name = value.removeprefix(ENVIRON).strip()
    return name if _VARIABLE.fullmatch(name) else ""


def key(value: object, default_variable: str = "") -> Key:
    """A secret of the file; its provider's usual variable when the file has none."""
    if name := variable(value):
        return Key(variable=name)
    if value is None or not str(value).strip():
        return Key(variable=default_variable)
    return Key(literal=str(value).strip())


def seconds(value: object, environ: Mapping[str, str]) -> float | None:
    """A time limit in seconds, also one that a variable holds; ``None`` for what is no positive number."""
    if name := variable(value):
        value = environ.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def whole(value: object) -> int | None:
    """A count from 1; ``None`` for anything else."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def price(value: object) -> float | None:
    """What a token costs, as the price of a million; ``None`` for what is no price."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        million = round(float(value) * TOKENS_PER_PRICE, PRICE_DIGITS)
    except (ValueError, OverflowError):
        return None
    return million if 0 <= million < HIGHEST_PRICE else None


def is_near(url: str) -> bool:
    """Whether an address is one of this machine or this network, so an engine and no provider."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return parts.scheme == "http" or "." not in host or host.endswith(_LOCAL_DOMAINS)
    return address.is_private or address.is_loopback


def trimmed(url: str) -> tuple[str, bool]:
    """An ``api_base`` as a ``base_url``, and whether a query or credentials had to be taken off."""
    parts = urlsplit(url.strip())
    host = parts.hostname or ""
    netloc = f"[{host}]" if ":" in host else host
    if parts.port is not None:
        netloc += f":{parts.port}"
    path = parts.path.rstrip("/")
    for endpoint in _ENDPOINTS:
        path = path.removesuffix(endpoint)
    return f"{parts.scheme}://{netloc}{path.rstrip('/')}", bool(parts.query or parts.username)


def is_address(url: str) -> bool:
    """Whether it is a http(s) address at all."""
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and " " not in url.strip()
