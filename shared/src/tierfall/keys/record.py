"""What is stored of a client key, as JSON under its name in the bucket ``tierfall_keys``; never the key."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tierfall.config import Limits, Rate, Spend
from tierfall.config.scalars import rate, show_rate, spend
from tierfall.store import CLIENTS


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key. A field that a reader does not know may restrict it, so such a record is not let in."""

    id: str
    """Random: what the key uses is counted under it, so a later key of the same name begins with nothing."""
    digest: str
    """SHA-256 of the key, in hexadecimal."""
    hint: str
    """The key's beginning."""
    created_at: int
    """Unix seconds."""
    models: tuple[str, ...] | None = None
    """The models that it may use; all when left out."""
    limits: Limits = Limits()

    @property
    def scope(self) -> str:
        """Its account in the ledger."""
        return f"{CLIENTS}.{self.id}"


def config_scope(name: str) -> str:
    """The account in the ledger of a key that stands in the config."""
    return f"{CLIENTS}.config.{name}"


def pack_record(record: KeyRecord) -> bytes:
    """The document."""
    return _encoder.encode(record)


def unpack_record(document: bytes) -> KeyRecord:
    """The reverse of :func:`pack_record`.

    Raises:
        ValueError: It is none, or one of a newer version.
    """
    try:
        return _decoder.decode(document)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"not the record of a key: {error}") from None


def _encode(value: object) -> str:
    if isinstance(value, Rate):
        return show_rate(value)
    raise NotImplementedError


def _decode(kind: type, value: Any) -> Rate:
    return spend(value) if kind is Spend else rate(value)


_encoder: Final = msgspec.json.Encoder(enc_hook=_encode)
_decoder: Final = msgspec.json.Decoder(KeyRecord, dec_hook=_decode)
