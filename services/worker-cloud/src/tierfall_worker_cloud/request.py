"""A client's request in the form that one provider takes, or a refusal that names the field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import InvalidRequest, UnsupportedByTier, UnsupportedOperation
from tierfall.protocol.operation import Operation
from tierfall.upstream import Body, encode, prepare, set_model

if TYPE_CHECKING:
    from tierfall_worker_cloud.providers import Provider, Refusal, Rules

SHOWN: Final = 64
"""Characters of a name that the client chose."""
_NULL: Final = b"null"
_texts: Final = msgspec.json.Decoder(str | list[str])
_encoder: Final = msgspec.json.Encoder()
_messages: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def shape(provider: Provider, body: Body, backend_model: str, operation: Operation = Operation.CHAT) -> bytes:
    """The body to post, as JSON text; ``body`` is used up.

    Raises:
        UnsupportedOperation: The provider has no such endpoint.
        UnsupportedByTier: The provider cannot honour a field; ``param`` names it.
        InvalidRequest: A field has a form that no provider takes.
    """
    if operation is Operation.CHAT:
        _apply(provider.name, provider, body, backend_model)
        _shape_chat(provider, body)
    elif operation is Operation.COMPLETIONS and provider.completions is not None:
        _apply(provider.name, provider.completions, body, backend_model)
    elif operation is Operation.EMBEDDINGS and provider.embeddings is not None:
        _apply(provider.name, provider.embeddings, body, backend_model)
        if not provider.embeddings.tokens:
            _refuse_tokens(provider, body)
        set_model(body, backend_model)
        return encode(body)
    else:
        raise UnsupportedOperation(f"{provider.name} has no /v1{operation.path}")
    prepare(body, backend_model, include_usage=provider.stream_usage)
    return encode(body)


def _apply(name: str, rules: Rules, body: Body, backend_model: str) -> None:
    for field in [field for field, value in body.items() if bytes(value) == _NULL]:
        del body[field]  # it says nothing, and not every field may be null everywhere
    for refusal in rules.refused:
        _refuse(name, body, refusal)
    for field in rules.dropped:
        body.pop(field, None)
    for rename in rules.renames:
        if rename.old in body and re.match(rename.models, backend_model):
            value = body.pop(rename.old)
            body.setdefault(rename.new, value)
    for field, names in rules.values.items():
        if field in body:
            body[field] = _renamed(body[field], field, names)


def _refuse_tokens(provider: Provider, body: Body) -> None:
    try:
        _texts.decode(body.get("input", b'""'))
    except msgspec.DecodeError:
        raise UnsupportedByTier(f"{provider.name} embeds text, no tokens", param="input") from None


def _shape_chat(provider: Provider, body: Body) -> None:
    if provider.functions_only:
        _refuse_tools(provider, body)
    messages = body.get("messages")
    ruled = provider.roles or provider.message_refused or provider.message_dropped or provider.parts
    if messages is not None and (ruled or b"null" in bytes(messages)):
        _shape_messages(provider, body, messages)


def _refuse_tools(provider: Provider, body: Body) -> None:
    """A tool, or a choice of one, that is no function is refused with its place."""
    tools = _value(body.get("tools", _NULL), "tools")
    found = [(f"tools[{index}]", tool) for index, tool in enumerate(tools if isinstance(tools, list) else ())]
    found.append(("tool_choice", _value(body.get("tool_choice", _NULL), "tool_choice")))
    for place, tool in found:
        if isinstance(tool, dict) and tool.get("type") != "function":
            param = f"{place}.type"
            raise UnsupportedByTier(f"{provider.name} knows functions only", param=param)


def _refuse(name: str, body: Body, refusal: Refusal) -> None:
    raw = body.get(refusal.field)
    if raw is None:
        return
    value = _value(raw, refusal.field)
    if value is not None and not any(_equal(value, neutral) for neutral in refusal.neutral):
        raise UnsupportedByTier(f"{name} does not support {refusal.field}", param=refusal.field)
    del body[refusal.field]


def _value(raw: msgspec.Raw | bytes, place: str) -> Any:
    """What a field holds. The ingress lets pass what it does not read, so a number may be out of range.

    Raises:
        InvalidRequest: It is.
    """
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        raise InvalidRequest(f"{place}: a number in it is out of range", param=place) from None


def _equal(value: Any, neutral: Any) -> bool:
    """Python takes 0 for False and 1 for True; JSON does not."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _renamed(raw: msgspec.Raw, place: str, names: dict[str, str]) -> msgspec.Raw:
    value = _value(raw, place)
    new = names.get(value) if isinstance(value, str) else None
    return raw if new is None else msgspec.Raw(_encoder.encode(new))


def _shape_messages(provider: Provider, body: Body, raw: msgspec.Raw) -> None:
    """Renames roles and takes members out; messages that need neither keep their bytes."""
    try:
        messages = _messages.decode(raw)
    except msgspec.DecodeError:
        raise InvalidRequest("messages must be an array of objects", param="messages") from None
    changed = False
    for index, message in enumerate(messages):
        _refuse_parts(provider, index, message)
        changed |= _shape_message(provider, index, message)
    if changed:
        body["messages"] = msgspec.Raw(_encoder.encode(messages))


def _refuse_parts(provider: Provider, index: int, message: dict[str, msgspec.Raw]) -> None:
    content = message.get("content")
    if not provider.parts or content is None or not bytes(content).startswith(b"["):
        return
    for number, part in enumerate(_value(content, f"messages[{index}].content")):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind is not None and not (isinstance(kind, str) and kind in provider.parts):
            param = f"messages[{index}].content[{number}].type"
            raise UnsupportedByTier(
                f"{provider.name} does not take parts of type {str(kind)[:SHOWN]}", param=param
            )


def _shape_message(provider: Provider, index: int, message: dict[str, msgspec.Raw]) -> bool:
    """Whether the message had to be changed, in place."""
    size = len(message)
    role = message.get("role")
    tool = role is not None and bytes(role) == b'"tool"'
    for member in provider.message_refused:
        raw = message.get(member)
        if raw is None or (member == "name" and tool):
            continue  # a tool's name repeats what its call says
        if bytes(raw) != _NULL:
            param = f"messages[{index}].{member}"
            raise UnsupportedByTier(f"{provider.name} does not support {param}", param=param)
        del message[member]
    for member in provider.message_dropped:
        message.pop(member, None)
    for member in [name for name, value in message.items() if name != "content" and bytes(value) == _NULL]:
        del message[member]  # SDKs echo what an answer left empty
    if role is None or not provider.roles:
        return len(message) != size
    renamed = _renamed(role, f"messages[{index}].role", provider.roles)
    message["role"] = renamed
    return len(message) != size or bytes(renamed) != bytes(role)
