"""Health and metrics: what probes, dashboards and people ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Header, Request
from fastapi.responses import JSONResponse, Response

from tierfall import files
from tierfall.engines import advice
from tierfall.telemetry.exposition import expose
from tierfall_ingress.keys import ANYBODY

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tierfall_ingress.keys import Caller
    from tierfall_ingress.operators import Operators
    from tierfall_ingress.roster import TierState
    from tierfall_ingress.services import Services
    from tierfall_ingress.stored import StoredKeys

STATES: Final[dict[TierState, str]] = {
    "up": "",
    "loading": "its backend is loading a model",
    "down": "its backend is down",
    "no_workers": "no worker serves this tier",
}
"""What a client reads of a tier's state where its worker says no more."""


def add_health(api: FastAPI, services: Services, operators: Operators) -> None:
    """Adds the health routes and ``/metrics``, each under all the names that LiteLLM's users have."""

    @api.get("/health/liveliness", tags=["health"], summary="Does the process answer?")
    @api.get("/health/liveness", tags=["health"], summary="Does the process answer?")
    async def liveness() -> str:
        return "I'm alive!"

    @api.get(
        "/health/readiness",
        tags=["health"],
        summary="Can requests be sent here?",
        responses={503: {"description": "Not now; `reason` says why.", "content": {"application/json": {}}}},
    )
    async def readiness() -> JSONResponse:
        problem = services.unready_because()
        return JSONResponse(
            {
                "status": "unhealthy" if problem else "healthy",
                "nats": "connected" if services.bus.connected else "disconnected",
                **({"reason": problem} if problem else {}),
            },
            status_code=503 if problem else 200,
        )

    @api.get("/health", tags=["health"], summary="Which models and tiers can answer, and why not?")
    async def health(
        request: Request, authorization: Annotated[str | None, Header(include_in_schema=False)] = None
    ) -> dict[str, Any]:
        sees_all = operators.sees_all(request.scope)
        caller = ANYBODY if sees_all else services.keys.caller(authorization)
        return report(services, caller, whole=caller.models is None if sees_all is None else sees_all)

    @api.get(
        "/metrics",
        tags=["health"],
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
    )
    @api.get("/metrics/", include_in_schema=False, response_class=Response)
    async def metrics(accept: Annotated[str, Header(include_in_schema=False)] = "") -> Response:
        body, content_type = expose(services.meters.registry, accept)
        return Response(body, headers={"content-type": content_type})


def report(services: Services, caller: Caller, *, whole: bool) -> dict[str, Any]:
    """``/health``: by tier, by model, and in the two lists that LiteLLM's ``/health`` has.

    Args:
        services: The gateway's.
        caller: Whose models are shown.
        whole: Whether workers, addresses and reasons are shown too, as operators need them; else a tier has
            its state and what clients may read of the reason.
    """
    config = services.config
    names = [name for name in config.models if caller.may_use(name)]
    models = {
        name: {
            "tier": config.models[name].tier,
            "ladder": list(caller.ladder(config, name)),
            "healthy": services.roster.is_live(config.models[name].tier),
            "available": services.is_available(name, caller),
        }
        for name in names
    }
    if whole:
        tiers = {name: tier_report(services, name) for name in config.tiers}
    else:
        tiers = {name: brief(services, name) for name in dict.fromkeys(config.models[n].tier for n in names)}
    healthy = [name for name, model in models.items() if model["healthy"]]
    unhealthy = [name for name in models if name not in healthy]
    return {
        "status": "healthy" if services.unready_because() is None else "unhealthy",
        "nats": "connected" if services.bus.connected else "disconnected",
        **({"store": services.store.report()} if services.store.needed else {}),
        **({"open_files_limit": files.limit()} if whole else {}),
        **({} if services.stored is None else {"stored_keys": _stored(services.stored)}),
        "tiers": tiers,
        "models": models,
        "healthy_endpoints": [{"model": name} for name in healthy],
        "unhealthy_endpoints": [
            {"model": name, "error": tiers[config.models[name].tier]["reason"]} for name in unhealthy
        ],
        "healthy_count": len(healthy),
        "unhealthy_count": len(unhealthy),
    }


def _stored(stored: StoredKeys) -> dict[str, Any]:
    """Whether a key made or revoked now would count."""
    return {"count": len(stored), "state": "lost" if stored.problem else "followed", "reason": stored.problem}


def brief(services: Services, name: str) -> dict[str, Any]:
    """One tier for a caller that is no operator."""
    standing = services.roster.standing(name)
    reason = standing.said or STATES[standing.state]
    return {"state": standing.state, "reason": reason, "benched": services.breakers[name].is_open}


def tier_report(services: Services, name: str) -> dict[str, Any]:
    """One tier as its workers' beats tell it, for its operator."""
    standing = services.roster.standing(name)
    return {
        "kind": services.config.tiers[name].kind,
        "state": standing.state,
        "reason": standing.reason,
        "benched": services.breakers[name].is_open,
        "waiting": len(services.rooms[name]),
        "workers": [
            {
                "worker": beat.worker,
                "slots": beat.slots,
                "in_flight": beat.in_flight,
                "state": beat.backend,
                "reason": beat.reason,
                "clock_ahead_s": _rounded(services.roster.skews.ahead_s(beat.worker)),
                "models": list(beat.models),
                "engine": beat.engine,
                "advice": advice(beat.engine),
            }
            for beat in standing.workers
        ],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
