"""Providers that refuse every field that they do not document: what a request has to look like, by provider.

Written from the providers' API references and what their published clients can send, as of 2026-08; where
those are silent, from the errors that users report. A field that is not listed is refused, as is null where
it is not allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from fakes.behaviour import Answer, error_body
from fakes.faults import Status
from fakes.provider import FakeProvider
from fakes.texts import TextAnswer, Vectors
from tierfall.protocol.operation import Operation

if TYPE_CHECKING:
    from fakes.behaviour import Behaviour
    from fakes.http11 import Recorded

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Many = Annotated[int, msgspec.Meta(ge=1, le=128)]
UNSET = msgspec.UNSET
Unset = msgspec.UnsetType


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class _Options(_Strict):
    include_usage: bool | Unset = UNSET
    include_obfuscation: bool | Unset = UNSET


# -- messages


class _Part(_Strict):
    type: Literal["text", "image_url"]
    text: str | Unset = UNSET
    image_url: dict[str, str] | Unset = UNSET


class _Heard(_Strict):
    type: Literal["text", "image_url", "input_audio"]
    text: str | Unset = UNSET
    image_url: dict[str, str] | Unset = UNSET
    input_audio: dict[str, str] | Unset = UNSET


class _AnyPart(_Strict):
    type: Literal["text", "image_url", "input_audio", "file", "refusal"]
    text: str | Unset = UNSET
    image_url: dict[str, str] | Unset = UNSET
    input_audio: dict[str, str] | Unset = UNSET
    file: dict[str, str] | Unset = UNSET
    refusal: str | Unset = UNSET


class _CalledFunction(_Strict):
    name: str
    arguments: str


class _Call(_Strict):
    id: str
    type: Literal["function"]
    function: _CalledFunction


class _OpenAIMessage(_Strict):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[_AnyPart] | Unset | None = UNSET
    name: str | Unset = UNSET
    refusal: str | Unset | None = UNSET
    annotations: list[Any] | Unset = UNSET
    audio: dict[str, str] | Unset | None = UNSET
    tool_calls: list[_Call] | Unset = UNSET
    function_call: _CalledFunction | Unset | None = UNSET
    tool_call_id: str | Unset = UNSET


class _GroqMessage(_Strict):
    role: Literal["system", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | Unset | None = UNSET
    tool_calls: list[_Call] | Unset = UNSET
    function_call: _CalledFunction | Unset = UNSET
    tool_call_id: str | Unset = UNSET
    name: str | Unset = UNSET
    """Of a function's answer only."""
    reasoning: str | Unset = UNSET

    def __post_init__(self) -> None:
        if self.name is not UNSET and self.role != "function":
            raise ValueError("property 'name' is unsupported")


class _GeminiMessage(_Strict):
    role: Literal["system", "user", "assistant", "tool", "function"]
    content: str | list[_Heard] | Unset | None = UNSET
    name: str | Unset = UNSET
    tool_calls: list[_Call] | Unset = UNSET
    tool_call_id: str | Unset = UNSET


