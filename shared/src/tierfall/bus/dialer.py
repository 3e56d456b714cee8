"""Makes connections: which servers, with which credentials, and what to say when it fails."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from tierfall.bus import nkey
from tierfall.bus.wire import DEFAULT_PORT, TlsRefused
from tierfall.config.schema import NatsTls
from tierfall.errors import BusDown, BusUnfit
from tierfall.tls import ClientTls, TlsFileError, client_tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierfall.bus.options import BusOptions
    from tierfall.bus.wire import Wire

T = TypeVar("T")

SCHEMES: Final = frozenset({"nats", "tls"})
DIAL_TIMEOUT_S: Final = 6.0
"""For one round over all servers."""
MIN_PAYLOAD_BYTES: Final = 64 * 1024
"""Of a server's ``max_payload``. An envelope and its reserves take up to 20 KiB of each message."""


class Dialer:
    """Knows the servers, also those of the cluster that a server has told of since.

    Args:
        options: As configured.
        new_wire: Makes an unconnected wire.

    Raises:
        BusDown: A URL that cannot be one of a NATS server, a file that is not there, or no seed in it.
    """

    def __init__(self, options: BusOptions, new_wire: Callable[[], Wire]) -> None:
        self._new_wire = new_wire
        self._configured = [_checked(url) for url in options.servers.split(",") if url.strip()]
        if not self._configured:
            raise BusDown("no NATS server is configured: set nats.url")
        self._discovered: dict[str, str] = {}
        self._latest: Wire | None = None
        self._options = options
        self._tls = options.tls
        if self._tls is None and any(urlsplit(url).scheme == "tls" for url in self._configured):
            self._tls = NatsTls()
        key = self._credentials().get("public_nkey")
        own = nkey.inbox_prefix(key) if key else nkey.PLAIN_INBOX
        self.inbox_prefix = options.inbox_prefix or own

    @property
    def servers(self) -> str:
        """The configured servers without credentials, for messages."""
        return ", ".join(_host_and_port(url) for url in self._configured)

    async def dial(self) -> Wire:
        """One round over all servers.

        Raises:
            BusDown: None of them let us in; the message says why, without credentials.
            BusUnfit: The last one that was tried has no TLS although it is required, a certificate that is
                refused, or a ``max_payload`` that is too small; or a file of ``nats.tls`` cannot be used.
        """
        self._learn()
        wire = self._new_wire()
        servers = dict.fromkeys(self._configured, "") | self._discovered
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await wire.open(servers, encryption=self._encryption(), **self._credentials())
        except BusDown:
            raise
        except Exception as error:  # what a foreign server says may break nats-py anywhere
            reason = wire.failure or str(error) or type(error).__name__
            reason += _lacking(self._options.token_file)
            kind = BusUnfit if isinstance(error, TlsRefused | ssl.SSLError) else BusDown
            raise kind(f"cannot connect to NATS at {self.servers}: {reason}") from error
        limit: object = wire.max_payload  # as the server says it, so of any type
        if not isinstance(limit, int) or limit < MIN_PAYLOAD_BYTES:
            await wire.shut()
            raise BusUnfit(
                f"cannot use NATS at {wire.server}: its max_payload is {limit!r} bytes, "
                f"and at least {MIN_PAYLOAD_BYTES} are needed; set max_payload: 8MB in nats-server's config"
            )
        self._latest = wire
        return wire

    def _learn(self) -> None:
        """Takes up all servers that the last connection learned of."""
        if self._latest is None:
            return
        known = {_host_and_port(url) for url in self._configured}
        for url, name in self._latest.discovered.items():
            if _host_and_port(url) not in known:
                self._discovered[url] = name
        self._latest = None

    def _encryption(self) -> ClientTls | None:
        if self._tls is None:
            return None
        try:
            return client_tls(self._tls)
        except TlsFileError as error:
            raise BusUnfit(f"nats.tls.{error}") from None

    def _credentials(self) -> dict[str, Any]:
        """Who we are, for :meth:`tierfall.bus.wire.Wire.open`; files are read anew each time.

        Raises:
            BusDown: A file cannot be read or holds something else.
        """
        options = self._options
        found: dict[str, Any] = {"name": options.name}
        token = options.token or _token(options.token_file)
        if token:
            found["token"] = token
        if options.creds:
            jwt, seed = _read(nkey.read_creds, options.creds, "nats.creds")
            found |= {"user_jwt_cb": jwt.encode, "signature_cb": partial(nkey.sign, seed)}
        elif options.nkey:
            seed = _read(nkey.read_seed, options.nkey, "nats.nkey")
            found |= {"public_nkey": nkey.public_key(seed), "signature_cb": partial(nkey.sign, seed)}
        elif not token:
            found |= _from_url(self._configured[0])
        return found


def _checked(url: str) -> str:
    url = url.strip()
    if "://" not in url:
        url = f"nats://{url}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # The URL itself may hold a password.
        raise BusDown("nats.url must be nats://host:port or tls://host:port, several separated by commas")
    return url


def _host_and_port(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or DEFAULT_PORT}"


def _from_url(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    if not parts.username:
        return {}
    if parts.password is None:
        return {"token": unquote(parts.username)}
    return {"user": unquote(parts.username), "password": unquote(parts.password)}


def _token(path: str) -> str:
    """What the file holds; empty while it is not there, as before the first `tierfall up`."""
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise BusDown(f"nats.token_file: cannot read {path}: {error}") from None


def _lacking(path: str) -> str:
    """What to add to a refusal when there is no token to show."""
    return f"; {path}, which holds the token, is not there" if path and not Path(path).exists() else ""


def _read(reader: Callable[[str], T], path: str, key: str) -> T:
    try:
        return reader(path)
    except OSError as error:
        raise BusDown(f"{key}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BusDown(f"{key}: {error}") from None
