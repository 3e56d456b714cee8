"""How single values are written in the file: ``3s``, ``32MiB``, ``wait(5s)``, ``${NAME}``.

Every reader raises :class:`ValueError` with what is there and what would be right; those for secrets never
say what is there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tierfall.config.schema import Duration, Money, Rate, Secret, Size, Spend, Wait

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNIT_BYTES: Final = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
# At most nine digits: enough for thirty years in seconds, and never an infinity.
_NUMBER: Final = r"\d{1,9}(?:\.\d{1,9})?"
_DURATION: Final = re.compile(rf"({_NUMBER})(ms|s|m|h)", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?(B|[KMG]i?B|)", re.ASCII)
_WAIT: Final = re.compile(r"wait\((.*)\)")
_BARE_NUMBER: Final = re.compile(_NUMBER, re.ASCII)
_INTEGER: Final = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
_LOOSE_INTEGER: Final = re.compile(r"[+-]?[\d_,]{1,18}", re.ASCII)
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_WINDOWS: Final = {"m": "minute", "d": "day", "month": "month", "total": "total"}
"""How a window is written; only what nobody reads two ways."""
_RATE: Final = re.compile(r"([^/]*)/(.*)", re.DOTALL)
_MONEY: Final = re.compile(r"\d{1,9}(?:\.\d{1,6})?", re.ASCII)
MILLIONTHS: Final = 1_000_000
_TRUTH: Final = {"true": True, "True": True, "false": False, "False": False}
_SHOWN_CHARACTERS: Final = 60


def shown(text: str) -> str:
    """The text in quotes, cut when it is long."""
    return f'"{text}"' if len(text) <= _SHOWN_CHARACTERS else f'"{text[:_SHOWN_CHARACTERS]}..."'


def one_of(allowed: tuple[str, ...], text: str) -> str:
    """Reads one of a few words."""
    if text in allowed:
        return text
    raise ValueError(f"is {shown(text)}, must be {' or '.join(allowed)}")


def duration(text: str) -> Duration:
    """Reads ``500ms``, ``3s``, ``10m`` or ``1h`` as seconds."""
    if found := _DURATION.fullmatch(text):
        return Duration(float(found[1]) * _UNIT_S[found[2]])
    if _BARE_NUMBER.fullmatch(text):
        raise ValueError(f"{text} has no unit; write {text}s for seconds (units: ms, s, m, h)")
    raise ValueError(f"is {shown(text)}, must be a duration such as 500ms, 3s, 10m or 1h")


def show_duration(seconds: float) -> str:
    """Seconds as :func:`duration` reads them, in the largest unit that gives a whole number."""
    for unit, scale in (("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= scale and seconds % scale == 0:
            return f"{int(seconds // scale)}{unit}"
    return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"


def size(text: str) -> Size:
    """Reads ``32MiB``, ``512KiB``, ``100MB`` or a plain number of bytes."""
    if not (found := _SIZE.fullmatch(text)):
        raise ValueError(
            f"is {shown(text)}, must be a size such as 512KiB, 32MiB, 100MB, or a number of bytes"
        )
    size_bytes = float(found[1]) * _UNIT_BYTES[found[2]]
    if not size_bytes.is_integer():
        raise ValueError(f"is {shown(text)}, which is not a whole number of bytes")
    return Size(size_bytes)


def wait(text: str) -> Wait:
    """Reads ``wait(5s)`` or ``escalate``."""
    if text == "escalate":
        return Wait()
    if not (found := _WAIT.fullmatch(text)):
        raise ValueError(f"is {shown(text)}, must be escalate, or wait(5s) with how long to stand in line")
    return Wait(duration(found[1].strip()))


def money(text: str) -> Money:
    """Reads an amount of money: ``0.15``, ``20``. At most six digits after the point."""
    if not _MONEY.fullmatch(text):
        raise ValueError(f"is {shown(text)}, must be an amount such as 0.15 or 20, without a currency")
    return Money(text)


def rate(text: str) -> Rate:
    """Reads ``30/m``, ``6000/d``, ``100000/month`` or ``1000000/total``."""
    number, window = _split_rate(text, "30/m, 6000/d, 100000/month or 1000000/total")
    amount = integer(number)
    if amount < 1:
        raise ValueError(f"is {shown(text)}, must be at least 1")
    return Rate(amount, window)


def spend(text: str) -> Spend:
    """Reads ``0.5/d``, ``20/month`` or ``100/total``, of the currency that all prices are in."""
    number, window = _split_rate(text, "0.5/d, 20/month or 100/total")
    amount = round(money(number) * MILLIONTHS)
    if amount < 1:
        raise ValueError(f"is {shown(text)}, must be more than nothing")
    return Spend(amount, window)


def show_rate(rate: Rate) -> str:
    """As :func:`rate` or :func:`spend` reads it."""
    window = next(short for short, name in _WINDOWS.items() if name == rate.window)
    amount = (
        f"{rate.amount / MILLIONTHS:.6f}".rstrip("0").rstrip(".") if isinstance(rate, Spend) else rate.amount
    )
    return f"{amount}/{window}"


def _split_rate(text: str, examples: str) -> tuple[str, str]:
    found = _RATE.fullmatch(text)
    if found is None or found[2] not in _WINDOWS:
        raise ValueError(
            f"is {shown(text)}, must be an amount and m (a minute), d (a day), month or total: {examples}"
        )
    return found[1], _WINDOWS[found[2]]


def integer(text: str) -> int:
    """Reads a whole number without leading zeros, which some would take for octal."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _LOOSE_INTEGER.fullmatch(text) and (digits := re.sub(r"[^\d-]", "", text)).lstrip("-"):
        raise ValueError(f"is {shown(text)}, must be a whole number; write {int(digits)}")
    raise ValueError(f"is {shown(text)}, must be a whole number")


def truth(text: str) -> bool:
    """Reads ``true`` or ``false``; YAML 1.1's ``yes``, ``no``, ``on`` and ``off`` are names elsewhere."""
    if (value := _TRUTH.get(text)) is None:
        raise ValueError(f"is {shown(text)}, must be true or false")
    return value


def text_value(text: str) -> str:
    """Takes a text as it is; ``${NAME}`` in it would stay there unread, so it is refused."""
    if "${" in text:
        raise ValueError(
            f"is {shown(text)}; ${{...}} is read only where a secret stands (api_key, api_keys, token), "
            "write the value itself"
        )
    return text


def secret(text: str, environ: Mapping[str, str]) -> Secret:
    """Reads a secret, or the environment variable that ``${NAME}`` names; one that is not set is empty.

    White space around a variable's value is dropped: a trailing newline is the commonest fault of a mounted
    secret, and no key holds one.
    """
    if found := _VARIABLE.fullmatch(text):
        return Secret(environ.get(found[1], "").strip(), found[1])
    if "${" in text:
        raise ValueError(
            "must be ${NAME} and nothing else, or the secret itself; a name is letters, digits and _"
        )
    return Secret(text)
