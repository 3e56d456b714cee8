"""What a client has read of a streamed answer: what a broken stream is resumed from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.protocol.envelope import Resume

if TYPE_CHECKING:
    from tierfall_ingress.ask import Ask

KEPT_BYTES: Final = 4 * 1024 * 1024
"""An answer that is longer than this, as events, is not resumed."""
TEXT_LIMIT: Final = 128 * 1024
"""Characters of text that travel with a resumed request; they share a message with its body."""
_EVENT: Final = b"data: "
_event: Final = msgspec.json.Decoder(dict[str, Any])
_body: Final = msgspec.json.Decoder(dict[str, Any])

_UNREADABLE: Final = (msgspec.DecodeError, RecursionError)
"""JSON may pass through unread that no parser can hold: a number above all floats, deep nesting."""
_ONCE: Final = ("tool_calls", "function_call", "audio", "refusal")
"""Parts of an answer that cannot be continued in the middle."""


class Transcript:
    """The events sent to one client, kept as bytes and read only when a stream breaks."""

    def __init__(self) -> None:
        self._sent: list[bytes] = []
        self._size = 0

    def add(self, events: bytes) -> None:
        """Whole events, as they were sent."""
        self._size += len(events)
        if self._size <= KEPT_BYTES:
            self._sent.append(events)

    @property
    def events(self) -> int:
        """How many events were sent, of those that are kept."""
        return sum(part.count(_EVENT) for part in self._sent)

    def finished(self, choices: int) -> bool:
        """Whether the client has the ``finish_reason`` of all its choices: nothing is missing but usage."""
        try:
            found = self._choices()
        except _UNREADABLE:
            return False
        return len({each.get("index", 0) for each in found if each.get("finish_reason")}) >= choices

    def resume(self) -> Resume | None:
        """The point to go on from; None when this answer cannot be continued by another."""
        if self._size > KEPT_BYTES:
            return None
        content, reasoning, outputs = [], [], 0
        try:
            choices = self._choices()
        except _UNREADABLE:
            return None
        for choice in choices:
            delta = choice.get("delta") or {}
            if choice.get("index", 0) or choice.get("logprobs") or any(delta.get(name) for name in _ONCE):
                return None
            text = delta.get("content") or choice.get("text") or ""
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            if not isinstance(text, str) or not isinstance(thought, str):
                return None
            content.append(text)
            reasoning.append(thought)
            outputs += bool(text or thought)
        told = Resume(content="".join(content), reasoning="".join(reasoning), outputs=outputs)
        return told if len(told.content) + len(told.reasoning) <= TEXT_LIMIT else None

    def _choices(self) -> list[dict[str, Any]]:
        events = b"".join(self._sent).split(b"\n\n")
        chunks = [_event.decode(event[len(_EVENT) :]) for event in events if event.startswith(_EVENT)]
        return [choice for chunk in chunks for choice in chunk.get("choices") or ()]


def may_resume(ask: Ask) -> bool:
    """Whether a request's answer is plain text, which alone can be gone on with.

    Never several choices, log probabilities, or an answer bound to a schema or grammar: its automaton would
    begin anew in the middle.
    """
    try:
        asked = _body.decode(ask.body)
    except _UNREADABLE:
        return False
    form, logprobs = asked.get("response_format"), asked.get("logprobs")
    bound = isinstance(form, dict) and form.get("type") != "text"
    guided = any(name in asked for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar"))
    return not (
        ask.choices != 1
        or (logprobs is not None and logprobs is not False)  # a completion's 0 asks for some
        or (asked.get("best_of") or 1) != 1
        or bound
        or guided
        or asked.get("structured_outputs")
        or asked.get("grammar")
    )
