"""How quotas stand, in JSON: ``GET /v1/quotas`` and ``tierfall quota --json``."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tierfall.quota.standing import KeyStanding, Standing, WindowStanding


def report(standing: Standing) -> dict[str, Any]:
    """One model, with its keys and their windows."""
    return {
        "model": standing.model,
        "tier": standing.tier,
        "spent": standing.spent,
        "keys": [_key(key) for key in standing.keys],
    }


def _key(key: KeyStanding) -> dict[str, Any]:
    return {
        "key": key.key,
        "spent": key.spent or None,
        "retry_after": key.retry_after,
        "windows": [_window(window) for window in key.windows],
    }


def _window(window: WindowStanding) -> dict[str, Any]:
    resets = None
    if window.resets_at is not None:
        resets = f"{dt.datetime.fromtimestamp(window.resets_at, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {
        "metric": window.metric,
        "window": window.window,
        "of": window.of or None,
        "limit": window.limit,
        "used": window.used,
        "left": window.left,
        "resets_at": resets,
    }
