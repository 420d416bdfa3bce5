"""YAML and JSON files as values with line numbers: null, text, lists, mappings, and nothing else.

Every scalar that is not null stays the text that was written: names are strings, also `007`, `no` and `1.10`, and a
number is read by who wants one. Repeated keys are kept as problems and not resolved. No tag is ever constructed, no
alias ever expanded: a file cannot make this reader run code or use more memory than a few times its own size.
"""

from __future__ import annotations

import bisect
import json.decoder
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

NESTING_MAX = 32
NULL_WORDS = frozenset({"", "~", "null", "Null", "NULL"})
"""YAML's plain words for null; in quotes they are text."""
SUFFIXES = (".yaml", ".yml", ".json")


class List(list["Value"]):
    """A list that knows the line of each of its items, from 1."""

    __slots__ = ("lines",)  # a large file has a hundred thousand: each dictionary of attributes would cost

    def __init__(self) -> None:
        self.lines: list[int] = []


class Mapping(dict[str, "Value"]):
    """A mapping that knows the line of each of its keys, from 1. Of a repeated key it holds the first value.

    `repeated`: a key stood twice in it, so that it cannot be trusted.
    """

    __slots__ = ("lines", "repeated")

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.repeated = False


Value: TypeAlias = str | List | Mapping | None


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


