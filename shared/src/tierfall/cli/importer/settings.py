"""What LiteLLM's global settings come to here: one finding for each that is not read elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tierfall.cli.importer.findings import Findings
    from tierfall.cli.importer.source import Source

_READ: Final = frozenset(
    {
        "fallbacks",
        "default_fallbacks",
        "context_window_fallbacks",
        "content_policy_fallbacks",
        "model_group_alias",
        "request_timeout",
        "timeout",
        "stream_timeout",
        "master_key",
    }
)

_RETRIES: Final = "Tierfall tries once more on the same tier if the deadline allows, then goes on to the next"
_BENCH: Final = (
    "a tier that misses three times in a row is gone past, and tried again after 1, 2, 4 and then every 5 s"
)
_LOGGING: Final = "metrics are at /metrics, logs on stderr; there are no other callbacks"
_MONEY: Final = "budgets are of client keys: set limits.budget of a key, and the price of each model"
_KEYS: Final = (
    "there are no users or teams: make client keys with `tierfall keys`, or write them into the file"
)
_SLOTS: Final = "set max_in_flight of each tier"

LOST: Final = {
    "num_retries": _RETRIES,
    "max_retries": _RETRIES,
    "retry_policy": _RETRIES,
    "retry_after": _RETRIES,
    "allowed_fails": _BENCH,
    "allowed_fails_policy": _BENCH,
    "cooldown_time": _BENCH,
    "disable_cooldowns": _BENCH,
    "callbacks": _LOGGING,
    "success_callback": _LOGGING,
    "failure_callback": _LOGGING,
    "service_callback": _LOGGING,
    "service_callbacks": _LOGGING,
    "otel": _LOGGING,
    "alerting": "alert on the metrics of /metrics",
    "cache": "Tierfall keeps no answers",
    "cache_params": "Tierfall keeps no answers",
    "drop_params": "what a backend cannot honour goes to the next tier, or is refused by a 400 with its name",
    "modify_params": "Tierfall does not rewrite what clients ask",
    "max_budget": _MONEY,
    "budget_duration": _MONEY,
    "provider_budget_config": _MONEY,
    "default_team_settings": _KEYS,
    "default_internal_user_params": _KEYS,
    "custom_auth": _KEYS,
    "database_url": _KEYS,
    "allowed_routes": "each key may have a list of models, not of routes",
    "store_model_in_db": "models that LiteLLM keeps in its database are not in the file: add them",
    "pass_through_endpoints": "Tierfall passes no other paths on",
    "max_parallel_requests": _SLOTS,
    "global_max_parallel_requests": _SLOTS,
    "default_max_parallel_requests": _SLOTS,
    "enable_tag_filtering": "Tierfall does not route by tag",
    "routing_strategy": "a tier's workers are chosen by their free slots; tiers are tried in ladder order",
    "routing_strategy_args": "a tier's workers are chosen by their free slots",
    "optional_pre_call_checks": "free slots, health and context window are always looked at",
}
NEEDLESS: Final = {
    "set_verbose": "TIERFALL_LOG chooses the form of the log",
    "json_logs": "TIERFALL_LOG chooses the form of the log",
    "telemetry": "there is none",
    "turn_off_message_logging": "prompts and answers are never logged",
    "redact_messages_in_exceptions": "prompts and answers are never logged",
    "background_health_checks": "each worker looks at its backend every second",
    "health_check_interval": "each worker looks at its backend every second",
    "enable_pre_call_checks": "free slots, health and context window are always looked at",
    "disable_spend_logs": "there is no log of spending; the use of keys with limits is kept in NATS",
    "disable_prisma_schema_update": "there is no database",
    "database_connection_pool_limit": "there is no database",
    "require_auth_for_metrics_endpoint": "/metrics is open, and holds no prompts and no keys",
}
_NO_REDIS: Final = "NATS is the only other part"
_REDIS: Final = ("redis", "coordination_redis", "use_redis")
_DATABASE: Final = ("proxy_batch", "proxy_budget", "database_")

SECTIONS: Final = {
    "environment_variables": "set them where Tierfall's services run; the file holds none",
    "guardrails": "Tierfall does not look into prompts or answers",
    "policies": "Tierfall does not look into prompts or answers",
    "policy_attachments": "Tierfall does not look into prompts or answers",
    "mcp_servers": "Tierfall serves chat completions alone",
    "mcp_tools": "Tierfall serves chat completions alone",
    "search_tools": "Tierfall serves chat completions alone",
    "sandbox_tools": "Tierfall serves chat completions alone",
    "vector_store_registry": "Tierfall serves chat completions alone",
    "files_settings": "Tierfall serves chat completions alone",
    "finetune_settings": "Tierfall serves chat completions alone",
    "assistant_settings": "Tierfall serves chat completions alone",
}


def tell(source: Source, findings: Findings) -> None:
    """Adds a finding for every global key that did not become part of the new file."""
    for section, members in (
        ("litellm_settings", source.litellm),
        ("router_settings", source.router),
        ("general_settings", source.general),
    ):
        for key, value in members.items():
            if key not in _READ and value is not None:
                _tell_one(f"{section}.{key}", key, value, findings)
    for key, value in source.rest.items():
        if value is not None:
            findings.lost(key, SECTIONS.get(key, "Tierfall has nothing of that name"))


def _tell_one(name: str, key: str, value: Any, findings: Findings) -> None:
    if key.startswith(_REDIS):
        findings.needless(name, _NO_REDIS)
    elif key in NEEDLESS or value is False:
        findings.needless(name, NEEDLESS.get(key, "it is switched off"))
    elif key == "callbacks" and value == ["prometheus"]:
        findings.needless(name, "metrics are at /metrics")
    elif key.startswith(_DATABASE) and key not in LOST:
        findings.needless(name, "there is no database")
    else:
        findings.lost(name, LOST.get(key, "Tierfall has nothing of that name"))
