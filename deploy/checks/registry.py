"""Asks an image registry for a tag's digest, over the registry HTTP API (OCI distribution specification)."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

DOCKER_HUB: Final = "https://registry-1.docker.io"
TIMEOUT_S: Final = 30.0
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
"""The size up to which registries have to accept manifests."""
_MANIFESTS: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
"""Indexes first: their digest holds for all platforms."""
_UNAUTHORIZED: Final = 401
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')


class RegistryError(Exception):
    """The registry has no such tag, or gives no answer that can be trusted; the text names the image."""


class Registry:
    """One registry.

    Args:
        url: Its address without a path, for example a mirror's; Docker Hub by default.
    """

    def __init__(self, url: str = DOCKER_HUB) -> None:
        self._url = url.rstrip("/")

    def digest(self, repository: str, tag: str) -> str:
        """The digest of what the tag names now: ``sha256:`` and 64 hex digits; blocks.

        It is computed from the manifest's bytes, and held against what the registry says it is.

        Raises:
            RegistryError: There is no such tag, or no answer.
        """
        image = f"{repository}:{tag}"
        url = f"{self._url}/v2/{repository}/manifests/{tag}"
        try:
            manifest, said = self._manifest(url)
        except urllib.error.HTTPError as error:
            error.close()
            raise RegistryError(f"{image}: {self._url} answers {error.code}: check the tag") from None
        except (OSError, ValueError, KeyError) as error:
            reason = getattr(error, "reason", error)
            raise RegistryError(f"{image}: {self._url} gives no manifest: {reason}") from error
        if len(manifest) > MAX_MANIFEST_BYTES:
            raise RegistryError(f"{image}: its manifest is larger than {MAX_MANIFEST_BYTES} bytes")
        found = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        if said not in {"", found}:
            raise RegistryError(f"{image}: the registry calls it {said}, but its manifest is {found}")
        return found

    def _manifest(self, url: str) -> tuple[bytes, str]:
        headers = {"Accept": ", ".join(_MANIFESTS)}
        try:
            return _get(url, headers)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != _UNAUTHORIZED:
                raise
            token = self._token(error.headers.get("WWW-Authenticate", ""))
        return _get(url, {**headers, "Authorization": f"Bearer {token}"})

    def _token(self, challenge: str) -> str:
        """An anonymous token, from where the registry's challenge says that there are some."""
        fields = dict(_CHALLENGE.findall(challenge))
        realm = fields.pop("realm")
        if urlsplit(realm).scheme != urlsplit(self._url).scheme:
            raise ValueError(f"it sends for a token to {realm}")
        body, _ = _get(f"{realm}?{urlencode(fields)}", {})
        answer: dict[str, Any] = json.loads(body)
        return str(answer.get("token") or answer["access_token"])


def _get(url: str, headers: dict[str, str]) -> tuple[bytes, str]:
    """The body, and the digest that the registry names."""
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the operator's own registry
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - likewise
        return response.read(MAX_MANIFEST_BYTES + 1), response.headers.get("Docker-Content-Digest", "")
