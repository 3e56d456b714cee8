"""An image registry on loopback that wants a token first, as Docker Hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

TOKEN = "anonymous-token"
INDEX = "application/vnd.oci.image.index.v1+json"


class FakeRegistry:
    """Serves one manifest for each image, made of the image's name.

    Attributes:
        images: Those that it has: ``library/nats:2.15.0-alpine``.
        lies: Whether it names another digest than the manifest's.
        url: Its address, once it is entered.
    """

    def __init__(self, *images: str) -> None:
        self.images = set(images)
        self.lies = False
        self.url = ""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.answer(self)

            def log_message(self, *_: object) -> None:
                """Nothing: a failed test shows what was asked by its outcome."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @staticmethod
    def manifest(image: str) -> bytes:
        """The bytes that an image's digest is of."""
        return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image]}).encode()

    @classmethod
    def digest(cls, image: str) -> str:
        """The digest of an image's manifest."""
        return f"sha256:{hashlib.sha256(cls.manifest(image)).hexdigest()}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request's answer: a token, a challenge, a manifest, or that there is none."""
        path, _, query = request.path.partition("?")
        if path == "/token":
            wanted = "repository%3A" in query and "service=fake" in query
            _send(request, 200 if wanted else 400, json.dumps({"token": TOKEN}).encode())
            return
        image = path.removeprefix("/v2/").replace("/manifests/", ":")
        if request.headers["Authorization"] != f"Bearer {TOKEN}":
            scope = f"repository:{image.partition(':')[0]}:pull"
            challenge = f'Bearer realm="{self.url}/token",service="fake",scope="{scope}"'
            _send(request, 401, b"{}", {"WWW-Authenticate": challenge})
        elif image not in self.images or INDEX not in request.headers["Accept"]:
            _send(request, 404, b"{}")
        else:
            said = self.digest("another" if self.lies else image)
            _send(request, 200, self.manifest(image), {"Docker-Content-Digest": said, "Content-Type": INDEX})


def _send(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    request.send_response(status)
    for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
