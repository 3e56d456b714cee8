"""The file's tree into the schema's structs: every problem with its path and line, not only the first.

The structs of :mod:`tierfall.config.schema` are the only description of the file; this module reads them
through :mod:`msgspec.inspect`, so a new field there needs no word here.
"""

from __future__ import annotations

import difflib
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec.inspect

from tierfall.config import scalars
from tierfall.config.document import Items, Leaf, Table
from tierfall.config.problem import Problem, within
from tierfall.config.schema import ApiKey, Config, Duration, Money, Rate, Secret, Size, Spend, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_CONFIG: Final = msgspec.inspect.type_info(Config)
_CUSTOM: Final[dict[type, Callable[[str], object]]] = {
    Duration: scalars.duration,
    Money: scalars.money,
    Rate: scalars.rate,
    Size: scalars.size,
    Spend: scalars.spend,
    Wait: scalars.wait,
}
_BROKEN: Final = object()
"""Stands for a value that could not be read and whose problem is noted, so that the config around it, of
which it may be a part, is never returned."""


def near(name: str, known: Iterable[str]) -> str:
    """How a message about an unknown name ends: with the one probably meant, else with all that exist."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1):
        return f'did you mean "{close[0]}"?'
    return f"known: {', '.join(names)}" if names else "none is configured"


class Decoder:
    """Reads one file.

    Args:
        environ: Where ``${NAME}`` is looked up.

    Attributes:
        problems: What was found; a config is only returned when there is none.
        lines: The line of each path that the file holds.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}
        self._environ = environ

    def config(self, tree: Leaf | Items | Table) -> Config | None:
        """Decodes the whole file; ``None`` when :attr:`problems` says why not."""
        decoded = self._decode(_CONFIG, tree, "")
        return decoded if isinstance(decoded, Config) and not self.problems else None

    def _fail(self, path: str, text: str, line: int) -> object:
        self.problems.append(Problem(path, text, line))
        return _BROKEN

    def _decode(self, kind: msgspec.inspect.Type, value: Leaf | Items | Table, path: str) -> Any:
        match kind:
            case msgspec.inspect.UnionType():
                return self._union(kind, value, path)
            case msgspec.inspect.StructType():
                return self._struct(kind, value, path)
            case msgspec.inspect.DictType():
                return self._dict(kind, value, path)
            case msgspec.inspect.VarTupleType():
                return self._list(kind, value, path)
            case _:
                return self._leaf(kind, value, path)

    def _union(self, kind: msgspec.inspect.UnionType, value: Leaf | Items | Table, path: str) -> Any:
        """``X | None``, where None is what a missing key means and is not written; or structs with a tag."""
        some = [one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)]
        if len(some) == 1:
            return self._decode(some[0], value, path)
        structs = {str(one.tag): one for one in some if isinstance(one, msgspec.inspect.StructType)}
        tag_field = next(iter(structs.values())).tag_field or ""
        if not isinstance(value, Table):
            return self._fail(
                path, f"{_what(value)}, must be a mapping with {tag_field} and more", value.line
            )
        tag = value.entries.get(tag_field)
        choice = ", ".join(structs)
        if tag is None:
            return self._fail(within(path, tag_field), f"is missing; one of {choice}", value.line)
        if not isinstance(tag, Leaf):
            return self._fail(within(path, tag_field), f"{_what(tag)}, must be one of {choice}", tag.line)
        if tag.text not in structs:
            text = f"is {scalars.shown(tag.text)}, must be one of {choice}"
            if close := difflib.get_close_matches(tag.text, structs, n=1):
                text += f'; did you mean "{close[0]}"?'
            return self._fail(within(path, tag_field), text, tag.line)
        return self._struct(structs[tag.text], value, path)

    def _struct(self, kind: msgspec.inspect.StructType, value: Leaf | Items | Table, path: str) -> Any:
        if kind.cls is ApiKey and isinstance(value, Leaf):
            return ApiKey(key=self._secret(value, path))
        if not isinstance(value, Table):
            return self._fail(path, f"{_what(value)}, must be a mapping", value.line)
        fields = {field.encode_name: field for field in kind.fields}
        known = [*fields, kind.tag_field] if kind.tag_field else list(fields)
        for key in value.entries.keys() - set(known):
            self._unknown(kind, key, known, path, value.lines[key])
        arguments: dict[str, Any] = {}
        for key, field in fields.items():
            here = within(path, key)
            entry = value.entries.get(key)
            if entry is None:
                if field.required:
                    self._fail(here, "is missing", value.line)
                continue
            self.lines[here] = value.lines[key]
            if isinstance(entry, Leaf) and entry.is_null and not field.required and _is_group(field.type):
                continue  # a heading whose entries are all commented out
            arguments[field.name] = self._decode(field.type, entry, here)
        if any(field.required and field.name not in arguments for field in fields.values()):
            return _BROKEN
        return kind.cls(**arguments)

    def _unknown(
        self, kind: msgspec.inspect.StructType, key: str, known: list[str], path: str, line: int
    ) -> None:
        if kind.cls is ApiKey:
            # What stands there may be the key itself, mistyped.
            self._fail(path, f"has an unknown key; known: {', '.join(sorted(known))}", line)
        else:
            self._fail(within(path, key), f"unknown key; {near(key, known)}", line)

    def _dict(
        self, kind: msgspec.inspect.DictType, value: Leaf | Items | Table, path: str
    ) -> dict[str, Any] | Any:
        if not isinstance(value, Table):
            return self._fail(path, f"{_what(value)}, must be a mapping from names", value.line)
        decoded: dict[str, Any] = {}
        for key, entry in value.entries.items():
            here = within(path, key)
            self.lines[here] = value.lines[key]
            decoded[key] = self._decode(kind.value_type, entry, here)
        return decoded

    def _list(self, kind: msgspec.inspect.VarTupleType, value: Leaf | Items | Table, path: str) -> Any:
        if not isinstance(value, Items):
            return self._fail(path, f"{_what(value)}, must be a list: [...]", value.line)
        decoded = []
        for index, item in enumerate(value.items):
            here = within(path, index)
            self.lines[here] = item.line
            decoded.append(self._decode(kind.item_type, item, here))
        return tuple(decoded)

    def _leaf(self, kind: msgspec.inspect.Type, value: Leaf | Items | Table, path: str) -> Any:
        if isinstance(kind, msgspec.inspect.CustomType) and kind.cls is Secret:
            return self._secret(value, path)
        if not isinstance(value, Leaf):
            return self._fail(path, f"{_what(value)}, must be a single value", value.line)
        if value.is_null:
            return self._fail(path, _EMPTY, value.line)
        try:
            return _reader(kind)(value.text)
        except ValueError as error:
            return self._fail(path, str(error), value.line)

    def _secret(self, value: Leaf | Items | Table, path: str) -> Any:
        if not isinstance(value, Leaf):
            return self._fail(path, f"{_what(value)}, must be a single value such as ${{NAME}}", value.line)
        if not value.text or value.is_null:
            return self._fail(path, _EMPTY, value.line)
        try:
            return scalars.secret(value.text, self._environ)
        except ValueError as error:
            return self._fail(path, str(error), value.line)


_EMPTY: Final = "is empty; write a value, or take the key out"


def _reader(kind: msgspec.inspect.Type) -> Callable[[str], object]:
    match kind:
        case msgspec.inspect.CustomType():
            return _CUSTOM[kind.cls]
        case msgspec.inspect.LiteralType():
            return partial(scalars.one_of, tuple(str(value) for value in kind.values))
        case msgspec.inspect.StrType():
            return scalars.text_value
        case msgspec.inspect.IntType():
            return scalars.integer
        case msgspec.inspect.BoolType():
            return scalars.truth
        case _:
            raise TypeError(f"the schema has a type that the decoder cannot read: {kind}")


def _is_group(kind: msgspec.inspect.Type) -> bool:
    return isinstance(kind, msgspec.inspect.StructType | msgspec.inspect.VarTupleType)


def _what(value: Leaf | Items | Table) -> str:
    """Names the kind of value without showing it: it may be a secret in the wrong place."""
    match value:
        case Items():
            return "is a list"
        case Table():
            return "is a mapping"
        case _:
            return "is empty" if value.is_null else "is a single value"
