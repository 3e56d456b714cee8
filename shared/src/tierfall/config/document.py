"""A config file's YAML as a tree of texts that know their lines; what a text means is the schema's to say.

YAML guesses types from how a value looks (``010`` is 8, ``no`` is false, ``1:30`` is 90), so no value is
resolved here: :mod:`tierfall.config.decode` reads each one as what its key calls for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import yaml

from tierfall.config.problem import Problem, refusal, within

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TAGS: Final = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "seq", "map")
)
_VARIABLE: Final = re.compile(r"\$\{(\w*)\}")
_HIDDEN_VARIABLE: Final = re.compile("\\$\ue000(\\w*)\ue001")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One scalar, as it is written; ``plain`` without quotes."""

    text: str
    plain: bool
    line: int

    @property
    def is_null(self) -> bool:
        """Whether nothing is written there, or one of YAML's words for nothing."""
        return self.plain and self.text in _NULLS


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Leaf | Items | Table, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping; ``lines`` holds the line of each key."""

    entries: dict[str, Leaf | Items | Table]
    lines: dict[str, int]
    line: int


def read(text: str, source: str) -> Leaf | Items | Table:
    """Reads one YAML document.

    ``${NAME}`` needs no quotes, not even inside ``{...}`` and ``[...]``, where YAML would stop at the brace.

    Raises:
        ConfigError: Not YAML, more than one document, a key that stands twice, a tag.
    """
    # Braces of the same width that mean nothing to YAML, so that columns stay right.
    hidden = _VARIABLE.sub("$\ue000\\1\ue001", text)
    try:
        loader = yaml.SafeLoader(hidden)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        # Not str(error) and not its cause: both quote the file, which may hold keys.
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise refusal(source, [Problem("", f"is not YAML: {said}", mark.line + 1 if mark else 0)]) from None
    except yaml.YAMLError as error:
        said = getattr(error, "reason", "") or "it cannot be read"
        raise refusal(source, [Problem("", f"is not YAML: {said}")]) from None
    except RecursionError:
        raise refusal(source, [Problem("", "is nested too deep")]) from None
    if node is None:
        raise refusal(source, [Problem("", "is empty; a config needs at least tiers and models")])
    builder = _Builder()
    tree = builder.build(node, "")
    if builder.problems:
        raise refusal(source, builder.problems)
    return tree


class _Builder:
    """Turns pyyaml's nodes into the tree."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._done: dict[int, Leaf | Items | Table] = {}
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: str) -> Leaf | Items | Table:
        # Each node once, however many aliases point to it: nested aliases double with each level.
        if (done := self._done.get(id(node))) is not None:
            return done
        line = node.start_mark.line + 1
        if id(node) in self._open:
            self.problems.append(Problem(path, "an alias (*) stands inside its own anchor (&)", line))
            return Leaf("", plain=True, line=line)
        if node.tag not in _TAGS:
            self.problems.append(Problem(path, "a YAML tag (!...) means nothing here; take it out", line))
        self._open.add(id(node))
        built = self._build(node, path, line)
        self._open.remove(id(node))
        self._done[id(node)] = built
        return built

    def _build(self, node: yaml.Node, path: str, line: int) -> Leaf | Items | Table:
        if isinstance(node, yaml.MappingNode):
            return self._table(node, path, line)
        if isinstance(node, yaml.SequenceNode):
            items = (self.build(item, within(path, index)) for index, item in enumerate(node.value))
            return Items(tuple(items), line)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return Leaf(_HIDDEN_VARIABLE.sub(r"${\1}", node.value), plain=plain, line=line)

    def _table(self, node: yaml.MappingNode, path: str, line: int) -> Table:
        table = Table({}, {}, line)
        merged: list[Leaf | Items | Table] = []
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(path, "a key must be text, not a list or a mapping", key_line))
                continue
            key = _HIDDEN_VARIABLE.sub(r"${\1}", key_node.value)
            here = within(path, key)
            if key == "<<" and key_node.style is None:
                merged.append(self.build(value_node, here))
                continue
            if key in table.lines:
                said = f"stands twice; the first is in line {table.lines[key]}"
                self.problems.append(Problem(here, said, key_line))
                continue
            table.entries[key] = self.build(value_node, here)
            table.lines[key] = key_line
        for value in merged:
            self._merge(table, value, path)
        return table

    def _merge(self, table: Table, value: Leaf | Items | Table, path: str) -> None:
        """YAML's ``<<``: entries of other mappings, of which the mapping's own and the earlier ones win."""
        for other in value.items if isinstance(value, Items) else (value,):
            if not isinstance(other, Table):
                said = "<< takes an alias of a mapping, or a list of them"
                self.problems.append(Problem(path, said, other.line))
                continue
            for key, entry in other.entries.items():
                if key not in table.entries:
                    table.entries[key] = entry
                    table.lines[key] = other.lines[key]
