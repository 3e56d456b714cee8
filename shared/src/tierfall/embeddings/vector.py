"""One vector in the two forms that OpenAI's API has: a list of numbers, or base64.

Base64 holds the numbers as IEEE 754 binary32 in little-endian order, as the official SDKs read it.
"""

from __future__ import annotations

import array
import base64
import sys
from typing import Final

import msgspec

from tierfall.errors import BackendFault

_FORMS: Final = {ord('"'): True, ord("["): False}
"""Whether JSON text that begins so is the string form."""
_BIG_ENDIAN: Final = sys.byteorder == "big"
_floats: Final = msgspec.json.Decoder(list[float])
_text: Final = msgspec.json.Decoder(str)
_encoder: Final = msgspec.json.Encoder()


def is_base64(vector: msgspec.Raw) -> bool | None:
    """Whether this JSON text is the string form; None when it is neither form."""
    return _FORMS.get(memoryview(vector)[0])


def converted(vector: msgspec.Raw, *, to_base64: bool) -> msgspec.Raw:
    """The vector in the form that is asked for; one that has it already keeps its bytes.

    Raises:
        BackendFault: It is a vector in neither form.
    """
    form = is_base64(vector)
    if form == to_base64:
        return vector
    try:
        if form is None:
            raise ValueError  # noqa: TRY301 - it becomes the same fault
        return msgspec.Raw(_encoder.encode(_packed(vector) if to_base64 else _unpacked(vector)))
    except (msgspec.DecodeError, ValueError, OverflowError):
        raise BackendFault("the backend sent an embedding that is no list of numbers") from None


def _packed(vector: msgspec.Raw) -> str:
    numbers = array.array("f", _floats.decode(vector))
    if _BIG_ENDIAN:
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _unpacked(vector: msgspec.Raw) -> list[float]:
    numbers = array.array("f", base64.b64decode(_text.decode(vector), validate=True))
    if _BIG_ENDIAN:
        numbers.byteswap()
    return numbers.tolist()
