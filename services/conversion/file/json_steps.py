"""JSON, step by step: any that there is, and what is wrong with it, with its line."""

from __future__ import annotations

import bisect
import re
from typing import Any

from services.conversion.file.json_tokens import JsonError, json_tokens
from services.conversion.file.value import (
    NESTING_MAX,
    Document,
    DocumentError,
    Kept,
    List,
    Mapping,
    RepeatedKey,
    Value,
    too_deep,
)


def read_json_steps(text: str, *, keep: bool) -> Document:
    """The document. Raises DocumentError."""
    return _Reader(text, keep=keep).read()


class _Reader:
    """Reads one text; `line`, from 1, is that of its first line."""

    def __init__(self, text: str, *, keep: bool = False, line: int = 1) -> None:
        self._text = text
        self._keep = keep
        self._line = line

    def read(self) -> Document:
        """Everything."""
        breaks = [match.start() for match in re.finditer("\n", self._text)]
        try:
            return self._read(breaks)
        except JsonError as error:
            raise DocumentError(bisect.bisect_left(breaks, error.position) + self._line, str(error)) from error

    def _read(self, breaks: list[int]) -> Document:
        builder = _Builder()
        closers: list[str] = []
        wanted = "value"  # what may come next: value, value or ], key, key or }, colon, comma, end
        begun = (0, 0)
        for found, value, position in json_tokens(self._text):
            line = bisect.bisect_left(breaks, position) + self._line
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
                builder.open(List(line), line)
                for number in value.split(","):
                    builder.scalar(number.strip(), line)
                builder.close()
                wanted = "comma" if closers else "end"
            elif found in ("{", "[") and wanted.startswith("value"):
                if len(closers) == 1:
                    begun = position, line
                builder.open(_mapping(line) if found == "{" else _list(line), line)
                closers.append("}" if found == "{" else "]")
                wanted = "key or }" if found == "{" else "value or ]"
            elif closers and found == closers[-1] and (wanted == "comma" or wanted.endswith(found)):
                closed = builder.close()
                closers.pop()
                if self._keep and closers == ["}"]:
                    builder.keep(closed, Kept(self._read_kept, begun[0], position + 1, begun[1], 0))
                wanted = "comma" if closers else "end"
            else:
                raise DocumentError(line, f"is not JSON: a {wanted} was wanted, {found} was found")
        return builder.document()

    def _read_kept(self, start: int, end: int, line: int, column: int) -> Value:
        """Was read before, so that nothing is wrong with it."""
        return _Reader(self._text[start:end], line=line).read().value


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
            self._append(container, text, line)
        elif self.key_wanted:
            self._set_key(text or "", line)
        else:
            self._put(text, line)

    def open(self, container: List | Mapping, line: int) -> None:
        """A list or a mapping begins."""
        if self.key_wanted:
            raise DocumentError(line, "has a list or a mapping as a key, where a name was wanted")
        if len(self._outer) >= NESTING_MAX:
            raise too_deep(line)
        self._put(container, line)
        self._outer.append((self._container, self._key))
        self._container = container
        self.key_wanted = isinstance(container, Mapping)

    def close(self) -> List | Mapping | None:
        """The innermost list or mapping ends; it is returned."""
        closed = self._container
        self._container, self._key = self._outer.pop()
        self.key_wanted = isinstance(self._container, Mapping)
        return closed

    def keep(self, closed: Any, kept: Any) -> None:
        """Put its text in the place of what closed last, unless that is empty, or thrown away."""
        container = self._container
        assert isinstance(container, Mapping), "what is kept stands under a key"
        if closed and container.get(self._key) is closed:
            container[self._key] = kept

    def document(self) -> Document:
        """Everything, once it has ended."""
        return Document(value=self.root, line=self.line, repeated=tuple(self.repeated))

    def _set_key(self, key: str, line: int) -> None:
        mapping = self._container
        assert isinstance(mapping, Mapping), "a key stands in a mapping"
        self._key = key
        self.key_wanted = False
        if key in mapping:
            self._skipped = True
            mapping.repeated = True
            first = mapping.lines[key]
            self.repeated.append(RepeatedKey(path=self._path(), key=key, line=line, line_first=first))
        elif mapping._lines is not None:
            mapping._lines.append(line)

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
            self._append(container, value, line)

    def _append(self, container: List, value: Value, line: int) -> None:
        container.append(value)
        if container._lines is not None:
            container._lines.append(line)

    def _path(self) -> tuple[str, ...]:
        parts = []
        for container, key in self._outer[1:]:
            parts.append(key if isinstance(container, Mapping) else str(len(container or ()) - 1))
        return tuple(parts)


def _list(line: int) -> List:
    found = List(line)
    found._lines = []
    return found


def _mapping(line: int) -> Mapping:
    found = Mapping(line)
    found._lines = []
    return found
