"""The key itself: how it is made, and what is kept in its stead.

A key that we make holds 256 random bits, so its plain SHA-256 is as good as the slow, salted hashes that
passwords need: there is nothing to guess, and no two keys are alike. For the same reason a digest may be
looked up in a table. That takes a time that depends on the digest's bits, but nobody can choose a key by the
bits of its digest, so what a clock could tell leads no nearer to a key.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

PREFIX: Final = "sk-tf-"
"""Tells people and secret scanners what it is; ``sk-`` is what some clients insist on."""
SECRET_BYTES: Final = 32
HINT_CHARACTERS: Final = 4
"""Of the secret part: enough to tell keys apart, and 232 bits are left."""


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def digest(key: str) -> bytes:
    """What is kept of a key, and looked up when somebody shows one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def hint(key: str) -> str:
    """Its beginning, for people who have several and wonder which this is."""
    return f"{key[: len(PREFIX) + HINT_CHARACTERS]}…"
