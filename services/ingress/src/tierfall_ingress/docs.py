"""``/docs`` and ``/openapi.json``; the page's assets are served from here, so it works without internet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import swagger_ui_bundle
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

_ASSETS: Final = "/docs/assets"
_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ASK: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "messages"],
    "additionalProperties": True,
    "properties": {
        "model": {"type": "string", "description": "A configured name; GET /v1/models lists them."},
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {
            "type": ["object", "null"],
            "properties": {"include_usage": {"type": ["boolean", "null"]}},
        },
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 128},
    },
    "example": {"model": "vllm-qwen", "messages": [{"role": "user", "content": "Say hello."}]},
}
_CHAT: Final[dict[str, Any]] = {
    "tags": ["chat"],
    "summary": "Create a chat completion",
    "description": "OpenAI's chat completions. Fields that are not listed travel to the backend as they are.",
    "operationId": "create_chat_completion",
    "security": [{"bearer": []}],
    "requestBody": {"required": True, "content": {"application/json": {"schema": _ASK}}},
    "responses": {
        "200": {
            "description": "The answer; as server-sent events when `stream` is true.",
            "headers": {
                "x-tierfall-tier": {"schema": {"type": "string"}, "description": "The tier that answered."},
                "x-tierfall-worker": {
                    "schema": {"type": "string"},
                    "description": "The worker that answered.",
                },
                "x-tierfall-attempts": {
                    "schema": {"type": "string"},
                    "description": "What each attempt came to: `vllm=no_workers;ollama=ok`.",
                },
            },
            "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
        },
        "default": {
            "description": "What went wrong and what to change.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        },
    },
}


def add_docs(api: FastAPI) -> None:
    """Adds the page, its assets, and the chat route's entry in the document."""
    api.mount(_ASSETS, StaticFiles(directory=Path(swagger_ui_bundle.swagger_ui_path)), name="docs-assets")

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=api.title,
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon-32x32.png",
        )

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = get_openapi(
                title=api.title, version=api.version, description=api.description, routes=api.routes
            )
            schema["paths"] = {"/v1/chat/completions": {"post": _CHAT}, **schema["paths"]}
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Error"] = _ERROR
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            api.openapi_schema = schema
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
