"""How far an answer of generated text has come: what a stream and a whole answer have to know alike."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

from tierfall.chat.weight import tokens

MOST_REASONS: Final = 128
"""Reasons that are told of one answer: a batch of prompts has thousands of choices."""
REASON_CHARS: Final = 64
"""Of each; together they fit the smallest message."""

_encoder: Final = msgspec.json.Encoder()


class Generated:
    """One answer as it is generated; the base of what relays its chunks and of what collects them.

    Args:
        answer_id: The ``id`` that what leaves has.
        created: Unix seconds, likewise.
        model: The configured name of the model that answers, likewise.
        choices: How many the client asked for (``n``).
        begun: Whether the client has the beginning of the (one) choice already, role included.

    Attributes:
        started: Whether real output, or the end of a choice, has been seen.
        complete: Whether every choice asked for has its ``finish_reason``: the only sign of a whole answer.
        outputs: How many chunks carried real output.
        size: Bytes of what was generated, in UTF-8.
        usage: The last usage object that the backend sent, as JSON; ``None`` while there was none.
    """

    __slots__ = ("_asked", "_finished", "_seen", "_stamp", "complete", "outputs", "size", "started", "usage")

    object_name: ClassVar[str]
    """``object`` of what leaves."""

    def __init__(
        self, answer_id: str, created: int, model: str, choices: int = 1, *, begun: bool = False
    ) -> None:
        self._stamp: dict[str, Any] = {
            "id": answer_id,
            "object": self.object_name,
            "created": created,
            "model": model,
        }
        self._asked = choices
        self._seen: set[int] = {0} if begun else set()
        self._finished: dict[int, str] = {}
        self.started = False
        self.complete = False
        self.outputs = 0
        self.size = 0
        self.usage: msgspec.Raw | None = None

    @property
    def missing(self) -> int:
        """How many of the choices asked for never began."""
        return max(0, self._asked - len(self._seen))

    @property
    def tokens(self) -> int:
        """At least how many have been generated, as far as is seen here."""
        return tokens(self.outputs, self.size)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The reasons in the order of the choices; cut, as a backend may say anything."""
        first = sorted(self._finished)[:MOST_REASONS]
        return tuple(self._finished[index][:REASON_CHARS] for index in first)

    def estimate_usage(self, prompt_tokens: int) -> None:
        """Makes the usage that the backend did not send, and says so in it: ``"estimated": true``.

        The answer is counted from below.
        """
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": prompt_tokens + self.tokens,
            "estimated": True,
        }
        self.usage = msgspec.Raw(_encoder.encode(usage))

    def _settle(self, index: int, finish_reason: str | None) -> None:
        """A choice begins or ends, which is what can make the answer complete, or incomplete again."""
        self._seen.add(index)
        if finish_reason:
            self.started = True
            self._finished.setdefault(index, finish_reason)
        self.complete = 0 < len(self._finished) >= max(self._asked, len(self._seen))
