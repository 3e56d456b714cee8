"""``GET /v1/models`` and ``/v1/models/{id}``: the configured names, as far as the caller may use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Header

from tierfall_ingress.exchange import unknown_model

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tierfall_ingress.keys import Caller
    from tierfall_ingress.services import Services

OWNER: Final = "tierfall"
Authorization = Annotated[str | None, Header(include_in_schema=False)]


def add_models(api: FastAPI, services: Services) -> None:
    """Adds both routes."""

    def model(name: str, caller: Caller) -> dict[str, Any]:
        configured = services.config.models[name]
        return {
            "id": name,
            "object": "model",
            "created": services.started_at,
            "owned_by": OWNER,
            "tier": configured.tier,
            "ladder": list(caller.ladder(services.config, name)),
            "available": services.is_available(name, caller),
            "context_window": configured.context_window,
        }

    @api.get("/v1/models", tags=["models"], summary="List the models")
    @api.get("/v1/models/", include_in_schema=False)
    @api.get("/models", include_in_schema=False)
    async def list_models(authorization: Authorization = None) -> dict[str, Any]:
        caller = services.keys.caller(authorization)
        names = [name for name in services.config.models if caller.may_use(name)]
        return {"object": "list", "data": [model(name, caller) for name in names]}

    @api.get("/v1/models/{name:path}", tags=["models"], summary="Describe one model")
    @api.get("/models/{name:path}", include_in_schema=False)
    async def describe_model(name: str, authorization: Authorization = None) -> dict[str, Any]:
        caller = services.keys.caller(authorization)
        if name not in services.config.models:
            raise unknown_model(name, services.config, caller)
        caller.check(name)
        return model(name, caller)