class _MistralMessage(_Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[_Part] | Unset | None = UNSET
    tool_calls: list[_Call] | Unset = UNSET
    tool_call_id: str | Unset = UNSET
    name: str | Unset = UNSET
    """Of a tool's answer only."""
    prefix: bool | Unset = UNSET

    def __post_init__(self) -> None:
        if self.name is not UNSET and self.role != "tool":
            raise ValueError("name: extra inputs are not permitted")


# -- tools


class _Function(_Strict):
    name: str
    description: str | Unset = UNSET
    parameters: dict[str, Any] | Unset = UNSET
    strict: bool | Unset = UNSET


class _FunctionTool(_Strict):
    type: Literal["function"]
    function: _Function


class _OpenAITool(_Strict):
    type: Literal["function", "custom"]
    function: _Function | Unset = UNSET
    custom: dict[str, Any] | Unset = UNSET


class _Named(_Strict):
    name: str


class _Chosen(_Strict):
    type: Literal["function"]
    function: _Named


class _OpenAIChosen(_Strict):
    type: Literal["function", "custom", "allowed_tools"]
    function: _Named | Unset = UNSET
    custom: _Named | Unset = UNSET
    allowed_tools: dict[str, Any] | Unset = UNSET


class _Format(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | Unset = UNSET


Choice = Literal["none", "auto", "required"]


# -- chat


class OpenAIChat(_Strict):
    """``CreateChatCompletionRequest``; what may be null there may be null here."""

    model: str
    messages: Annotated[list[_OpenAIMessage], msgspec.Meta(min_length=1)]
    audio: dict[str, Any] | Unset | None = UNSET
    frequency_penalty: Penalty | Unset | None = UNSET
    function_call: Literal["none", "auto"] | _Named | Unset = UNSET
    functions: list[_Function] | Unset = UNSET
    logit_bias: dict[str, int] | Unset | None = UNSET
    logprobs: bool | Unset | None = UNSET
    max_completion_tokens: Count | Unset | None = UNSET
    max_tokens: Count | Unset | None = UNSET
    metadata: dict[str, str] | Unset | None = UNSET
    modalities: list[Literal["text", "audio"]] | Unset | None = UNSET
    moderation: dict[str, Any] | Unset | None = UNSET
    n: Many | Unset | None = UNSET
    parallel_tool_calls: bool | Unset = UNSET
    prediction: dict[str, Any] | Unset = UNSET
    presence_penalty: Penalty | Unset | None = UNSET
    prompt_cache_key: str | Unset = UNSET
    prompt_cache_options: dict[str, Any] | Unset = UNSET
    prompt_cache_retention: Literal["in_memory", "24h"] | Unset | None = UNSET
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | Unset | None = (
        UNSET
    )
    response_format: _Format | Unset = UNSET
    safety_identifier: str | Unset = UNSET
    seed: int | Unset | None = UNSET
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | Unset | None = UNSET
    stop: str | list[str] | Unset | None = UNSET
    store: bool | Unset | None = UNSET
    stream: bool | Unset | None = UNSET
    stream_options: _Options | Unset | None = UNSET
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | Unset | None = UNSET
    tool_choice: Choice | _OpenAIChosen | Unset = UNSET
    tools: list[_OpenAITool] | Unset = UNSET
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | Unset | None = UNSET
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | Unset | None = UNSET
    user: str | Unset = UNSET
    verbosity: Literal["low", "medium", "high"] | Unset | None = UNSET
    web_search_options: dict[str, Any] | Unset = UNSET


class GroqChat(_Strict):
    """Of the documented fields those that Groq does not call unsupported; null is refused."""

    model: str
    messages: Annotated[list[_GroqMessage], msgspec.Meta(min_length=1)]
    frequency_penalty: Penalty | Unset = UNSET
    function_call: Literal["none", "auto", "required"] | _Named | Unset = UNSET
    functions: list[_Function] | Unset = UNSET
    include_reasoning: bool | Unset = UNSET
    max_completion_tokens: Count | Unset = UNSET
    max_tokens: Count | Unset = UNSET
    n: Literal[1] | Unset = UNSET
    parallel_tool_calls: bool | Unset = UNSET
    presence_penalty: Penalty | Unset = UNSET
    reasoning_effort: (
        Literal["none", "default", "minimal", "low", "medium", "high", "xhigh", "max"] | Unset
    ) = UNSET
    reasoning_format: str | Unset = UNSET
    response_format: _Format | Unset = UNSET
    seed: int | Unset = UNSET
    service_tier: Literal["auto", "on_demand", "flex", "performance"] | Unset = UNSET
    stop: str | list[str] | Unset = UNSET
    stream: bool | Unset = UNSET
    stream_options: _Options | Unset = UNSET
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | Unset = UNSET
    tool_choice: Choice | _Chosen | Unset = UNSET
    tools: list[_FunctionTool] | Unset = UNSET
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | Unset = UNSET
    user: str | Unset = UNSET


class GeminiChat(_Strict):
    """What Google's page on OpenAI compatibility shows, and no field that users report as unknown."""

    model: str
    messages: Annotated[list[_GeminiMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: Count | Unset = UNSET
    max_tokens: Count | Unset = UNSET
    n: Many | Unset = UNSET
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | Unset = UNSET
    response_format: _Format | Unset = UNSET
    stop: str | list[str] | Unset = UNSET
    stream: bool | Unset = UNSET
    stream_options: _Options | Unset = UNSET
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | Unset = UNSET
    tool_choice: Choice | _Chosen | Unset = UNSET
    tools: list[_FunctionTool] | Unset = UNSET
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | Unset = UNSET


class MistralChat(_Strict):
    """What its published client can send; anything else is ``extra_forbidden``."""

    model: str
    messages: Annotated[list[_MistralMessage], msgspec.Meta(min_length=1)]
    frequency_penalty: Penalty | Unset = UNSET
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | Unset = UNSET
    metadata: dict[str, Any] | Unset = UNSET
    n: Count | Unset = UNSET
    parallel_tool_calls: bool | Unset = UNSET
    prediction: dict[str, Any] | Unset = UNSET
    presence_penalty: Penalty | Unset = UNSET
    prompt_cache_key: str | Unset = UNSET
    prompt_mode: Literal["reasoning"] | Unset = UNSET
    random_seed: int | Unset = UNSET
    reasoning_effort: Literal["none", "high"] | Unset = UNSET
    response_format: _Format | Unset = UNSET
    safe_prompt: bool | Unset = UNSET
    stop: str | list[str] | Unset = UNSET
    stream: bool | Unset = UNSET
    temperature: Annotated[float, msgspec.Meta(ge=0)] | Unset = UNSET
    tool_choice: Literal["none", "auto", "any", "required"] | _Chosen | Unset = UNSET
    tools: list[_FunctionTool] | Unset = UNSET
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | Unset = UNSET


# -- the other operations


class OpenAICompletion(_Strict):
    """``CreateCompletionRequest``."""

    model: str
    prompt: str | list[str] | None = None
    best_of: Annotated[int, msgspec.Meta(ge=0, le=20)] | Unset | None = UNSET
    echo: bool | Unset | None = UNSET
    frequency_penalty: Penalty | Unset | None = UNSET
    logit_bias: dict[str, int] | Unset | None = UNSET
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | Unset | None = UNSET
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | Unset | None = UNSET
    n: Many | Unset | None = UNSET
    presence_penalty: Penalty | Unset | None = UNSET
    seed: int | Unset | None = UNSET
    stop: str | list[str] | Unset | None = UNSET
    stream: bool | Unset | None = UNSET
    stream_options: _Options | Unset | None = UNSET
    suffix: str | Unset | None = UNSET
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | Unset | None = UNSET
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | Unset | None = UNSET
    user: str | Unset = UNSET


class OpenAIEmbedding(_Strict):
    """``CreateEmbeddingRequest``."""

    model: str
    input: str | list[str]
    dimensions: Count | Unset = UNSET
    encoding_format: Literal["float", "base64"] | Unset = UNSET
    user: str | Unset = UNSET


class GeminiEmbedding(_Strict):
    """It answers with numbers whatever it is asked for, and refuses to be asked for base64."""

    model: str
    input: str | list[str]
    dimensions: Count | Unset = UNSET


class MistralEmbedding(_Strict):
    """What its published client can send."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | Unset = UNSET
    metadata: dict[str, Any] | Unset = UNSET
    output_dimension: Count | Unset = UNSET
    output_dtype: str | Unset = UNSET


SCHEMAS: Final[dict[str, dict[Operation, type[_Strict]]]] = {
    "openai": {
        Operation.CHAT: OpenAIChat,
        Operation.COMPLETIONS: OpenAICompletion,
        Operation.EMBEDDINGS: OpenAIEmbedding,
    },
    "groq": {Operation.CHAT: GroqChat},
    "gemini": {Operation.CHAT: GeminiChat, Operation.EMBEDDINGS: GeminiEmbedding},
    "mistral": {Operation.CHAT: MistralChat, Operation.EMBEDDINGS: MistralEmbedding},
}
_TOKENS: Final = ("prompt", "input")
"""Fields that OpenAI takes as tokens too, which no union of msgspec's can say."""


def objection(provider: str, operation: Operation, body: dict[str, Any]) -> str:
    """Why the provider would refuse this request; empty when it would not."""
    schema = SCHEMAS[provider].get(operation)
    if schema is None:
        return f"{provider} has no {operation.path}"
    checked = dict(body)
    for field in _TOKENS:
        if provider == "openai" and _are_tokens(body.get(field)):
            checked[field] = "tokens"
    try:
        msgspec.convert(checked, schema)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _are_tokens(asked: Any) -> bool:
    if not isinstance(asked, list) or not asked:
        return False
    rows = asked if isinstance(asked[0], list) else [asked]
    return all(isinstance(token, int) for row in rows for token in row)


class StrictProvider(FakeProvider):
    """Answers what its provider would take, with a 400 to anything else; ``objections`` has the reasons."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.objections: list[str] = []

    def _default_of(self, path: str) -> Behaviour | None:
        found = next((each for each in Operation if path == f"/v1{each.path}"), None)
        return None if found is None else _Judge(self, self._name, found)


class _Judge:
    def __init__(self, provider: StrictProvider, name: str, operation: Operation) -> None:
        self._provider = provider
        self._name = name
        self._operation = operation

    async def play(self, request: Recorded) -> None:
        """Refuses, or answers."""
        why = objection(self._name, self._operation, request.json)
        good: dict[Operation, Behaviour] = {
            Operation.CHAT: Answer("Hello."),
            Operation.COMPLETIONS: TextAnswer("Hello."),
            Operation.EMBEDDINGS: Vectors(),
        }
        answer = good[self._operation]
        if why:
            self._provider.objections.append(why)
            answer = Status(400, body=error_body(why, "invalid_request_error"))
        await answer.play(request)
