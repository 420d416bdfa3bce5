"""YAML, event by event: libyaml's own constructors would cost ten times as much and turn 1.10 into 1.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import yaml

from services.conversion.file.value import (
    NESTING_MAX,
    Document,
    DocumentError,
    Kept,
    List,
    Mapping,
    OtherWayError,
    RepeatedKey,
    Value,
    new_list,
    new_mapping,
    too_deep,
)

NULL_WORDS = frozenset({"", "~", "null", "Null", "NULL"})
"""YAML's plain words for null; in quotes they are text."""
_Path: TypeAlias = "tuple[()] | tuple[_Path, str | List]"
"""The way to a value, from its end: a key, or the list that it is the next item of."""
_SCALAR, _LIST_END, _MAPPING_END = yaml.ScalarEvent, yaml.SequenceEndEvent, yaml.MappingEndEvent


def read_yaml(text: str, *, keep: bool) -> Document:
    """The document. `keep`: what stands under the keys of its mapping is left as text (`Kept`)."""
    text = text.removeprefix("\ufeff")  # libyaml leaves one out, and counts from behind it
    try:
        return _Reader(text, keep=keep).read()
    except OtherWayError:
        return _Reader(text, keep=keep, every_line=True).read()


class _Reader:
    """Reads one text; the frequent events first: a large file has millions.

    What stands in brackets is taken to stand on one line, unless `every_line`: asking for each number's line would be
    a tenth of the time. `line`, from 1, is that of the first line.
    """

    def __init__(self, text: str, *, keep: bool = False, every_line: bool = False, line: int = 1) -> None:
        self._text = text
        self._keep = keep
        self._every_line = every_line
        self._line = line
        self._next: Callable[[], Any]  # the stubs know only what all events share
        self._end: Any = None
        """The last event that was the end of a list or mapping."""
        self._repeated: list[RepeatedKey] = []

    def read(self) -> Document:
        """Everything. Raises DocumentError, and OtherWayError where each line must be looked at."""
        self._next = yaml.CSafeLoader(self._text).get_event
        try:
            return self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = f"is not YAML: {error.problem or error.context or 'unknown problem'}"
            # The end is marked a line too far.
            line = min(mark.line, self._text.count("\n")) + self._line if mark is not None else 0
            raise DocumentError(line, problem) from error
        except yaml.YAMLError as error:  # the reader's own, such as control characters
            raise DocumentError(0, f"is not YAML: {str(error).splitlines()[0]}") from error
        finally:
            del self._next  # it holds the text once more

    def _document(self) -> Document:
        value: Value = None
        line = documents = 0
        while True:
            event = self._next()
            kind = type(event)
            if kind is yaml.StreamEndEvent:
                return Document(value=value, line=line, repeated=tuple(self._repeated))
            if kind is yaml.DocumentStartEvent:
                documents += 1
                if documents > 1:
                    at = event.start_mark.line + self._line
                    raise DocumentError(at, "holds a second document, where one was wanted")
            elif kind is not yaml.StreamStartEvent and kind is not yaml.DocumentEndEvent:
                line = event.start_mark.line + self._line
                value = self._value(event, (), 0)

    def _value(self, event: Any, above: _Path, depth: int) -> Value:
        kind = type(event)
        if kind is _SCALAR:
            if event.tag is not None:
                raise self._tagged(event)
            text: str = event.value
            return None if text in NULL_WORDS and event.implicit[0] else text
        if kind is yaml.AliasEvent:
            raise self._alias(event)
        if event.tag is not None:
            raise self._tagged(event)
        if depth >= NESTING_MAX:
            raise too_deep(event.start_mark.line + self._line)
        take = self._mapping if kind is yaml.MappingStartEvent else self._list
        return take(event, above, depth + 1)

    def _list(self, event: Any, above: _Path, depth: int) -> List:
        found: List = new_list(List)
        line = found.line = event.start_mark.line + self._line
        one_line = event.flow_style and not self._every_line
        lines = found._lines = None if one_line else []
        within = above, found
        take, append, null_words, scalar = self._next, found.append, NULL_WORDS, _SCALAR
        while True:
            event = take()
            kind = type(event)
            if kind is scalar:
                if event.tag is not None:
                    raise self._tagged(event)
                text = event.value
                append(None if text in null_words and event.implicit[0] else text)
            elif kind is _LIST_END:
                break
            else:
                append(self._value(event, within, depth))
            if lines is not None:
                lines.append(event.start_mark.line + self._line)
        self._end = event
        if one_line and event.end_mark.line + self._line != line:
            raise OtherWayError
        return found

    def _mapping(self, event: Any, above: _Path, depth: int) -> Mapping:
        found: Mapping = new_mapping(Mapping)
        found.repeated = False
        first = self._line
        line = found.line = event.start_mark.line + first
        one_line = event.flow_style and not self._every_line
        lines = found._lines = None if one_line else []
        take, scalar, keep = self._next, _SCALAR, self._keep and depth == 1
        while True:
            event = take()
            kind = type(event)
            if kind is not scalar:
                if kind is _MAPPING_END:
                    break
                raise self._bad_key(event)
            if event.tag is not None:
                raise self._tagged(event)
            key = event.value
            again = key in found
            if again:
                self._repeat(found, key, event, above)
            elif lines is not None:
                lines.append(event.start_mark.line + first)
            event = take()
            kind = type(event)
            if kind is scalar:
                if event.tag is not None:
                    raise self._tagged(event)
                value: Value = event.value
                if value in NULL_WORDS and event.implicit[0]:
                    value = None
            else:
                value = self._value(event, (above, key), depth)
                if keep and value:
                    value = self._kept(event)
            if not again:
                found[key] = value
        self._end = event
        if one_line and event.end_mark.line + first != line:
            raise OtherWayError
        return found

    def _kept(self, event: Any) -> Any:
        mark = event.start_mark
        return Kept(self._read_kept, mark.index, self._end.end_mark.index, mark.line + self._line, mark.column)

    def _read_kept(self, start: int, end: int, line: int, column: int) -> Value:
        """Was read before, so that nothing is wrong with it. What follows its first line is indented as that was."""
        text = " " * column + self._text[start:end]
        try:
            return _Reader(text, line=line).read().value
        except OtherWayError:
            return _Reader(text, line=line, every_line=True).read().value

    def _repeat(self, mapping: Mapping, key: str, event: Any, above: _Path) -> None:
        if mapping._lines is None:
            raise OtherWayError
        mapping.repeated = True
        path: list[str] = []
        while above:
            above, last = above
            path.append(last if isinstance(last, str) else str(len(last)))
        line = event.start_mark.line + self._line
        found = RepeatedKey(path=tuple(reversed(path)), key=key, line=line, line_first=mapping.lines[key])
        self._repeated.append(found)

    def _bad_key(self, event: Any) -> DocumentError:
        kind = type(event)
        if kind is yaml.AliasEvent:
            return self._alias(event)
        at = event.start_mark.line + self._line
        return DocumentError(at, "has a list or a mapping as a key, where a name was wanted")

    def _alias(self, event: Any) -> DocumentError:
        at = event.start_mark.line + self._line
        return DocumentError(at, f"uses the alias *{event.anchor}: write the value out")

    def _tagged(self, event: Any) -> DocumentError:
        at = event.start_mark.line + self._line
        return DocumentError(at, f"uses the tag {event.tag}: leave it out, everything is text")
