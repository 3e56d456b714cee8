"""Ollama's native answer, line by line, as OpenAI's chunks.

Thinking becomes ``reasoning_content``: DeepSeek's name, which LiteLLM gives to every backend's reasoning and
which clients therefore already read. Ollama's own OpenAI endpoint says ``reasoning``; sending both would show
the text twice in clients that know both. Source: ``ChatResponse`` in Ollama's ``api/types.go``, as of 0.17.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import StreamBroken, UnsupportedByTier

if TYPE_CHECKING:
    from collections.abc import Iterator

CALL_ID_BYTES: Final = 12
# Ollama's reasons that are OpenAI's too; every other one ("load") is a normal stop.
LENGTH: Final = "length"
ERROR_TEXT_LIMIT: Final = 500


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""


class _Said(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Token(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Position(_Token):
    top_logprobs: list[_Token] = []


class Line(msgspec.Struct):
    """One line of an answer; a chat's has a ``message``, a completion's a ``response``."""

    message: _Said = msgspec.field(default_factory=_Said)
    response: str | None = None
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: int = 0
    eval_count: int = 0
    logprobs: list[_Position] | None = None
    error: str | None = None


_lines: Final = msgspec.json.Decoder(Line)
_encoder: Final = msgspec.json.Encoder()


class Answer:
    """One answer on its way from Ollama; feed it each line.

    Args:
        logprobs: Whether the request asked for them: an answer without is refused at its first text.

    Attributes:
        done: Whether Ollama has said how the answer ended.
    """

    def __init__(self, *, logprobs: bool = False) -> None:
        self._logprobs_missing = logprobs
        self._calls = 0
        self._begun = False
        self.done = False

    def feed(self, payload: bytes) -> Iterator[bytes]:
        """The chunks that a line makes, as JSON: none for an empty one, up to two for the last.

        Raises:
            StreamBroken: The line is an error, is cut off, or ends the answer without a reason.
            UnsupportedByTier: This version of Ollama has no log probabilities.
        """
        line = decode(payload)
        self._judge_logprobs(line, line.message.content)
        delta = self._delta(line.message)
        if delta or line.logprobs:
            yield self._chunk(delta, line.logprobs)
        if line.done:
            self.done = True
            yield self._chunk({}, None, self._finish_reason(line), usage_of(line))

    def _judge_logprobs(self, line: Line, text: str | None) -> None:
        if line.logprobs:
            self._logprobs_missing = False
        elif self._logprobs_missing and text and not line.done:
            raise UnsupportedByTier("logprobs: Ollama has them since 0.12.11", param="logprobs")

    def _delta(self, said: _Said) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if said.thinking:
            delta["reasoning_content"] = said.thinking
        if said.content:
            delta["content"] = said.content
        if said.tool_calls:
            delta["tool_calls"] = [self._call(call) for call in said.tool_calls]
        return delta

    def _call(self, call: _Call) -> dict[str, Any]:
        index, self._calls = self._calls, self._calls + 1
        return {
            "index": index,
            # Older versions give no id.
            "id": call.id or f"call_{secrets.token_hex(CALL_ID_BYTES)}",
            "type": "function",
            "function": {"name": call.function.name, "arguments": bytes(call.function.arguments).decode()},
        }

    def _finish_reason(self, line: Line) -> str:
        if not line.done_reason:
            # What Ollama says of an answer whose connection to its runner was closed.
            raise StreamBroken("Ollama ended the answer without a reason")
        if line.done_reason == LENGTH:
            return LENGTH
        return "tool_calls" if self._calls else "stop"

    def _chunk(
        self,
        delta: dict[str, Any],
        logprobs: list[_Position] | None,
        finish_reason: str | None = None,
        usage: dict[str, int] | None = None,
    ) -> bytes:
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", **delta}
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        if logprobs:
            choice["logprobs"] = {"content": logprobs, "refusal": None}
        chunk: dict[str, Any] = {"object": "chat.completion.chunk", "choices": (choice,)}
        if usage is not None:
            chunk["usage"] = usage
        return _encoder.encode(chunk)


def decode(payload: bytes) -> Line:
    """One line.

    Raises:
        StreamBroken: It is an error, or cut off.
    """
    try:
        if not payload.isascii():
            payload.decode()  # the parser does not look into a call's arguments
        line = _lines.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise StreamBroken("Ollama's answer was cut off or is no JSON") from None
    if line.error is not None:
        raise StreamBroken(f"Ollama failed: {line.error[:ERROR_TEXT_LIMIT]}")
    return line


def usage_of(line: Line) -> dict[str, int]:
    """OpenAI's usage, from the counts of the last line."""
    total = line.prompt_eval_count + line.eval_count
    return {
        "prompt_tokens": line.prompt_eval_count,
        "completion_tokens": line.eval_count,
        "total_tokens": total,
    }
