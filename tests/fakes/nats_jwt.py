"""A NATS operator with one account and one user, as ``nsc`` would make them: decentralised authentication."""

from __future__ import annotations

import base64
import json
import time
from typing import Any, Final

from nacl.signing import SigningKey

from tierfall.bus import nkey

OPERATOR: Final = 14 << 3
ACCOUNT: Final = 0
"""Prefix bytes of public keys (nats-io/nkeys, README)."""


def operator_and_creds() -> tuple[str, str]:
    """The server's config, which keeps the account in memory, and the text of the user's creds file."""
    operator, account, seed = SigningKey.generate(), SigningKey.generate(), nkey.new_seed()
    account_id = _public(ACCOUNT, account)
    operator_jwt = _jwt("operator", _public(OPERATOR, operator), operator, OPERATOR, {})
    limits = {
        "subs": -1,
        "data": -1,
        "payload": -1,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
        "conn": -1,
        "leaf": -1,
    }
    account_jwt = _jwt("account", account_id, operator, OPERATOR, {"limits": limits})
    user = {"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
    user_jwt = _jwt("user", nkey.public_key(seed), account, ACCOUNT, user)
    server = (
        f"operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {account_id}: {account_jwt} }}"
    )
    return server, (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _public(kind: int, key: SigningKey) -> str:
    return nkey._written(bytes([kind]) + key.verify_key.encode())


def _jwt(kind: str, subject: str, issuer: SigningKey, issuer_kind: int, claims: dict[str, Any]) -> str:
    body = {
        "jti": "made-for-a-test",
        "iat": int(time.time()),
        "iss": _public(issuer_kind, issuer),
        "sub": subject,
        "name": kind,
        "nats": {**claims, "type": kind, "version": 2},
    }
    text = f"{_base64url({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_base64url(body)}"
    return f"{text}.{_stripped(issuer.sign(text.encode()).signature)}"


def _base64url(value: dict[str, Any]) -> str:
    return _stripped(json.dumps(value, separators=(",", ":")).encode())


def _stripped(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
