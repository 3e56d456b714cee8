"""What shapes an answer: its tools, its format, its thinking; in Ollama's native terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall_worker_ollama.fields import take

if TYPE_CHECKING:
    from collections.abc import Mapping

THINKING_FIELDS: Final = ("think", "chat_template_kwargs", "reasoning_effort")
"""The fields that ask for thinking, the one that wins first."""

# Ollama knows off, three levels and on; the levels that it lacks go to their neighbours.
EFFORTS: Final[dict[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}
THINKING_SWITCHES: Final = frozenset({"enable_thinking", "thinking"})
NO_PARAMETERS: Final = {"type": "object", "properties": {}}


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    type: str
    function: _Function | None = None


class _Schema(msgspec.Struct):
    schema: dict[str, Any] | None = None


class _Format(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


def native_tools(body: Mapping[str, msgspec.Raw]) -> list[dict[str, Any]] | None:
    """``tools``, unless ``tool_choice`` is ``none``: Ollama always lets the model choose.

    Raises:
        UnsupportedByTier: The model may not choose freely, or a tool is no function.
    """
    choice = take(body, "tool_choice", str | dict[str, Any])
    if isinstance(choice, dict) or choice == "required":
        raise UnsupportedByTier("tool_choice: Ollama cannot force a tool call", param="tool_choice")
    if choice not in {None, "none", "auto"}:
        raise InvalidRequest(f"tool_choice: none, auto or required, not {choice!r}", param="tool_choice")
    tools: list[_Tool] = take(body, "tools", list[_Tool]) or []
    native = [_native_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    return None if choice == "none" else native or None


def _native_tool(tool: _Tool, place: str) -> dict[str, Any]:
    if tool.type != "function":
        raise UnsupportedByTier(f"{place}.type: Ollama knows functions only", param=f"{place}.type")
    if tool.function is None:
        raise InvalidRequest(f"{place}.function: missing", param=f"{place}.function")
    function = {
        "name": tool.function.name,
        "description": tool.function.description or "",
        "parameters": tool.function.parameters or NO_PARAMETERS,
    }
    return {"type": "function", "function": function}


def native_format(body: Mapping[str, msgspec.Raw]) -> str | dict[str, Any] | None:
    """``format``: the request's own, or what ``response_format`` asks for.

    Raises:
        UnsupportedByTier: A kind of format other than text, JSON and JSON Schema.
    """
    own: str | dict[str, Any] | None = take(body, "format", str | dict[str, Any])
    wanted: _Format | None = take(body, "response_format", _Format)
    if own:
        return own
    match wanted.type if wanted is not None else "text":
        case "text":
            return None
        case "json_object":
            return "json"
        case "json_schema":
            return _schema(wanted)
        case other:
            raise UnsupportedByTier(
                f"response_format.type: text, json_object or json_schema, not {other!r}",
                param="response_format.type",
            )


def _schema(wanted: _Format | None) -> dict[str, Any]:
    schema = wanted.json_schema.schema if wanted is not None and wanted.json_schema is not None else None
    if schema is None:
        place = "response_format.json_schema.schema"
        raise InvalidRequest(f"{place}: missing", param=place)
    return schema


def native_think(body: Mapping[str, msgspec.Raw]) -> bool | str | None:
    """``think``: on, off, or a level; ``None`` leaves it to the model, which is on where it can think.

    Raises:
        InvalidRequest: No such level.
        UnsupportedByTier: ``chat_template_kwargs`` says more than thinking on or off.
    """
    own = take(body, "think", bool | str)
    switch = _template_switch(body)
    effort: str | None = take(body, "reasoning_effort", str)
    for name, level in (("think", own), ("reasoning_effort", effort)):
        if isinstance(level, str) and level not in EFFORTS:
            raise InvalidRequest(f"{name}: one of {', '.join(EFFORTS)}, not {level!r}", param=name)
    for value in (own, switch, effort):
        if value is not None:
            return EFFORTS[value] if isinstance(value, str) else value
    return None


def _template_switch(body: Mapping[str, msgspec.Raw]) -> bool | None:
    """``chat_template_kwargs.enable_thinking`` (Qwen's name) or ``.thinking`` (DeepSeek's)."""
    settings: dict[str, Any] = take(body, "chat_template_kwargs", dict[str, Any]) or {}
    value: bool | None = None
    for name, setting in settings.items():
        param = f"chat_template_kwargs.{name}"
        if name not in THINKING_SWITCHES:
            raise UnsupportedByTier(f"{param}: Ollama's templates take no arguments", param=param)
        if not isinstance(setting, bool):
            raise InvalidRequest(f"{param}: true or false", param=param)
        value = setting
    return value
