"""Keeps web pages off a server that asks for no key.

Such a server listens on loopback only, and a browser on the same machine can reach it. Without this guard any
page that is open there could send requests, and, by making its own name resolve to 127.0.0.1 (DNS rebinding),
read the answers. With keys there is nothing to guard: no page has the key, and no browser adds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tierfall.errors import HostForbidden, OriginForbidden
from tierfall_ingress.host import host_name, is_loopback_name
from tierfall_ingress.wire import error_body, error_headers, request_id, respond

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from tierfall_ingress.body import Receive
    from tierfall_ingress.wire import Send

    Scope = MutableMapping[str, Any]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

ANY: Final = "*"
SHOWN_NAME: Final = 100
"""Characters of a refused host or origin that the message repeats."""
_KEYLESS: Final = "this server asks for no key, so"
_OR_KEYS: Final = "or give the server keys (server.api_keys)"


class BrowserGuard:
    """An ASGI application around another that refuses foreign hosts and origins while no key is needed.

    Args:
        app: What answers the requests that pass.
        origins: ``server.cors_origins``.
        allowed_hosts: ``server.allowed_hosts`` as it is now.
        is_open: Whether this request's listener asks for no key, as of now.
    """

    def __init__(
        self,
        app: App,
        *,
        origins: Sequence[str],
        allowed_hosts: Callable[[], Sequence[str]],
        is_open: Callable[[Scope], bool],
    ) -> None:
        self._app = app
        self._origins = frozenset(origin.lower() for origin in origins)
        self._allowed_hosts = allowed_hosts
        self._is_open = is_open

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """ASGI."""
        if self._is_open(scope) and (refusal := self._refusal(scope)) is not None:
            return _refuse(refusal, scope, send)
        return self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> HostForbidden | OriginForbidden | None:
        host: bytes | None = None
        origin, site = b"", b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if host is not None and not self._is_ours(name := host_name(host)):  # HTTP/1.0 may go without
            return HostForbidden(
                f"{_KEYLESS} it answers to loopback names only, and {_shown(name)} is none; add it to "
                f"server.allowed_hosts, {_OR_KEYS}"
            )
        if origin and not self._is_known(origin, host or b""):
            shown = _shown(origin.decode("latin-1"))
            return OriginForbidden(
                f"{_KEYLESS} web pages of other origins may not use it; add {shown} to server.cors_origins, "
                f"{_OR_KEYS}"
            )
        if not origin and site == b"cross-site" and ANY not in self._origins:
            return OriginForbidden(
                f"{_KEYLESS} other web sites may not lead a browser here; type the address in, {_OR_KEYS}"
            )
        return None

    def _is_ours(self, name: str) -> bool:
        if is_loopback_name(name):
            return True
        for allowed in self._allowed_hosts():
            if name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])):
                return True
        return False

    def _is_known(self, origin: bytes, host: bytes) -> bool:
        """Whether the origin is configured, or is this server itself under the name that the page was at."""
        text = origin.decode("latin-1").lower()
        own = host.decode("latin-1").lower()
        return bool(self._origins & {ANY, text}) or text in {f"http://{own}", f"https://{own}"}


async def _refuse(error: HostForbidden | OriginForbidden, scope: Scope, send: Send) -> None:
    given = dict(scope["headers"]).get(b"x-request-id")
    headers = [
        *error_headers(error),
        (b"x-request-id", request_id(None if given is None else given.decode("latin-1")).encode()),
        (b"connection", b"close"),  # a body may still be on its way
    ]
    await respond(send, error.status, headers, error_body(error))


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_NAME else f"{text[:SHOWN_NAME]}…")
