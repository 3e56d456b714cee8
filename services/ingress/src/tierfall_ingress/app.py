"""The HTTP side as one ASGI application: the routes of the models bare, the rest by FastAPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from tierfall import __version__
from tierfall.errors import (
    Internal,
    InvalidRequest,
    KeyRefused,
    MethodNotAllowed,
    NotFound,
    TierfallError,
)
from tierfall.protocol.operation import Operation
from tierfall_ingress.browsers import BrowserGuard
from tierfall_ingress.docs import add_docs
from tierfall_ingress.exchange import Endpoint
from tierfall_ingress.health import add_health
from tierfall_ingress.models import add_models
from tierfall_ingress.operators import ADMIN, CHALLENGE, Operators
from tierfall_ingress.quotas import add_quotas
from tierfall_ingress.wire import error_body, error_headers, request_id, respond

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from starlette.datastructures import Headers
    from starlette.requests import Request

    from tierfall_ingress.body import Receive
    from tierfall_ingress.services import Services
    from tierfall_ingress.wire import Send

    Scope = MutableMapping[str, Any]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

PATHS: Final = {
    f"{version}{operation.path}{slash}": operation
    for operation in Operation
    for version in ("/v1", "")
    for slash in ("", "/")
}
"""Without ``/v1`` too: LiteLLM's users have base URLs of both kinds."""
EXPOSED_HEADERS: Final = (
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-request-id",
    "x-should-retry",
    "x-tierfall-attempts",
    "x-tierfall-tier",
    "x-tierfall-worker",
)
"""What a browser's script may read of an answer."""


def build_app(services: Services) -> App:
    """The whole HTTP side."""
    api = FastAPI(
        title="Tierfall",
        version=__version__,
        description="One OpenAI-compatible endpoint over tiers of models.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_models(api, services)
    add_quotas(api, services)
    add_docs(api)
    api.add_exception_handler(TierfallError, _on_error)
    api.add_exception_handler(HTTPException, _on_http_exception)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(Exception, _on_defect)
    endpoints = {operation: Endpoint(services, operation) for operation in Operation}
    operators = Operators(services)
    add_health(api, services, operators)
    app: App = Front({path: endpoints[operation] for path, operation in PATHS.items()}, api, operators)
    origins = services.config.server.cors_origins
    if origins:
        app = Cors(
            app,
            allow_origins=list(origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    return BrowserGuard(
        app,
        origins=origins,
        allowed_hosts=lambda: services.config.server.allowed_hosts,
        is_open=lambda scope: not services.keys.has_admins if ADMIN in scope["state"] else services.keys.open,
    )


class Cors(CORSMiddleware):
    """CORS whose own answers keep the contract too: the error object, a request id."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether it may ask."""
        response = super().preflight_response(request_headers)
        if response.status_code != 200:  # noqa: PLR2004 - HTTP
            refused = InvalidRequest(f"{bytes(response.body).decode()}; see server.cors_origins")
            response = _answer(refused, {"vary": response.headers["vary"]})
        response.headers["x-request-id"] = request_id(request_headers.get("x-request-id"))
        return response


class Front:
    """Sends requests for models to the bare routes, all others to FastAPI, with what both have in common.

    Args:
        bare: The bare applications, by path.
        api: FastAPI's.
        operators: Who may read which of its pages where.
    """

    def __init__(self, bare: Mapping[str, App], api: App, operators: Operators) -> None:
        self._bare = bare
        self._api = api
        self._operators = operators

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """ASGI."""
        if ADMIN in scope["state"]:
            return self._other(scope, receive, send)
        return self._bare.get(scope["path"], self._other)(scope, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"x-request-id")
        header = (b"x-request-id", request_id(None if given is None else given.decode("latin-1")).encode())
        # HEAD works where GET works; the server, whose scope stays as it is, leaves the body out.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        refusal = self._operators.refusal(scope)
        if refusal is None:
            await self._api(inner, receive, send_with_id)
            return
        headers = error_headers(refusal)
        if isinstance(refusal, KeyRefused):
            headers.append(CHALLENGE)
        await respond(send_with_id, refusal.status, headers, error_body(refusal))


def _answer(error: TierfallError, extra: dict[str, str] | None = None) -> Response:
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    return Response(error_body(error), status_code=error.status, headers=headers | (extra or {}))


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TierfallError)  # noqa: S101 - what the handler is registered for
    return _answer(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what the handler is registered for
    if error.status_code == 405:  # noqa: PLR2004 - HTTP
        allowed = (error.headers or {}).get("Allow", "GET").replace("GET", "GET, HEAD")
        return _answer(
            MethodNotAllowed(f"{request.method} is not allowed on {request.url.path}; use {allowed}"),
            {"allow": allowed},
        )
    if error.status_code == 404:  # noqa: PLR2004 - HTTP
        return _answer(NotFound(f"there is no {request.url.path} here; GET /docs shows what there is"))
    return _answer(InvalidRequest(str(error.detail), status=error.status_code))


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what the handler is registered for
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _answer(InvalidRequest(f"{where}: {first['msg']}", param=where))


async def _on_defect(_: Request, __: Exception) -> Response:
    return _answer(Internal("the gateway failed on this request; its log has the cause"))
