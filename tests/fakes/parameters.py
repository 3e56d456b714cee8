"""The whole range of OpenAI's parameters: for each field, values that its API reference allows.

Written from OpenAI's API reference as of 2026-08. Where a field may be null, null is one of the values.
"""

from __future__ import annotations

from typing import Any, Final

from tierfall.protocol.operation import Operation

_FUNCTION: Final = {
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
_TOOL: Final = {"type": "function", "function": {**_FUNCTION, "strict": True}}
_CUSTOM: Final = {"type": "custom", "custom": {"name": "paint", "format": {"type": "text"}}}
_CALL: Final = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
_IMAGE: Final = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
_TEXT: Final = {"type": "text", "text": "Look."}
_AUDIO: Final = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
_ASKED: Final = {"role": "user", "content": "Look."}
_SCHEMA: Final = {"name": "x", "strict": True, "schema": {"type": "object", "properties": {}}}

_SAMPLING: Final[dict[str, list[Any]]] = {
    "temperature": [0, 0.5, 2, None],
    "top_p": [0.1, 1, None],
    "frequency_penalty": [0, -2, 0.5, None],
    "presence_penalty": [0, 2, None],
    "logit_bias": [{}, {"50256": -100}, None],
    "n": [1, 2, None],
    "seed": [0, 7, None],
    "stop": ["x", ["x", "y"], None],
    "max_tokens": [5, None],
    "stream": [True, False, None],
    "user": ["u"],
}

MESSAGES: Final[dict[str, list[dict[str, Any]]]] = {
    "plain": [_ASKED],
    "developer": [{"role": "developer", "content": "Be short."}, _ASKED],
    "system parts": [{"role": "system", "content": [_TEXT]}, _ASKED],
    "named": [{"role": "user", "name": "ann", "content": "Look."}],
    "image": [{"role": "user", "content": [_TEXT, _IMAGE]}],
    "audio": [{"role": "user", "content": [_AUDIO]}],
    "file": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}],
    "tools": [
        _ASKED,
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ],
    "echoed": [
        _ASKED,
        {
            "role": "assistant",
            "content": "Sunny.",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": None,
        },
        {"role": "user", "content": "And now?"},
    ],
    "spoken": [_ASKED, {"role": "assistant", "audio": {"id": "audio_1"}}, _ASKED],
    "refused": [_ASKED, {"role": "assistant", "refusal": "No."}, _ASKED],
    "old call": [
        _ASKED,
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "function", "name": "look", "content": "Sunny."},
    ],
}

RANGE: Final[dict[Operation, dict[str, list[Any]]]] = {
    Operation.CHAT: {
        **_SAMPLING,
        "messages": list(MESSAGES.values()),
        "max_completion_tokens": [5, None],
        "logprobs": [True, False, None],
        "top_logprobs": [0, 5, None],
        "metadata": [{"a": "b"}, None],
        "store": [True, False, None],
        "safety_identifier": ["x"],
        "prompt_cache_key": ["x"],
        "prompt_cache_retention": ["in_memory", "24h", None],
        "prompt_cache_options": [{"mode": "explicit"}],
        "service_tier": ["auto", "default", None],
        "modalities": [["text"], ["text", "audio"], None],
        "audio": [{"voice": "alloy", "format": "wav"}, None],
        "verbosity": ["low", "medium", "high", None],
        "reasoning_effort": ["none", "minimal", "low", "medium", "high", "xhigh", None],
        "web_search_options": [{"search_context_size": "low"}],
        "moderation": [{"model": "omni-moderation-latest"}, None],
        "prediction": [{"type": "content", "content": "x"}],
        "response_format": [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": _SCHEMA},
        ],
        "tools": [[_TOOL], [_TOOL, _CUSTOM]],
        "tool_choice": [
            "none",
            "auto",
            "required",
            {"type": "function", "function": {"name": "look"}},
            {"type": "custom", "custom": {"name": "paint"}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}},
        ],
        "parallel_tool_calls": [True, False],
        "functions": [[_FUNCTION]],
        "function_call": ["none", "auto", {"name": "look"}],
    },
    Operation.COMPLETIONS: {
        **_SAMPLING,
        "prompt": ["Once", ["Once", "Twice"], [1, 2, 3], [[1, 2], [3]]],
        "best_of": [1, 2, None],
        "echo": [True, False, None],
        "logprobs": [0, 5, None],
        "suffix": ["end", None],
    },
    Operation.EMBEDDINGS: {
        "input": ["Once", ["Once", "Twice"], [1, 2, 3], [[1, 2], [3]]],
        "encoding_format": ["float", "base64"],
        "dimensions": [1, 256],
        "user": ["u"],
    },
}

REQUIRED: Final[dict[Operation, dict[str, Any]]] = {
    Operation.CHAT: {"model": "m", "messages": MESSAGES["plain"]},
    Operation.COMPLETIONS: {"model": "m", "prompt": "Once"},
    Operation.EMBEDDINGS: {"model": "m", "input": "Once"},
}
"""What a request cannot be without."""
