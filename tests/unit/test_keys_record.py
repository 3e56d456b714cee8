"""What is made and kept of a client key."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from tierfall.config import Limits, Rate, Spend
from tierfall.keys import KeyRecord, digest, hint, new_key, pack_record, unpack_record

RECORD = KeyRecord(
    id="0123",
    digest="ab" * 32,
    hint="sk-tf-abcd…",
    created_at=1_700_000_000,
    models=("a", "b/c"),
    limits=Limits(
        requests=(Rate(60, "minute"), Rate(9, "total")),
        budget=(Spend(1_500_000, "month"),),
        timezone="Asia/Tokyo",
    ),
)


def test_keys_are_long_and_never_alike() -> None:
    """Each key is new, looks like one, and can stand in a header."""
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert key.startswith("sk-tf-")
        assert len(key) == 6 + 43
        assert key.isascii()
        assert not set(key) & set(' "\\,;=')


def test_the_hint_tells_little() -> None:
    """People see the beginning alone; the digest is plain SHA-256 of the whole."""
    key = new_key()
    assert hint(key) == key[:10] + "…"
    assert digest(key) == hashlib.sha256(key.encode()).digest()
    assert digest("sk-\udc80") != digest("sk-?"), "what a header may hold can be looked up"


def test_a_record_comes_back() -> None:
    """Models and limits are kept as the config writes them."""
    document = pack_record(RECORD)
    assert unpack_record(document) == RECORD
    assert msgspec.json.decode(document)["limits"] == {
        "requests": ["60/m", "9/total"],
        "budget": ["1.5/month"],
        "timezone": "Asia/Tokyo",
    }
    bare = KeyRecord(id="1", digest="00", hint="", created_at=1)
    assert unpack_record(pack_record(bare)) == bare
    assert (bare.models, bool(bare.limits), bare.scope) == (None, False, "client.1")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[" * 5000,
        b"\xff",
        pack_record(RECORD).replace(b"60/m", b"60/s"),
        pack_record(RECORD).replace(b'"id"', b'"expires_at":1,"id"'),
        pack_record(RECORD).replace(b'"budget"', b'"bandwidth"'),
    ],
    ids=["empty", "null", "deep", "no-utf8", "unknown-window", "unknown-field", "unknown-limit"],
)
def test_what_cannot_be_read_whole_is_not_read(document: bytes) -> None:
    """A restriction that this version does not know is no reason to let a key in without it."""
    with pytest.raises(ValueError, match="not the record of a key"):
        unpack_record(document)