def read_document(content: bytes, name: str) -> Document:
    """The document in a `.yaml`, `.yml` or `.json` file. Raises DocumentError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(line, "is not UTF-8: save it as UTF-8") from error
    return _read_json(text) if name.lower().endswith(".json") else _read_yaml(text)


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


class _Builder:
    """Puts scalars and containers together as they are met. Depth is bounded, so no input exhausts the stack."""

    def __init__(self) -> None:
        self.root: Value = None
        self.line = 0
        self.repeated: list[RepeatedKey] = []
        self.key_wanted = False
        """The next scalar is a key."""
        self._container: List | Mapping | None = None
        self._key = ""
        self._skipped = False
        """The next value belongs to a repeated key, and is thrown away."""
        self._outer: list[tuple[List | Mapping | None, str]] = []

    def scalar(self, text: str | None, line: int) -> None:
        """The next value, or the next key where one is wanted."""
        container = self._container
        if type(container) is List:
            container.append(text)
            container.lines.append(line)
        elif self.key_wanted:
            self._set_key(text or "", line)
        else:
            self._put(text, line)

    def open(self, container: List | Mapping, line: int) -> None:
        """A list or a mapping begins."""
        if self.key_wanted:
            raise DocumentError(line, "has a list or a mapping as a key, where a name was wanted")
        if len(self._outer) >= NESTING_MAX:
            raise DocumentError(line, f"is nested more than {NESTING_MAX} levels deep")
        self._put(container, line)
        self._outer.append((self._container, self._key))
        self._container = container
        self.key_wanted = isinstance(container, Mapping)

    def close(self) -> None:
        """The innermost list or mapping ends."""
        self._container, self._key = self._outer.pop()
        self.key_wanted = isinstance(self._container, Mapping)

    def document(self) -> Document:
        """Everything, once it has ended."""
        return Document(value=self.root, line=self.line, repeated=tuple(self.repeated))

    def _set_key(self, key: str, line: int) -> None:
        mapping = self._container
        assert isinstance(mapping, Mapping), "a key stands in a mapping"
        self._key = key
        self.key_wanted = False
        if key in mapping.lines:
            self._skipped = True
            mapping.repeated = True
            first = mapping.lines[key]
            self.repeated.append(RepeatedKey(path=self._path(), key=key, line=line, line_first=first))
        else:
            mapping.lines[key] = line

    def _put(self, value: Value, line: int) -> None:
        container = self._container
        if container is None:
            self.root, self.line = value, line
        elif isinstance(container, Mapping):
            self.key_wanted = True
            if self._skipped:
                self._skipped = False
            else:
                container[self._key] = value
        else:
            container.append(value)
            container.lines.append(line)

    def _path(self) -> tuple[str, ...]:
        parts = []
        for container, key in self._outer[1:]:
            parts.append(key if isinstance(container, Mapping) else str(len(container or ()) - 1))
        return tuple(parts)


def _read_yaml(text: str) -> Document:
    builder = _Builder()
    try:
        # libyaml's events: its own constructors would cost ten times as much and turn 1.10 into 1.1.
        _take_yaml(yaml.CSafeLoader(text), builder)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"is not YAML: {error.problem or error.context or 'unknown problem'}"
        line = min(mark.line, text.count("\n")) + 1 if mark is not None else 0  # the end is marked a line too far
        raise DocumentError(line, problem) from error
    except yaml.YAMLError as error:  # the reader's own, such as control characters
        raise DocumentError(0, f"is not YAML: {str(error).splitlines()[0]}") from error
    return builder.document()


def _take_yaml(loader: yaml.CSafeLoader, builder: _Builder) -> None:
    """Every event in turn, the frequent kinds first: a large file has millions."""
    documents = 0
    next_event = loader.get_event
    scalar, close = builder.scalar, builder.close
    scalar_event, sequence_end, mapping_end = yaml.ScalarEvent, yaml.SequenceEndEvent, yaml.MappingEndEvent
    while True:
        event: Any = next_event()  # the stubs know only what all events share, and libyaml marks every one
        kind_of_event = type(event)
        if kind_of_event is scalar_event:
            if event.tag is not None:
                raise _tagged(event)
            value = event.value
            if value in NULL_WORDS and event.implicit[0] and not builder.key_wanted:
                value = None
            scalar(value, event.start_mark.line + 1)
        elif kind_of_event is sequence_end or kind_of_event is mapping_end:
            close()
        elif kind_of_event is yaml.MappingStartEvent or kind_of_event is yaml.SequenceStartEvent:
            if event.tag is not None:
                raise _tagged(event)
            builder.open(Mapping() if kind_of_event is yaml.MappingStartEvent else List(), event.start_mark.line + 1)
        elif kind_of_event is yaml.AliasEvent:
            raise DocumentError(event.start_mark.line + 1, f"uses the alias *{event.anchor}: write the value out")
        elif kind_of_event is yaml.DocumentStartEvent:
            documents += 1
            if documents > 1:
                raise DocumentError(event.start_mark.line + 1, "holds a second document, where one was wanted")
        elif kind_of_event is yaml.StreamEndEvent:
            return


def _tagged(event: Any) -> DocumentError:
    return DocumentError(event.start_mark.line + 1, f"uses the tag {event.tag}: leave it out, everything is text")


_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
# One token of JSON after white space; strings are left to the scanner of the json module, which is C.
_TOKEN = re.compile(
    rf'[ \t\r\n]*(?:(?P<mark>[{{}}\[\]:,"])|(?P<number>{_NUMBER})(?![\w.+-])|(?P<word>-?[A-Za-z_][\w.]*))'
)
# A list of numbers on one line, such as a box, in one step: most of a large file is in such lists. Atomic groups keep
# the time linear where it turns out to be something else.
_NUMBERS = re.compile(rf"[ \t]*(?>{_NUMBER}[ \t]*)(?>,[ \t]*{_NUMBER}[ \t]*)*+\]")
_scan_string: Callable[[str, int, bool], tuple[str, int]] = json.decoder.scanstring  # type: ignore[attr-defined]  # no stub
# What Python writes for numbers that are not finite is no JSON. It is read all the same: as one bad number, with its
# image and line, it says more than a file that is broken.
_JSON_WORDS = {"true": "true", "false": "false", "null": None} | {
    word: word for word in ("NaN", "Infinity", "-Infinity")
}


def _read_json(text: str) -> Document:
    breaks = [match.start() for match in re.finditer("\n", text)]
    builder = _Builder()
    closers: list[str] = []
    wanted = "value"  # what may come next: value, value or ], key, key or }, colon, comma, end
    for found, value, position in _json_tokens(text, breaks):
        line = bisect.bisect_left(breaks, position) + 1
        if found == "end":
            if wanted != "end":
                raise DocumentError(line, "is not JSON: it ends in the middle")
            break
        if wanted == "end":
            raise DocumentError(line, "is not JSON: something follows the value")
        if found == "string" and wanted.startswith("key"):
            builder.scalar(value, line)
            wanted = "colon"
        elif found == ":" and wanted == "colon":
            wanted = "value"
        elif found == "," and wanted == "comma":
            wanted = "key" if closers[-1] == "}" else "value"
        elif found in ("string", "scalar") and wanted.startswith("value"):
            builder.scalar(value, line)
            wanted = "comma" if closers else "end"
        elif found == "numbers" and wanted.startswith("value"):
            assert value is not None, "a list of numbers has a text"
            builder.open(List(), line)
            for number in value.split(","):
                builder.scalar(number.strip(), line)
            builder.close()
            wanted = "comma" if closers else "end"
        elif found in ("{", "[") and wanted.startswith("value"):
            builder.open(Mapping() if found == "{" else List(), line)
            closers.append("}" if found == "{" else "]")
            wanted = "key or }" if found == "{" else "value or ]"
        elif closers and found == closers[-1] and (wanted == "comma" or wanted.endswith(found)):
            builder.close()
            closers.pop()
            wanted = "comma" if closers else "end"
        else:
            raise DocumentError(line, f"is not JSON: a {wanted} was wanted, {found} was found")
    return builder.document()


def _json_tokens(text: str, breaks: list[int]) -> Iterator[tuple[str, str | None, int]]:
    """Tokens as (kind, value, position); the kind of a mark is the mark, the last one is `end`."""
    position = 0
    while True:
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].lstrip(" \t\r\n")
            position = len(text) - len(rest)
            if not rest:
                yield "end", None, position
                return
            raise DocumentError(bisect.bisect_left(breaks, position) + 1, f"is not JSON: {rest[:12]!r} was found")
        start = match.start(match.lastgroup or 0)
        position = match.end()
        if match["mark"] == '"':
            text_value, position = _json_string(text, position, breaks)
            yield "string", text_value, start
        elif match["mark"] == "[" and (numbers := _NUMBERS.match(text, position)) is not None:
            yield "numbers", text[position : numbers.end() - 1], start
            position = numbers.end()
        elif match["mark"]:
            yield match["mark"], None, start
        elif match["number"]:
            yield "scalar", match["number"], start
        elif match["word"] in _JSON_WORDS:
            yield "scalar", _JSON_WORDS[match["word"]], start
        else:
            line = bisect.bisect_left(breaks, start) + 1
            raise DocumentError(line, f"is not JSON: {match['word'][:40]!r} was found, text stands in quotes")


def _json_string(text: str, position: int, breaks: list[int]) -> tuple[str, int]:
    try:
        value, end = _scan_string(text, position, True)
    except json.JSONDecodeError as error:
        raise DocumentError(bisect.bisect_left(breaks, error.pos) + 1, f"is not JSON: {error.msg}") from error
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        line = bisect.bisect_left(breaks, position) + 1
        raise DocumentError(line, "is not JSON: half a surrogate pair stands in a text")
    return value, end
