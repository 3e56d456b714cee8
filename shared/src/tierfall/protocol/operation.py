"""What a client asks for: which of OpenAI's endpoints."""

from __future__ import annotations

import enum


class Operation(enum.StrEnum):
    """One endpoint; its value is its name between processes and in logs."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    @property
    def path(self) -> str:
        """Where OpenAI has it, behind the base URL's ``/v1``; the same path leads to it here."""
        return _PATHS[self]

    def answer_id(self, request_id: str) -> str:
        """The ``id`` of its answer, with the prefix that OpenAI gives it; embeddings have none."""
        return f"{_ID_PREFIXES[self]}{request_id}"


_PATHS = {
    Operation.CHAT: "/chat/completions",
    Operation.COMPLETIONS: "/completions",
    Operation.EMBEDDINGS: "/embeddings",
}
_ID_PREFIXES = {Operation.CHAT: "chatcmpl-", Operation.COMPLETIONS: "cmpl-", Operation.EMBEDDINGS: ""}
