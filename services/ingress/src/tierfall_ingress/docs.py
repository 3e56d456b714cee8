"""``/docs`` and ``/openapi.json``; the page's assets are served from here, so it works without internet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import swagger_ui_bundle
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.staticfiles import StaticFiles

from tierfall.protocol.operation import Operation
from tierfall_ingress.ask import ENCODINGS, MAX_CHOICES

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

_ASSETS: Final = "/docs/assets"
OPENAPI_VERSION: Final = "3.0.3"
"""The newest that the bundled Swagger UI 4 renders; so null is ``nullable`` here, not a type."""
_WITH_KEY: Final = frozenset({"/v1/models", "/v1/models/{name}", "/v1/quotas", "/health"})
_SECURITY: Final[list[dict[str, list[str]]]] = [{"bearer": []}]
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
                "param": {"type": "string", "nullable": True},
                "code": {"type": "string", "nullable": True},
            },
        }
    },
}
_FAILURE: Final[dict[str, Any]] = {
    "description": "What went wrong and what to change.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ASK: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "messages"],
    "additionalProperties": True,
    "properties": {
        "model": {
            "type": "string",
            "minLength": 1,
            "description": "A configured name; GET /v1/models lists them.",
        },
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "stream": {"type": "boolean", "nullable": True},
        "stream_options": {
            "type": "object",
            "nullable": True,
            "description": "Only with `stream: true`.",
            "properties": {"include_usage": {"type": "boolean", "nullable": True}},
        },
        "n": {"type": "integer", "nullable": True, "minimum": 1, "maximum": MAX_CHOICES},
    },
    "anyOf": [
        {"required": ["stream"], "properties": {"stream": {"type": "boolean", "enum": [True]}}},
        {"properties": {"stream_options": {"type": "object", "nullable": True, "enum": [None]}}},
    ],
    "example": {"model": "vllm-qwen", "messages": [{"role": "user", "content": "Say hello."}]},
}
_TEXTS: Final[dict[str, Any]] = {
    "oneOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {}},
    ],
    "description": "A text, an array of texts, an array of tokens, or an array of arrays of tokens.",
}
_COMPLETION: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "prompt"],
    "additionalProperties": True,
    "properties": {
        **{name: _ASK["properties"][name] for name in ("model", "stream", "stream_options", "n")},
        "prompt": _TEXTS,
    },
    "anyOf": _ASK["anyOf"],
    "example": {"model": "vllm-qwen", "prompt": "Once upon a time", "max_tokens": 16},
}
_EMBEDDING: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "input"],
    "additionalProperties": True,
    "properties": {
        "model": _ASK["properties"]["model"],
        "input": _TEXTS,
        "encoding_format": {"type": "string", "nullable": True, "enum": list(ENCODINGS)},
        "stream": {"type": "boolean", "nullable": True, "enum": [False, None]},
    },
    "example": {"model": "embed", "input": ["Say hello."]},
}
_HEADERS: Final[dict[str, Any]] = {
    "x-tierfall-tier": {"schema": {"type": "string"}, "description": "The tier that answered."},
    "x-tierfall-worker": {"schema": {"type": "string"}, "description": "The worker that answered."},
    "x-tierfall-attempts": {
        "schema": {"type": "string"},
        "description": "What each attempt came to: `vllm=no_workers;ollama=ok`.",
    },
}
_UNTOUCHED: Final = "Fields that are not listed travel to the backend as they are."


def _bare(
    operation: Operation, summary: str, asked: dict[str, Any], *, streams: bool = True
) -> dict[str, Any]:
    """The entry of a route that FastAPI does not know."""
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    told = "The answer."
    if streams:
        content["text/event-stream"] = {}
        told = "The answer; as server-sent events when `stream` is true."
    return {
        "tags": [operation.value],
        "summary": summary,
        "description": f"As OpenAI's `/v1{operation.path}`. {_UNTOUCHED}",
        "operationId": summary.lower().replace(" ", "_"),
        "security": _SECURITY,
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": {
            "200": {"description": told, "headers": _HEADERS, "content": content},
            "default": _FAILURE,
        },
    }


_BARE: Final = {
    Operation.CHAT: _bare(Operation.CHAT, "Create chat completion", _ASK),
    Operation.COMPLETIONS: _bare(Operation.COMPLETIONS, "Create completion", _COMPLETION),
    Operation.EMBEDDINGS: _bare(Operation.EMBEDDINGS, "Create embeddings", _EMBEDDING, streams=False),
}


def add_docs(api: FastAPI) -> None:
    """Adds the page, its assets, and the bare routes' entries in the document."""
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
            api.openapi_schema = _document(api)
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _document(api: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the bare routes, and with the errors that really come instead of its 422."""
    schema = get_openapi(
        title=api.title,
        version=api.version,
        openapi_version=OPENAPI_VERSION,
        description=api.description,
        routes=api.routes,
    )
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _FAILURE
            if path in _WITH_KEY:
                operation["security"] = _SECURITY
    bare = {f"/v1{operation.path}": {"post": entry} for operation, entry in _BARE.items()}
    schema["paths"] = {**bare, **schema["paths"]}
    schema["components"] = {
        "schemas": {"Error": _ERROR},
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
    }
    return schema
