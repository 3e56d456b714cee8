"""The ``Host`` of a request: what is one at all, and which name the client thinks it has reached."""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import TYPE_CHECKING, Final

import httptools

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCALHOST: Final = "localhost"
MAX_HOST_BYTES: Final = 300
"""A name has at most 253."""
CACHED: Final = 256
"""Values of ``Host`` that are remembered: clients send the same one with each request."""
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::([0-9]*))?")
"""RFC 9110, section 7.2: a name or an address, and a port."""


def host_problem(version: str, hosts: Sequence[bytes], target: bytes) -> str:
    """What is wrong with a request that does not say, or says twice, for which host it is; else empty.

    RFC 9112, section 3.2, asks for a 400: where two servers in a row choose differently between two hosts,
    requests can be smuggled.

    Args:
        version: Of HTTP: ``1.1``.
        hosts: The values of its ``Host`` headers.
        target: The request target as it came.
    """
    if len(hosts) > 1:
        return "the request has several Host headers; send one"
    if not hosts:
        return "the request has no Host header, which HTTP/1.1 needs" if version == "1.1" else ""
    if len(hosts[0]) > MAX_HOST_BYTES or not _is_host(hosts[0]):
        return "the Host header is not a host name or address with an optional port"
    if target[:1] != b"/" and b"://" in target and _authority(target) != _split(hosts[0]):
        return "the request target names another host than the Host header"
    return ""


@functools.lru_cache(CACHED)
def host_name(host: bytes) -> str:
    """The name in a ``Host`` header, in lower case and without its port; addresses of IPv6 in brackets."""
    return _split(host)[0]


@functools.lru_cache(CACHED)
def is_loopback_name(name: str) -> bool:
    """Whether the name always means the machine itself: no DNS server can make it another's.

    ``localhost`` and what ends in it (RFC 6761), 127.0.0.0/8 and ``[::1]``.
    """
    if name == LOCALHOST or name.endswith(f".{LOCALHOST}"):
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


@functools.lru_cache(CACHED)
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


def _split(host: bytes) -> tuple[str, str]:
    """Name and port; port 80, which need not be written, is left out."""
    match = _HOST.fullmatch(host)
    if match is None:
        return "", ""
    name, port = match.group(1).decode().lower(), (match.group(2) or b"").decode().lstrip("0")
    return name.removesuffix("."), "" if port == "80" else port


def _authority(target: bytes) -> tuple[str, str] | None:
    """Name and port of an absolute request target; None where there is none."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return None
    if url.host is None or url.userinfo is not None:
        return None
    host = b"[%b]" % url.host if b":" in url.host else url.host
    return _split(host if url.port is None else b"%b:%d" % (host, url.port))
