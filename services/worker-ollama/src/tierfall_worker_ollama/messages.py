"""OpenAI's messages as Ollama's native API takes them.

Ollama's message has one text, a list of base64 images, tool calls with arguments as an object, and for a
tool's answer the tool's name. The ``name`` of other messages is left out: templates have no place for it.
Source: ``Message`` in Ollama's ``api/types.go``, as of 0.17.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall_worker_ollama.fields import take

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ARGUMENTS: Final = 100_000
"""Commas in the arguments of one tool call. They are JSON within JSON, which the ingress does not count."""
ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class _ImageUrl(msgspec.Struct):
    url: str


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _ImageUrl | str | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""


class _ToolCall(msgspec.Struct):
    function: _Function | None = None
    id: str = ""
    type: str = "function"


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    audio: Any = None
    function_call: Any = None


class Messages(msgspec.Struct):
    """What became of a request's messages.

    ``image`` is the place of the first image (``messages[0].content[1].image_url``), empty without one.
    """

    native: list[dict[str, Any]]
    image: str = ""


def native_messages(body: Mapping[str, msgspec.Raw]) -> Messages:
    """Translates ``messages``.

    Raises:
        InvalidRequest: A message is not what OpenAI's API describes.
        UnsupportedByTier: Ollama has no place for what it says: audio, files, images by web address.
    """
    messages: list[_Message] | None = take(body, "messages", list[_Message])
    if not messages:
        raise InvalidRequest("messages: at least one message is needed", param="messages")
    tools: dict[str, str] = {}
    done = Messages([])
    for number, message in enumerate(messages):
        done.native.append(_native(message, f"messages[{number}]", tools, done))
    return done


def _native(message: _Message, place: str, tools: dict[str, str], done: Messages) -> dict[str, Any]:
    role = _role(message, place)
    text, images = _content(message, place)
    native: dict[str, Any] = {"role": role, "content": text}
    if images:
        native["images"] = list(images.values())
        done.image = done.image or next(iter(images))
    thinking = message.reasoning_content or message.reasoning
    if thinking:
        native["thinking"] = thinking
    if message.tool_calls:
        native["tool_calls"] = _tool_calls(message.tool_calls, f"{place}.tool_calls", tools)
    if role == "tool":
        native |= _answered_call(message, place, tools)
    return native


def _role(message: _Message, place: str) -> str:
    for name in ("audio", "function_call"):
        if getattr(message, name) is not None:
            raise UnsupportedByTier(f"{place}.{name}: Ollama has no such thing", param=f"{place}.{name}")
    role = ROLES.get(message.role)
    if role is not None:
        return role
    if message.role == "function":
        raise UnsupportedByTier(
            f"{place}.role: 'function' is OpenAI's old form; use 'tool' with tool_call_id",
            param=f"{place}.role",
        )
    raise InvalidRequest(
        f"{place}.role: one of {', '.join(ROLES)}, not {message.role!r}", param=f"{place}.role"
    )


def _content(message: _Message, place: str) -> tuple[str, dict[str, str]]:
    """The text, and the images by their place. Text parts are joined by line breaks, as vLLM does it."""
    content = message.content
    if isinstance(content, str):
        return content, {}
    if content is None:
        if message.role != "assistant":
            raise InvalidRequest(f"{place}.content: missing", param=f"{place}.content")
        return message.refusal or "", {}
    texts: list[str] = []
    images: dict[str, str] = {}
    for number, part in enumerate(content):
        at = f"{place}.content[{number}]"
        match part.type:
            case "text" | "refusal":
                text = part.text if part.type == "text" else part.refusal
                if text is None:
                    raise InvalidRequest(f"{at}.{part.type}: missing", param=f"{at}.{part.type}")
                texts.append(text)
            case "image_url":
                images[f"{at}.image_url"] = _image(part.image_url, f"{at}.image_url")
            case other:
                raise UnsupportedByTier(
                    f"{at}: Ollama takes text and images, not {other!r}", param=f"{at}.{other}"
                )
    return "\n".join(texts), images


def _image(image: _ImageUrl | str | None, place: str) -> str:
    url = image.url if isinstance(image, _ImageUrl) else image
    if not url:
        raise InvalidRequest(f"{place}: missing", param=place)
    head, comma, data = url.partition(",")
    if not head.startswith("data:"):
        raise UnsupportedByTier(
            f"{place}: Ollama does not fetch images; send a data: URL with base64", param=place
        )
    try:
        if not comma or not head.endswith(";base64"):
            raise InvalidRequest(f"{place}: a data: URL has to hold base64", param=place)
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{place}: the data: URL is not valid base64", param=place) from None
    return data


def _tool_calls(calls: list[_ToolCall], place: str, tools: dict[str, str]) -> list[dict[str, Any]]:
    native = []
    for index, call in enumerate(calls):
        at = f"{place}[{index}]"
        if call.type != "function" or call.function is None:
            raise UnsupportedByTier(f"{at}.type: Ollama knows functions only", param=f"{at}.type")
        if call.function.arguments.count(",") > MAX_ARGUMENTS:
            at += ".function.arguments"
            raise InvalidRequest(f"{at}: more than {MAX_ARGUMENTS} values", param=at)
        try:
            arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            at += ".function.arguments"
            raise InvalidRequest(f"{at}: not a JSON object, which Ollama needs", param=at) from None
        tools[call.id] = call.function.name
        function = {"index": index, "name": call.function.name, "arguments": arguments}
        native.append({"id": call.id, "function": function})
    return native


def _answered_call(message: _Message, place: str, tools: dict[str, str]) -> dict[str, str]:
    """A tool's answer names its tool; a call that the history no longer holds leaves the name out."""
    call = message.tool_call_id
    if not call:
        raise InvalidRequest(f"{place}.tool_call_id: missing", param=f"{place}.tool_call_id")
    name = tools.get(call) or message.name
    return {"tool_call_id": call, "tool_name": name} if name else {"tool_call_id": call}
