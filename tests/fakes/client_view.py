"""What a client has of one chat answer, read from the raw bytes and held to the wire contract."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

DONE = "[DONE]"
ERROR_KEYS = {"message", "type", "param", "code"}


class ClientView:
    """One answer. Constructing it fails if it is neither a whole answer nor an honest error.

    Attributes:
        whole: Whether it is a whole answer; otherwise ``error`` is set.
        text: The text of the first choice, as far as the client has it.
        models: The names in ``model``, in the order of their first appearance.
        error: The error object.
        chunks: The decoded chunks of a streamed answer.
        message: The message of an answer that was not streamed.
    """

    def __init__(self, response: httpx.Response, *, stream: bool, choices: int = 1) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.attempts: str = response.headers["x-tierfall-attempts"]
        self.error: dict[str, Any] = {}
        self.text = ""
        self.models: list[str] = []
        self.usage: list[Any] = []
        self.chunks: list[Any] = []
        self.message: dict[str, Any] = {}
        self.finish = ""
        self._choices = choices
        if self.status == 200 and stream:
            self._read_events(response.content)
        else:
            self._read_object(response.json())
        self.whole = not self.error

    def _read_object(self, body: Any) -> None:
        if self.status != 200:
            self._read_error(body)
            return
        assert body["object"] == "chat.completion"
        assert len(body["choices"]) == self._choices
        assert all(choice["finish_reason"] for choice in body["choices"])
        self.finish = body["choices"][0]["finish_reason"]
        self.message = body["choices"][0]["message"]
        self.text = self.message["content"] or ""
        self.models = [body["model"]]
        self.usage = [body["usage"]] if "usage" in body else []

    def _read_error(self, body: Any) -> None:
        self.error = body["error"]
        assert set(self.error) == ERROR_KEYS

    def _read_events(self, raw: bytes) -> None:
        events = raw.decode().split("\n\n")
        assert events.pop() == "", f"the body ends inside an event: {raw[-80:]!r}"
        assert all(event.startswith("data: ") and "\n" not in event for event in events), raw
        payloads = [event.removeprefix("data: ") for event in events]
        if payloads[-1] == DONE:
            payloads.pop()
        else:
            self._read_error(json.loads(payloads.pop()))
        assert DONE not in payloads
        self.chunks = [json.loads(payload) for payload in payloads]
        assert not any("error" in chunk for chunk in self.chunks)
        self._read_chunks()

    def _read_chunks(self) -> None:
        assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in self.chunks}) == 1
        self.models = list(dict.fromkeys(chunk["model"] for chunk in self.chunks))
        finishes = [self._read_choice(index) for index in range(self._choices)]
        if self.error:
            assert not all(finishes), "a finished answer ends in an error frame"
        else:
            assert all(finishes), "a truncated answer ends in [DONE]"
        self.finish = finishes[0]
        self.usage = [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]
        assert all(chunk["choices"] == [] for chunk in self.chunks if chunk.get("usage"))

    def _read_choice(self, index: int) -> str:
        """The choice's finish reason; empty while it has none."""
        mine = [each for chunk in self.chunks for each in chunk["choices"] if each["index"] == index]
        roles = [("role" in each["delta"]) for each in mine]
        assert roles == [True] * bool(mine) + [False] * (len(mine) - 1), "the role comes first and once"
        reasons = [each["finish_reason"] for each in mine]
        assert not any(reasons[:-1]), "finish_reason comes last and once"
        if index == 0:
            self.text = "".join(each["delta"].get("content") or "" for each in mine)
        return reasons[-1] or "" if reasons else ""
