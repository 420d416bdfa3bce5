"""JSON whose values each stand on one line, as programs write it, with the scanner of the json module.

That one is C; step by step takes ten times as long. Whatever is wrong, or unusual, is left to the other way.
"""

from __future__ import annotations

import json.scanner
import re
from typing import Any

from services.conversion.file.json_tokens import scan_string
from services.conversion.file.value import (
    NESTING_MAX,
    Document,
    Kept,
    List,
    Mapping,
    OtherWayError,
    Value,
    new_list,
    new_mapping,
)

_BOOLEANS = {True: "true", False: "false"}
_SPACE = " \t\r\n"
_SPACES = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_lines(text: str, *, keep: bool) -> Document:
    """The document. Raises OtherWayError, and what the scanner raises: StopIteration, ValueError, RecursionError."""
    return _Lines(text, keep=keep).read()


class _Lines:
    """Reads one text."""

    strict = True
    object_hook = None
    parse_float = parse_int = parse_constant = str  # numbers stay the text that was written

    def __init__(self, text: str, *, keep: bool = False, line: int = 1) -> None:
        self._text = text
        self._keep = keep
        self.line = line
        self._scan = json.scanner.c_make_scanner(self)  # type: ignore[attr-defined]  # no stub

    def read(self) -> Document:
        """Everything."""
        text = self._text
        begin = len(text) - len(text.lstrip(_SPACE))
        if text[begin : begin + 1] not in ("{", "[") or _SURROGATE.search(text) is not None:
            raise OtherWayError
        self.line = first = text.count("\n", 0, begin) + 1
        value: Value
        if text[begin] == "{":
            value = self._mapping(begin)
        else:
            value, end = self._value(begin)
            if text.find("\n", begin, end) >= 0 or text[end:].strip(_SPACE):
                raise OtherWayError
        assert isinstance(value, (List, Mapping)), "it begins with a bracket"
        if value.depth > NESTING_MAX:
            raise OtherWayError
        return Document(value=value, line=first, repeated=())

    def object_pairs_hook(self, pairs: list[tuple[str, Any]]) -> Mapping:
        """A mapping; what is in its lists was not looked at before."""
        mapping: Mapping = new_mapping(Mapping)
        mapping.update(pairs)
        if len(mapping) != len(pairs):  # a key stands twice
            raise OtherWayError
        mapping.repeated = False
        mapping.line = self.line
        mapping._lines = None
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
        found: List = new_list(List)
        found.line = self.line
        found._lines = None
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

    def _value(self, position: int) -> tuple[Any, int]:
        value, end = self._scan(self._text, position)
        if type(value) is list:
            return self._list(value), end
        return _BOOLEANS[value] if type(value) is bool else value, end

    def _mapping(self, position: int) -> Mapping:
        """The mapping that is everything, each of whose values stands on one line."""
        text = self._text
        mapping = Mapping(self.line)
        lines: list[int] = []
        mapping._lines = lines
        position = self._space(position + 1)
        depth = 0
        while text[position : position + 1] == '"':
            line = self.line
            key, position = scan_string(text, position + 1, True)
            position = self._space(position)
            if text[position : position + 1] != ":" or key in mapping:
                raise OtherWayError
            position = self._space(position + 1)
            value, end = self._value(position)
            if text.find("\n", position, end) >= 0:
                raise OtherWayError
            lines.append(line)
            if isinstance(value, (List, Mapping)):
                depth = max(depth, value.depth)
                if self._keep and value:
                    value = Kept(self._read_kept, position, end, self.line, 0)
            mapping[key] = value
            position = self._space(end)
            if text[position : position + 1] != ",":
                break
            position = self._space(position + 1)
            if text[position : position + 1] == "}":
                raise OtherWayError
        if text[position : position + 1] != "}" or text[position + 1 :].strip(_SPACE):
            raise OtherWayError
        mapping.depth = depth + 1
        return mapping

    def _read_kept(self, start: int, end: int, line: int, column: int) -> Value:
        """Was read before, so that nothing is wrong with it."""
        value: Value = _Lines(self._text, line=line)._value(start)[0]
        return value

    def _space(self, position: int) -> int:
        """Behind the white space; counts its lines."""
        found = _SPACES.match(self._text, position)
        assert found is not None, "no white space is some"
        end = found.end()
        if end > position:
            self.line += self._text.count("\n", position, end)
        return end
