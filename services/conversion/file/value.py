"""What a YAML or JSON file holds: null, text, lists, mappings, and nothing else; each knows its lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

NESTING_MAX = 32


class List(list["Value"]):
    """A list that knows the line of each of its items, from 1."""

    __slots__ = ("_lines", "depth", "line")  # a large file has a hundred thousand: each dictionary would cost
    line: int
    """Where it begins; that of all items where no others are known."""
    depth: int
    """Levels of what is in it, itself included; only while a file is read."""
    _lines: list[int] | None

    def __init__(self, line: int = 0) -> None:
        self.line = line
        self._lines = None

    @property
    def lines(self) -> Sequence[int]:
        """Of the items."""
        return [self.line] * len(self) if self._lines is None else self._lines


class Mapping(dict[str, "Value"]):
    """A mapping that knows the line of each of its keys, from 1. Of a repeated key it holds the first value.

    `repeated`: a key stood twice in it, so that it cannot be trusted.
    """

    __slots__ = ("_lines", "depth", "line", "repeated")
    line: int
    """Where it begins; that of all keys where no others are known."""
    depth: int
    _lines: list[int] | None

    def __init__(self, line: int = 0) -> None:
        self.line = line
        self._lines = None
        self.repeated = False

    @property
    def lines(self) -> dict[str, int]:
        """Of the keys."""
        if self._lines is None:
            return dict.fromkeys(self, self.line)
        return dict(zip(self, self._lines, strict=True))


Value: TypeAlias = str | List | Mapping | None


class Kept:
    """A list or a mapping with something in it, left as the text of its file: it is read anew whenever it is wanted.

    A large file is so kept in a few times its own size, where its values would take ten times as much.
    """

    __slots__ = ("_column", "_end", "_line", "_read", "_start")

    def __init__(self, read: KeptReader, start: int, end: int, line: int, column: int) -> None:
        self._read = read
        self._start = start
        self._end = end
        self._line = line
        self._column = column

    def value(self) -> Value:
        """The value, with its lines."""
        return self._read(self._start, self._end, self._line, self._column)


KeptReader: TypeAlias = Callable[[int, int, int, int], Value]
"""Reads the value between two positions of a text; line and column, from 1 and from 0, are those of the first."""
Entry: TypeAlias = Value | Kept


@dataclass(frozen=True, kw_only=True)
class RepeatedKey:
    """A key that stands twice in one mapping. `path` leads from the root to the mapping: keys and list positions."""

    path: tuple[str, ...]
    key: str
    line: int
    line_first: int


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a file holds. `line` is where its value begins."""

    value: Value
    line: int
    repeated: tuple[RepeatedKey, ...]


class DocumentError(Exception):
    """The file is not what its name says. `line` is where that shows, 0 where nowhere in particular."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


class OtherWayError(Exception):
    """The file holds something that this way of reading, a quick one, does not know."""


def kind(value: Value) -> str:
    """What a value is, for a message."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, List) else "a mapping"


def shown(value: Value) -> str:
    """A value for a finding; whoever keeps it shortens it."""
    if value is None or isinstance(value, str):
        return "null" if value is None else value
    return f"{len(value)} {'items' if isinstance(value, List) else 'keys'}"


def too_deep(line: int) -> DocumentError:
    """More levels than a file may have."""
    return DocumentError(line, f"is nested more than {NESTING_MAX} levels deep")


new_list = list.__new__
"""Without __init__, whose call would be a third of the time; the same for mappings."""
new_mapping = dict.__new__
