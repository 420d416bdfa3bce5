"""Points and lines in columns, as they travel from the wire into a block and to followers.

Arrays are never changed after they were made: a block and any number of followers share them. They are checked when
they are made from the wire; nothing behind that checks them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.log import LogFilter
from services.metrics.point import SeriesDefinition
from services.metrics.writer_key import WriterKey

LINE_OVERHEAD_BYTES = 64
"""What a line needs on the wire beside its text and its source, at most."""
POINT_BYTES = 24
SERIES_BYTES = 16
"""What a point and a series take in a message of points."""
MESSAGE_MEMORY_BYTES = 1_024
LINE_MEMORY_BYTES = 256
"""What a message and a line take in memory beside their numbers and text, about."""

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointColumns:
    """Points of one series; all columns have the same length, which is at least 1."""

    series_id: int
    steps: Integers
    times_unix_us: Integers
    values: Doubles


@dataclass(frozen=True, kw_only=True, eq=False)
class PointRows:
    """One message of points, flat: series after series, in the order in which they were sent.

    `lengths` says how many points of the columns belong to each of `series_ids`. Flat, because a slow trainer sends one
    point of each of many series at a time: arrays for each of them would take twenty times what the points do.
    """

    sequence: int
    series_ids: npt.NDArray[np.uint64]
    lengths: Integers
    steps: Integers
    times_unix_us: Integers
    values: Doubles
    new_definitions: tuple[SeriesDefinition, ...]

    @property
    def row_count(self) -> int:
        """Points."""
        return len(self.steps)

    @property
    def size_bytes(self) -> int:
        """What the points take in memory, about."""
        return self.row_count * POINT_BYTES + len(self.series_ids) * SERIES_BYTES

    @property
    def memory_bytes(self) -> int:
        """What the message takes while it waits; very small ones take far more than on the wire."""
        return MESSAGE_MEMORY_BYTES + self.size_bytes

    @cached_property
    def columns(self) -> tuple[PointColumns, ...]:
        """The points by series, as those who follow them want them. Made once."""
        ends = np.cumsum(self.lengths).tolist()
        return tuple(
            PointColumns(
                series_id=series_id,
                steps=self.steps[start:end],
                times_unix_us=self.times_unix_us[start:end],
                values=self.values[start:end],
            )
            for series_id, start, end in zip(self.series_ids.tolist(), [0, *ends], ends, strict=False)
        )


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

    @property
    def sizes_bytes(self) -> list[int]:
        """What each line takes on the wire, at most."""
        texts = zip(self.texts, self.sources, strict=True)
        return [text_bytes(text) + text_bytes(source) + LINE_OVERHEAD_BYTES for text, source in texts]

    def pieces(self, bytes_max: int) -> Iterator[Lines]:
        """The lines in pieces of about `bytes_max` at most, for messages that are not too large."""
        start, size_bytes = 0, 0
        for index, line_bytes in enumerate(self.sizes_bytes):
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

    @property
    def row_count(self) -> int:
        """Lines."""
        return len(self.lines.numbers)

    @property
    def size_bytes(self) -> int:
        """What the lines take on the wire, about."""
        return sum(self.lines.sizes_bytes)

    @property
    def memory_bytes(self) -> int:
        """What the message takes while it waits."""
        characters = sum(map(len, self.lines.texts)) + sum(map(len, self.lines.sources))
        return MESSAGE_MEMORY_BYTES + LINE_MEMORY_BYTES * self.row_count + characters


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Message:
    """One message of a writer, with what is known of the writer: how rows travel from a stream to followers."""

    key: WriterKey
    rows: PointRows | LineRows
    from_step: int
    """The first step of the attempt."""
    definitions: Mapping[int, SeriesDefinition]
    """Of all series that the writer has named, by id."""


def text_bytes(text: str) -> int:
    """Of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


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
    """Raise InvalidArgument where the filter has no RE2 expression. Arrow and ClickHouse both use RE2.

    An expression may take a while to compile: not on an event loop.
    """
    if not wanted.regex:
        return
    try:
        pc.match_substring_regex(pa.array([""]), wanted.expression)
    except pa.ArrowInvalid as error:
        description = f"is no RE2 expression: {error}"
        raise InvalidArgument([Violation(field="filter.regex", description=description)]) from error
