"""Certificates for tests: a CA of their own, and what it signs."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """A CA that writes into a folder.

    Args:
        folder: Where its files go; each authority needs its own.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA()
        self.file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, expired: bool = False) -> tuple[str, str]:
        """The paths of a new certificate for these names, and of its key."""
        ended = dt.datetime.now(dt.UTC) - dt.timedelta(days=1) if expired else None
        made = self._ca.issue_cert(*names, not_after=ended)
        stem = self._folder / f"{names[0]}{'-expired' if expired else ''}"
        certificate, key = f"{stem}.pem", f"{stem}.key"
        made.private_key_pem.write_to_path(key)
        made.cert_chain_pems[0].write_to_path(certificate)
        return certificate, key

    def server_conf(self, *names: str, more: str = "", expired: bool = False) -> str:
        """The ``tls`` section of a nats-server with a certificate for these names."""
        certificate, key = self.issue(*names, expired=expired)
        return f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{self.file}", {more} }}'
