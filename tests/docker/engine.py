"""An engine with OpenAI's API for the containers' end-to-end test; the standard library alone.

It runs inside an image of ours, in which no test code is installed.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8000
WORDS = ("Hello", " from", " a", " container.")


class Engine(BaseHTTPRequestHandler):
    """Answers every chat with the same words, streamed."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Health and the list of models."""
        body = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()
        self._head("application/json", len(body))
        self.wfile.write(body)

    def do_POST(self) -> None:
        """A chat; a worker always asks for a stream."""
        self.rfile.read(int(self.headers["content-length"]))
        events = [self._event({"role": "assistant", "content": ""})]
        events += [self._event({"content": word}) for word in WORDS]
        body = b"".join([*events, self._event({}, "stop"), b"data: [DONE]\n\n"])
        self._head("text/event-stream", len(body))
        self.wfile.write(body)

    def _event(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "tiny",
            "choices": [choice],
        }
        return b"data: %s\n\n" % json.dumps(chunk).encode()

    def _head(self, content_type: str, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing: the containers' logs are shown when a test fails."""


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", PORT), Engine).serve_forever()
