"""One answer's chunks on their way to the client: judged, mended and stamped.

Backends differ in small ways that SDKs stumble over; the rules are OpenAI's streaming format as its official
SDKs read it. What needs no change is passed on byte for byte (as ``msgspec.Raw``).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tierfall.errors import StreamBroken


class Delta(msgspec.Struct):
    """The parts of a delta that tell output from ceremony. Types are the backend's; only truth matters."""

    role: Any = None
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None

    def has_output(self) -> bool:
        """Whether this is real output: a role alone or an empty string is not."""
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.refusal
            or self.function_call
            or self.audio
        )


class Choice(msgspec.Struct):
    """One choice of a chunk, as far as it is judged."""

    index: int = 0
    delta: Delta | None = None
    finish_reason: str | None = None


class _Judged(msgspec.Struct):
    choices: list[Choice] | None = None


_judged: Final = msgspec.json.Decoder(_Judged)
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_choices: Final = msgspec.json.Decoder(list[dict[str, Any]])
_encoder: Final = msgspec.json.Encoder()


def _raw(value: str | int) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


class ChunkStream:
    """The chunks of one answer; feed each as it comes.

    Args:
        answer_id: The ``id`` that every chunk gets.
        created: Unix seconds, likewise.
        model: The configured name of the model that answers, likewise.

    Attributes:
        started: Whether real output, or the end of a choice, has been seen.
        outputs: How many chunks carried real output.
        usage: The last usage object that the backend sent, as JSON; ``None`` while there was none.
    """

    __slots__ = ("_finished", "_seen", "_stamp", "outputs", "started", "usage")

    def __init__(self, answer_id: str, created: int, model: str) -> None:
        self._stamp = {
            "id": _raw(answer_id),
            "object": _raw("chat.completion.chunk"),
            "created": _raw(created),
            "model": _raw(model),
        }
        self._seen: set[int] = set()
        self._finished: dict[int, str] = {}
        self.started = False
        self.outputs = 0
        self.usage: msgspec.Raw | None = None

    @property
    def complete(self) -> bool:
        """Whether every choice that began has its ``finish_reason``: the only sign of a whole answer."""
        return bool(self._seen) and len(self._finished) == len(self._seen)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The reasons in the order of the choices."""
        return tuple(self._finished[index] for index in sorted(self._finished))

    def feed(self, payload: bytes) -> bytes:
        """The chunk as the client gets it, as JSON text; empty when nothing of it is for the client.

        Raises:
            StreamBroken: The bytes are no chunk.
        """
        try:
            choices = _judged.decode(payload).choices
            members = _members.decode(payload)
        except (msgspec.DecodeError, RecursionError):
            raise StreamBroken("the backend sent something that is not a chat completion chunk") from None
        usage = members.pop("usage", None)
        if usage is not None and bytes(usage) != b"null":
            self.usage = usage
        if not choices:
            return b""
        if any(self._breaks_a_rule(choice) for choice in choices):
            members["choices"] = self._mend(members["choices"])
        for choice in choices:
            self._note(choice)
        members.update(self._stamp)
        return _encoder.encode(members)

    def usage_chunk(self) -> bytes:
        """The extra chunk of ``stream_options.include_usage``, as JSON text."""
        return _encoder.encode({**self._stamp, "choices": (), "usage": self.usage})

    def _breaks_a_rule(self, choice: Choice) -> bool:
        first = choice.index not in self._seen
        return (
            choice.delta is None
            or first != (choice.delta.role is not None)
            or (choice.finish_reason is not None and choice.index in self._finished)
        )

    def _note(self, choice: Choice) -> None:
        self._seen.add(choice.index)
        if choice.delta is not None and choice.delta.has_output():
            self.started = True
            self.outputs += 1
        if choice.finish_reason is not None:
            self.started = True
            self._finished.setdefault(choice.index, choice.finish_reason)

    def _mend(self, raw: msgspec.Raw) -> msgspec.Raw:
        """A delta always, the role first and once per choice, ``finish_reason`` once."""
        choices = _choices.decode(raw)
        for choice in choices:
            index = choice.get("index", 0)
            delta = choice.get("delta") or {}
            role = delta.pop("role", None) or "assistant"
            choice["delta"] = delta if index in self._seen else {"role": role, **delta}
            if index in self._finished:
                choice["finish_reason"] = None
        return msgspec.Raw(_encoder.encode(choices))
