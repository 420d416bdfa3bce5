"""The newest lines that found no room on the disk, kept in memory for when there is some, at the latest for the end.

Warnings and errors stay longest: of all else only the newest quarter is kept for them to have room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sihlai.logs.v1 import log_line_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest

LINE_BYTES_EXTRA = 32
"""What a line takes beside its text, at most: time, level, stream, lengths."""
CHARACTERS_MAX = 4_096
"""Of one line; a longer one is kept without its end."""


class HeldLine(NamedTuple):
    """One line. `order` grows from line to line."""

    order: int
    time_unix_us: int
    level: log_line_pb2.LogLevel.ValueType
    source: str
    stream: log_line_pb2.LogStream.ValueType
    text: str
    continued: bool

    @property
    def size_bytes(self) -> int:
        """What it takes in a batch, at most."""
        return len(self.text.encode()) + len(self.source.encode()) + LINE_BYTES_EXTRA


class LastLines:
    """At most `bytes_max` of lines."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._grave: deque[HeldLine] = deque()
        self._other: deque[HeldLine] = deque()
        self._grave_bytes = 0
        self._other_bytes = 0
        self._order = 0

    def __len__(self) -> int:
        return len(self._grave) + len(self._other)

    def add(self, batch: ingest.LineBatch) -> None:
        """Keep the batch's lines; older ones go for them."""
        for time, level, source, stream, text, continued in _lines_of(batch):
            self._order += 1
            self._keep(HeldLine(self._order, time, level, source, stream, text[:CHARACTERS_MAX], continued))

    def add_all(self, lines: Iterable[HeldLine]) -> None:
        """Keep lines that came after all of these."""
        for line in lines:
            self._order += 1
            self._keep(line._replace(order=self._order))

    def take(self) -> list[HeldLine]:
        """All lines, oldest first; none is left."""
        lines = sorted([*self._grave, *self._other])
        self._grave.clear()
        self._other.clear()
        self._grave_bytes = self._other_bytes = 0
        return lines

    def put_back(self, lines: Iterable[HeldLine]) -> None:
        """Keep lines that were just taken."""
        for line in lines:
            self._keep(line)

    def _keep(self, line: HeldLine) -> None:
        if line.level >= log_line_pb2.LOG_LEVEL_WARNING:
            self._grave.append(line)
            self._grave_bytes += line.size_bytes
        else:
            self._other.append(line)
            self._other_bytes += line.size_bytes
        while self._grave_bytes + self._other_bytes > self._bytes_max:
            if self._grave and self._other_bytes <= self._bytes_max // 4:
                self._grave_bytes -= self._grave.popleft().size_bytes
            else:
                self._other_bytes -= self._other.popleft().size_bytes


def batch_of(lines: Iterable[HeldLine]) -> ingest.LineBatch:
    """The lines as a batch that is not numbered yet."""
    batch = ingest.LineBatch()
    for line in lines:
        batch.times_unix_us.append(line.time_unix_us)
        batch.levels.append(line.level)
        batch.sources.append(line.source)
        batch.streams.append(line.stream)
        batch.lines.append(line.text)
        batch.continued.append(line.continued)
    return batch


def _lines_of(
    batch: ingest.LineBatch,
) -> Iterator[tuple[int, log_line_pb2.LogLevel.ValueType, str, log_line_pb2.LogStream.ValueType, str, bool]]:
    columns = (batch.times_unix_us, batch.levels, batch.sources, batch.streams, batch.lines, batch.continued)
    return zip(*columns, strict=True)
