"""What an import has to tell: what stayed behind, what behaves differently, what is left to do."""

from __future__ import annotations

import enum
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE_CHARACTERS: Final = 108
SHOWN_PLACES: Final = 6


class Kind(enum.Enum):
    """The lists in which findings are told, in this order."""

    TODO = "To do"
    LOST = "Not carried over"
    CHANGED = "Carried over, but not the same"
    NEEDLESS = "Left out, because nothing here needs it"


class Findings:
    """Collects findings; the same one at several places is told once, with its places."""

    def __init__(self) -> None:
        self._found: dict[tuple[Kind, str, str], list[str]] = {}

    def todo(self, what: str, advice: str, where: str = "") -> None:
        """Something that the operator has to do before or after the first start."""
        self._add(Kind.TODO, what, advice, where)

    def lost(self, what: str, advice: str, where: str = "") -> None:
        """A key or model of the other config that has no counterpart, and what to do instead."""
        self._add(Kind.LOST, what, advice, where)

    def changed(self, what: str, advice: str, where: str = "") -> None:
        """Something that came over and behaves differently."""
        self._add(Kind.CHANGED, what, advice, where)

    def needless(self, what: str, advice: str, where: str = "") -> None:
        """A key whose job needs no setting here."""
        self._add(Kind.NEEDLESS, what, advice, where)

    def lines(self) -> Iterator[str]:
        """All of it as text, by kind; nothing at all when nothing was found."""
        for kind in Kind:
            of_kind = [(key[1], key[2], places) for key, places in self._found.items() if key[0] is kind]
            if not of_kind:
                continue
            yield f"{kind.value}:"
            for what, advice, places in of_kind:
                text = f"{what}{_shown(places)}: {advice}"
                yield from textwrap.wrap(
                    text,
                    LINE_CHARACTERS,
                    initial_indent="- ",
                    subsequent_indent="  ",
                    break_on_hyphens=False,
                    break_long_words=False,
                )
            yield ""

    def _add(self, kind: Kind, what: str, advice: str, where: str) -> None:
        places = self._found.setdefault((kind, _one_line(what), _one_line(advice)), [])
        if where and where not in places:
            places.append(_one_line(where))


def _one_line(text: str) -> str:
    """Names come from a file: what is not printable would break out of a comment."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _shown(places: list[str]) -> str:
    if not places:
        return ""
    more = len(places) - SHOWN_PLACES
    return f" ({', '.join(places[:SHOWN_PLACES])}{f' and {more} more' if more > 0 else ''})"
