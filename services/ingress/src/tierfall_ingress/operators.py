"""What operators read beside the API: metrics, documentation, the whole ``/health``; and who may.

By default these are on the port of the API, and need no key, but for ``/health``, which needs a client's.
With ``server.admin`` they have a port of their own, with ``server.admin_keys`` they need one of these keys.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

from tierfall.errors import KeyRefused, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.errors import TierfallError
    from tierfall_ingress.services import Services

ADMIN: Final = "tierfall.admin"
"""In a request's ASGI ``state``: that it came in on the port of ``server.admin``."""
CHALLENGE: Final = (b"www-authenticate", b'Basic realm="Tierfall, for operators"')
"""So that a browser asks for the key; its user name does not matter."""
_PAGES: Final = frozenset({"/metrics", "/metrics/", "/docs", "/openapi.json"})
_ASSETS: Final = "/docs/"
_HEALTH: Final = "/health"


class Operators:
    """Decides about one request's way to the pages of operators.

    Args:
        services: The gateway's.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._has_port = services.config.server.admin is not None  # as of the start, as the port itself

    def refusal(self, scope: Mapping[str, Any]) -> TierfallError | None:
        """Why the request gets no answer here, if it gets none."""
        path: str = scope["path"]
        is_page = path in _PAGES or path.startswith(_ASSETS)
        on_port = scope["state"].get(ADMIN, False)
        if on_port and not is_page and not path.startswith(_HEALTH):
            return NotFound(f"there is no {path} on this port: it is the operators' (server.admin)")
        if is_page and self._has_port and not on_port:
            return NotFound(f"there is no {path} here: operators have a port of their own (server.admin)")
        guarded = is_page or (on_port and path == _HEALTH)
        if guarded and self._services.keys.has_admins and not self.shows_key(scope):
            return KeyRefused("this page is for operators: send one of server.admin_keys")
        return None

    def sees_all(self, scope: Mapping[str, Any]) -> bool | None:
        """Whether the request may read the whole ``/health``; None where its client key decides."""
        if self.shows_key(scope) or scope["state"].get(ADMIN, False):
            return True
        return False if self._has_port or self._services.keys.has_admins else None

    def shows_key(self, scope: Mapping[str, Any]) -> bool:
        """Whether it shows an operator's key, as a bearer token or as the password of HTTP's Basic scheme."""
        shown = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        scheme, _, value = shown.partition(" ")
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return self._services.keys.is_admin(value.strip())
