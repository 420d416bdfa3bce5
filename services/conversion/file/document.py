"""YAML and JSON files as values with line numbers: null, text, lists, mappings, and nothing else.

Every scalar that is not null stays the text that was written: names are strings, also `007`, `no` and `1.10`, and a
number is read by who wants one. Repeated keys are kept as problems and not resolved. No tag is ever constructed, no
alias ever expanded: a file cannot make this reader run code or use more memory than a few times its own size.
"""

from __future__ import annotations

import bisect
import json.scanner
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from services.conversion.file.collector import collector_rests
from services.conversion.file.json_tokens import JsonError, json_tokens, scan_string

NESTING_MAX = 32
NULL_WORDS = frozenset({"", "~", "null", "Null", "NULL"})
"""YAML's plain words for null; in quotes they are text."""
SUFFIXES = (".yaml", ".yml", ".json")


class List(list["Value"]):
    """A list that knows the line of each of its items, from 1."""

    __slots__ = ("depth", "lines")  # a large file has a hundred thousand: each dictionary of attributes would cost
    depth: int
    """Levels of what is in it, itself included; only while a file is read."""

    def __init__(self) -> None:
        self.lines: list[int] = []


class Mapping(dict[str, "Value"]):
    """A mapping that knows the line of each of its keys, from 1. Of a repeated key it holds the first value.

    `repeated`: a key stood twice in it, so that it cannot be trusted.
    """

    __slots__ = ("depth", "lines", "repeated")
    depth: int

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
    with collector_rests():
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


class _OtherWay(Exception):  # noqa: N818 — it is no error: the file is read step by step then
    """The file holds something that must be looked at step by step."""


class _Lines:
    """Reads JSON whose values each stand on one line, as programs write it, with the scanner of the json module.

    That one is C; step by step takes ten times as long. Whatever is wrong, or unusual, is left to the other way.
    """

    strict = True
    object_hook = None
    parse_float = parse_int = parse_constant = str  # numbers stay the text that was written

    def __init__(self) -> None:
        self.line = 1
        self._scan = json.scanner.c_make_scanner(self)  # type: ignore[attr-defined]  # no stub

    def read(self, text: str) -> Document:
        """The document. Raises _OtherWay, and what the scanner raises."""
        begin = len(text) - len(text.lstrip(_SPACE))
        if text[begin : begin + 1] not in ("{", "[") or _SURROGATE.search(text) is not None:
            raise _OtherWay
        self.line = first = text.count("\n", 0, begin) + 1
        if "\n" in text.strip(_SPACE):
            value: Value = self._mapping(text, begin)
        else:
            value, end = self._scan(text, begin)
            if text[end:].strip(_SPACE):
                raise _OtherWay
            value = self._list(value) if type(value) is list else value
        assert isinstance(value, (List, Mapping)), "it begins with a bracket"
        if value.depth > NESTING_MAX:
            raise _OtherWay
        return Document(value=value, line=first, repeated=())

    def object_pairs_hook(self, pairs: list[tuple[str, Any]]) -> Mapping:
        """A mapping; what is in its lists was not looked at before."""
        mapping: Mapping = _new_mapping(Mapping)
        mapping.update(pairs)
        mapping.repeated = False
        if len(mapping) != len(pairs):  # a key stands twice
            raise _OtherWay
        mapping.lines = dict.fromkeys(mapping, self.line)
        depth = 0
        for key, value in pairs:
            kind = type(value)
            if kind is str:
                continue
            if kind is list:
                mapping[key] = value = self._list(value)
            elif kind is bool:
                mapping[key] = _BOOLEANS[value]
                continue
            if value is not None and value.depth > depth:
                depth = value.depth
        mapping.depth = depth + 1
        return mapping

    def _list(self, items: list[Any]) -> List:
        found: List = _new_list(List)  # without __init__, whose call would be a third of the time
        found.lines = [self.line] * len(items)
        try:
            "".join(items)  # the quickest way to see that all are texts, which coordinates are here
        except TypeError:
            pass
        else:
            found += items
            found.depth = 1
            return found
        depth = 0
        for value in items:
            kind = type(value)
            if kind is list:
                value = self._list(value)
            elif kind is bool:
                value = _BOOLEANS[value]
            found.append(value)
            if isinstance(value, (List, Mapping)) and value.depth > depth:
                depth = value.depth
        found.depth = depth + 1
        return found

    def _mapping(self, text: str, position: int) -> Mapping:
        """A mapping of several lines, each of whose values stands on one."""
        mapping = Mapping()
        if text[position] != "{":
            raise _OtherWay
        position = self._space(text, position + 1)
        depth = 0
        while text[position : position + 1] == '"':
            line = self.line
            key, position = scan_string(text, position + 1, True)
            position = self._space(text, position)
            if text[position : position + 1] != ":" or key in mapping:
                raise _OtherWay
            position = self._space(text, position + 1)
            value, end = self._scan(text, position)
            if text.find("\n", position, end) >= 0:
                raise _OtherWay
            if type(value) is list:
                value = self._list(value)
            elif type(value) is bool:
                value = _BOOLEANS[value]
            mapping[key] = value
            mapping.lines[key] = line
            if isinstance(value, (List, Mapping)):
                depth = max(depth, value.depth)
            position = self._space(text, end)
            if text[position : position + 1] != ",":
                break
            position = self._space(text, position + 1)
            if text[position : position + 1] == "}":
                raise _OtherWay
        if text[position : position + 1] != "}" or text[position + 1 :].strip(_SPACE):
            raise _OtherWay
        mapping.depth = depth + 1
        return mapping

    def _space(self, text: str, position: int) -> int:
        """Behind the white space; counts its lines."""
        found = _SPACES.match(text, position)
        assert found is not None, "no white space is some"
        end = found.end()
        if end > position:
            self.line += text.count("\n", position, end)
        return end


_new_list = list.__new__
_new_mapping = dict.__new__
_BOOLEANS = {True: "true", False: "false"}
_SPACE = " \t\r\n"
_SPACES = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _read_json(text: str) -> Document:
    try:
        return _Lines().read(text)
    except (_OtherWay, StopIteration, ValueError, RecursionError):
        breaks = [match.start() for match in re.finditer("\n", text)]
    try:
        return _read_json_step_by_step(text, breaks)
    except JsonError as error:
        raise DocumentError(bisect.bisect_left(breaks, error.position) + 1, str(error)) from error


def _read_json_step_by_step(text: str, breaks: list[int]) -> Document:
    builder = _Builder()
    closers: list[str] = []
    wanted = "value"  # what may come next: value, value or ], key, key or }, colon, comma, end
    for found, value, position in json_tokens(text):
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
