"""Which series a runner records: the rule of services/metrics, so that metrics never refuses what was recorded.

A test holds the two against each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from sihlai.metrics.v1 import series_pb2

TEXT_CHARACTERS_MAX = 256
"""Of a name, a unit, a key and a value of the context."""
CONTEXT_ENTRIES_MAX = 16
SERIES_MAX = 20_000
"""Of one writer."""
SERIES_BYTES_MAX = 8 * 2**20
"""All definitions together: they are sent in one message when the writer is opened, and that may have 16 MiB."""

UNITS = {"_seconds": "s", "_bytes": "bytes", "_percent": "%", "_celsius": "°C", "_watts": "W"}
"""Units of series by the end of their names."""


class SeriesRefused(Exception):  # noqa: N818  # what was decided, not a mistake
    """A series is not recorded. `kind` is the same for all that are refused for the same reason."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


class Dictionary:
    """The series of one writer, by name and context."""

    def __init__(self, job_uid: str, known: Iterable[series_pb2.SeriesDefinition]) -> None:
        self._job_uid = job_uid
        self._ids: dict[tuple[str, ...], int] = {}
        self._bytes = 0
        self.new: list[series_pb2.SeriesDefinition] = []
        self.new_bytes = 0
        for definition in known:
            self._add(definition)

    def take_new(self) -> list[series_pb2.SeriesDefinition]:
        """The series that nobody has taken yet."""
        new, self.new, self.new_bytes = self.new, [], 0
        return new

    def series_id(self, name: str, context: Mapping[str, str]) -> int:
        """The id of a series, which is known from now on. Raises SeriesRefused."""
        series_id = self._ids.get(_identity(name, context))
        if series_id is not None:
            return series_id
        if len(self._ids) >= SERIES_MAX:
            raise SeriesRefused("series", f"the attempt has {SERIES_MAX} series, more are not recorded: {name[:80]!r}")
        definition = definition_of(self._job_uid, name, context)
        if self._bytes + definition.ByteSize() > SERIES_BYTES_MAX:
            problem = f"the names of the attempt's series take {SERIES_BYTES_MAX} bytes, more are not recorded"
            raise SeriesRefused("series", f"{problem}: {name[:80]!r}")
        self._add(definition)
        self.new.append(definition)
        self.new_bytes += definition.ByteSize()
        return definition.series_id

    def _add(self, definition: series_pb2.SeriesDefinition) -> None:
        self._ids[_identity(definition.name, definition.context)] = definition.series_id
        self._bytes += definition.ByteSize()


def definition_of(job_uid: str, name: str, context: Mapping[str, str]) -> series_pb2.SeriesDefinition:
    """The definition of a series. Raises SeriesRefused where metrics would not take it."""
    if not name:
        raise SeriesRefused("name", "a series has a name, but one without was found")
    if len(context) > CONTEXT_ENTRIES_MAX:
        problem = f"a context has at most {CONTEXT_ENTRIES_MAX} entries, but that of {name[:80]!r} has {len(context)}"
        raise SeriesRefused("context", problem)
    for text in (name, *context.keys(), *context.values()):
        if len(text) > TEXT_CHARACTERS_MAX or "\0" in text or not _is_unicode(text):
            problem = f"at most {TEXT_CHARACTERS_MAX} characters of valid Unicode and no zero character are recorded"
            raise SeriesRefused("name", f"in names and contexts of series {problem}, found {text[:80]!r}")
    return series_pb2.SeriesDefinition(
        series_id=series_id_of(job_uid, name, context), name=name, context=context, unit=unit_of(name)
    )


def series_id_of(job_uid: str, name: str, context: Mapping[str, str]) -> int:
    """The id as protos/sihlai/metrics/v1/series.proto defines it."""
    words = [job_uid, name, *(word for item in sorted(context.items()) for word in item)]
    digest = hashlib.sha256(b"".join(word.encode() + b"\0" for word in words)).digest()
    return int.from_bytes(digest[:8], "little")


def unit_of(name: str) -> str:
    """The unit that the end of a series' name tells; empty for plain numbers."""
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")


def _identity(name: str, context: Mapping[str, str]) -> tuple[str, ...]:
    return (name, *(word for item in sorted(context.items()) for word in item))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
