"""Points and lines in columns, as they travel from the wire into a block and to followers.

Arrays are never changed after they were made: a block and any number of followers share them. They are checked when
they are made from the wire; nothing behind that checks them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.log import LogFilter
from services.metrics.point import SeriesDefinition

LINE_OVERHEAD_BYTES = 64
"""What a line needs on the wire beside its text, at most."""

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointColumns:
    """Points of one series; all columns have the same length, which is at least 1."""

    series_id: int
    steps: Integers
    times_unix_us: Integers
    values: Doubles


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointRows:
    """One message of points."""

    sequence: int
    columns: tuple[PointColumns, ...]
    new_definitions: tuple[SeriesDefinition, ...]
    row_count: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lines:
    """Lines of one attempt and rank, in order; all columns have the same length. Numbers grow and may have holes."""

    attempt: int
    rank: int
    numbers: list[int]
    times_unix_us: list[int]
    levels: list[int]
    sources: list[str]
    streams: list[int]
    texts: list[str]
    continued: list[bool]

    def picked(self, indexes: list[int]) -> Lines:
        """The lines at these indexes."""
        return Lines(
            attempt=self.attempt,
            rank=self.rank,
            numbers=[self.numbers[i] for i in indexes],
            times_unix_us=[self.times_unix_us[i] for i in indexes],
            levels=[self.levels[i] for i in indexes],
            sources=[self.sources[i] for i in indexes],
            streams=[self.streams[i] for i in indexes],
            texts=[self.texts[i] for i in indexes],
            continued=[self.continued[i] for i in indexes],
        )

    def pieces(self, bytes_max: int) -> Iterator[Lines]:
        """The lines in pieces of about `bytes_max` at most, for messages that are not too large."""
        start, size_bytes = 0, 0
        for index, text in enumerate(self.texts):
            line_bytes = len(text) + LINE_OVERHEAD_BYTES
            if index > start and size_bytes + line_bytes > bytes_max:
                yield self.picked(list(range(start, index)))
                start, size_bytes = index, 0
            size_bytes += line_bytes
        if start:
            yield self.picked(list(range(start, len(self.texts))))
        elif self.texts:
            yield self


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LineRows:
    """One message of lines, numbered without holes."""

    sequence: int
    lines: Lines
    matches: dict[LogFilter, Lines] = field(default_factory=dict)
    """What followers with the same filter get; made once."""

    @property
    def row_count(self) -> int:
        """Lines."""
        return len(self.lines.numbers)

    def matching(self, wanted: LogFilter) -> Lines:
        """The lines that a filter takes."""
        if wanted not in self.matches:
            self.matches[wanted] = matching_lines(self.lines, wanted)
        return self.matches[wanted]


def matching_lines(lines: Lines, wanted: LogFilter) -> Lines:
    """The same choice that the query in `lines` makes in ClickHouse."""
    if wanted == LogFilter():
        return lines
    if not wanted.takes_writer(lines.attempt, lines.rank):
        return lines.picked([])
    taken = [
        i
        for i, text in enumerate(lines.texts)
        if lines.levels[i] >= wanted.level_min
        and (not wanted.sources or lines.sources[i] in wanted.sources)
        and (not wanted.streams or lines.streams[i] in wanted.streams)
        and wanted.contains in text
    ]
    if wanted.regex and taken:
        matches = pc.match_substring_regex(pa.array([lines.texts[i] for i in taken]), wanted.expression).to_pylist()
        taken = [i for i, match in zip(taken, matches, strict=True) if match]
    return lines.picked(taken)


def require_regex(wanted: LogFilter) -> None:
    """Raise InvalidArgument where the filter has no RE2 expression. Arrow and ClickHouse both use RE2."""
    try:
        pc.match_substring_regex(pa.array([""]), wanted.expression)
    except pa.ArrowInvalid as error:
        description = f"is no RE2 expression: {error}"
        raise InvalidArgument([Violation(field="filter.regex", description=description)]) from error
