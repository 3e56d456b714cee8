"""What workers share that reach a backend over OpenAI's HTTP API."""

from tierfall.upstream.body import Body, continued, encode, prepare, set_model
from tierfall.upstream.failure import KEY_REFUSED, Source
from tierfall.upstream.openai import (
    CLOUD_CONNECT_TIMEOUT_S,
    CLOUD_KEEPALIVE_S,
    LOCAL_CONNECT_TIMEOUT_S,
    OpenAIUpstream,
    Reply,
)
from tierfall.upstream.sse import SSEParser

__all__ = [
    "CLOUD_CONNECT_TIMEOUT_S",
    "CLOUD_KEEPALIVE_S",
    "KEY_REFUSED",
    "LOCAL_CONNECT_TIMEOUT_S",
    "Body",
    "OpenAIUpstream",
    "Reply",
    "SSEParser",
    "Source",
    "continued",
    "encode",
    "prepare",
    "set_model",
]
