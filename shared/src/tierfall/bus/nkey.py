"""Nkeys: who a service is towards NATS. The server knows the public key, the service signs with its seed.

An nkey is an Ed25519 key in NATS's own base32 notation, with a prefix that says whose it is and a checksum:
``SU...`` is a user's seed, ``U...`` its public key (nats-io/nkeys, README). This is written here because the
``nkeys`` package comes without wheels, and the locks take nothing else.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey

PLAIN_INBOX: Final = "_INBOX"
"""The inbox prefix of a client without a key, and of the ``nats`` command."""
INBOX_KEY_CHARACTERS: Final = 16
"""How much of the public key an inbox prefix holds: 75 bits, and a subject that people can still read."""
REPLIES: Final = "r"
"""The token behind an inbox prefix under which other users may publish; the rest is the server's alone."""
SEED_BYTES: Final = 32

_USER: Final = 20 << 3
_SEED: Final = 18 << 3
_PUBLIC_HEAD: Final = bytes([_USER])
_SEED_HEAD: Final = bytes([_SEED | _USER >> 5, (_USER & 31) << 3])
_BLOCK: Final = re.compile(r"-{3,} ?BEGIN ([A-Z ]+?) ?-{3,}\s+(\S+)\s+-{3,} ?END")
"""One block of a creds file, which holds ``NATS USER JWT`` and ``USER NKEY SEED``."""


def new_seed() -> str:
    """A new user's seed."""
    return _written(_SEED_HEAD + os.urandom(SEED_BYTES))


def public_key(seed: str) -> str:
    """The public key of a user's seed, as it stands in the server's config.

    Raises:
        ValueError: Not the seed of a user, or mistyped; the message does not show it.
    """
    return _written(_PUBLIC_HEAD + _signing_key(seed).verify_key.encode())


def sign(seed: str, nonce: str) -> bytes:
    """The signature that a server asks for, in base64.

    Raises:
        ValueError: As :func:`public_key`.
    """
    return base64.b64encode(_signing_key(seed).sign(nonce.encode()).signature)


def read_seed(path: str | Path) -> str:
    """The seed in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no seed; the message names the file.
    """
    seed = Path(path).read_bytes().decode("ascii", "replace").strip()
    try:
        public_key(seed)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return seed


def read_creds(path: str | Path) -> tuple[str, str]:
    """The JWT and the seed in a creds file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not one; the message names the file.
    """
    blocks = dict(_BLOCK.findall(Path(path).read_bytes().decode("ascii", "replace")))
    try:
        jwt, seed = blocks["NATS USER JWT"], blocks["USER NKEY SEED"]
        public_key(seed)
    except (KeyError, ValueError):
        raise ValueError(f"{path} is not a creds file: a NATS USER JWT and a USER NKEY SEED") from None
    return jwt, seed


def inbox_prefix(public: str) -> str:
    """Where the owner of this key gets its replies, and nobody else.

    It follows from the key, so services that read the same config file have inboxes of their own.
    """
    return f"{PLAIN_INBOX}_{public[:INBOX_KEY_CHARACTERS]}"


def _signing_key(seed: str) -> SigningKey:
    try:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except ValueError:
        raw = b""
    head, key = raw[: len(_SEED_HEAD)], raw[len(_SEED_HEAD) : -2]
    if head != _SEED_HEAD or len(key) != SEED_BYTES or _sum(raw[:-2]) != raw[-2:]:
        raise ValueError("is not the seed of a NATS user: one line that begins with SU")
    return SigningKey(key)


def _written(raw: bytes) -> str:
    return base64.b32encode(raw + _sum(raw)).decode().rstrip("=")


def _sum(raw: bytes) -> bytes:
    return binascii.crc_hqx(raw, 0).to_bytes(2, "little")
