"""The queue before ClickHouse: messages wait here, are put together into blocks, and are settled one way or the other.

A message is in one block, whole. A block is inserted at once when it is large, when somebody watches one of its jobs,
or when nothing was inserted for a while; small inserts cost as much as large ones, so otherwise they wait a moment.

When an insert fails, everything that waits is refused with it: a later message of the same writer must never be stored
over one that was lost, because the highest stored sequence is taken for the end of all that is stored.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from services.chassis.errors import SihlaiError
from services.chassis.log import get_logger
from services.metrics.point import SeriesDefinition
from services.metrics.rows import LineRows, PointRows
from services.metrics.store import Store
from services.metrics.writer import WriterKey

log = get_logger(__name__)


class Waiting(Protocol):
    """Who put a message into the queue, and hears how it ended. Exactly one of the two is called, on the loop."""

    def stored(self, entry: Entry) -> None:
        """The message is stored."""

    def refused(self, entry: Entry, error: SihlaiError) -> None:
        """The message is not stored and never will be."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Entry:
    """A message in the queue."""

    key: WriterKey
    rows: PointRows | LineRows
    size_bytes: int
    sender: Waiting
    from_step: int
    """The first step of the attempt."""
    definitions: Mapping[int, SeriesDefinition]
    """Of all series that the writer has named, by id."""


@dataclass(frozen=True, kw_only=True)
class BlockLimits:
    """When a block is large enough, and how long a smaller one waits after the one before."""

    rows: int
    rows_max: int
    seconds: float
    watched_seconds: float


class Inserter:
    """The queue and the loop that empties it. Senders bound the queue: they put no more than they have credit for."""

    def __init__(
        self,
        store: Store,
        *,
        limits: BlockLimits,
        is_watched: Callable[[WriterKey], bool],
        publish: Callable[[Sequence[Entry]], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._limits = limits
        self._is_watched = is_watched
        self._publish = publish
        self._monotonic = monotonic
        self._entries: deque[Entry] = deque()
        self._rows = 0
        self._watched = False
        self._at_once = False
        self._changed = asyncio.Event()
        self._inserted_at = -limits.seconds

    def put(self, entry: Entry) -> None:
        """Add a message. Messages of one writer are stored in the order in which they are put."""
        self._entries.append(entry)
        self._rows += entry.rows.row_count
        watched = self._is_watched(entry.key)
        # The loop is woken only for what changes when the next block is due: it costs more than the put.
        if len(self._entries) == 1 or self._rows >= self._limits.rows or watched > self._watched:
            self._changed.set()
        self._watched |= watched

    def flush(self) -> None:
        """Do not wait for more: somebody waits for what is here."""
        self._at_once = True
        self._changed.set()

    async def run(self) -> None:
        """Insert until cancelled. What still waits then is lost to this process, and kept by who sent it."""
        while True:
            while (pause := self._pause()) is None or pause > 0:
                self._changed.clear()
                try:
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                except TimeoutError:
                    break
            if self._entries:
                await self._insert(self._taken())

    def _pause(self) -> float | None:
        """How long the next block must wait still; None where there is nothing to insert."""
        if not self._entries:
            self._at_once = False
            return None
        if self._at_once or self._rows >= self._limits.rows:
            return 0
        interval = self._limits.watched_seconds if self._watched else self._limits.seconds
        return self._inserted_at + interval - self._monotonic()

    def _taken(self) -> list[Entry]:
        taken = [self._entries.popleft()]
        rows = taken[0].rows.row_count
        while self._entries and rows + self._entries[0].rows.row_count <= self._limits.rows_max:
            taken.append(self._entries.popleft())
            rows += taken[-1].rows.row_count
        self._rows -= rows
        self._watched = any(self._is_watched(entry.key) for entry in self._entries)
        return taken

    async def _insert(self, entries: list[Entry]) -> None:
        points = [e for e in entries if isinstance(e.rows, PointRows)]
        lines = [e for e in entries if isinstance(e.rows, LineRows)]
        settled: list[Entry] = []
        try:
            definitions = [(e.key.job_uid, d) for e, rows in _point_rows(points) for d in rows.new_definitions]
            if definitions:
                await self._store.record_series(definitions)
            for table, part, make in (("points", points, point_block), ("logs", lines, line_block)):
                if part:
                    await self._store.insert(table, await asyncio.to_thread(make, part))
                    settled += part
                    self._settle(part)
        except SihlaiError as error:
            self._refuse([e for e in entries if e not in settled], error)
        self._inserted_at = self._monotonic()

    def _settle(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            entry.sender.stored(entry)
        self._publish(entries)

    def _refuse(self, entries: Iterable[Entry], error: SihlaiError) -> None:
        refused = [*entries, *self._entries]
        self._entries.clear()
        self._rows = 0
        log.warning("block_refused", messages=len(refused), reason=error.reason.value)
        for entry in refused:
            entry.sender.refused(entry, error)


def point_block(entries: Sequence[Entry]) -> pa.Table:
    """The rows of messages of points."""
    pairs = [(entry, columns) for entry, rows in _point_rows(entries) for columns in rows.columns]
    lengths = np.array([len(columns.steps) for _, columns in pairs])
    message_lengths = [entry.rows.row_count for entry in entries]
    return pa.table(
        {
            **_writer_columns(entries, message_lengths),
            "series_id": np.repeat(np.array([columns.series_id for _, columns in pairs], np.uint64), lengths),
            "step": np.concatenate([columns.steps for _, columns in pairs]),
            "time_unix_us": np.concatenate([columns.times_unix_us for _, columns in pairs]),
            "value": np.concatenate([columns.values for _, columns in pairs]),
        }
    )


def line_block(entries: Sequence[Entry]) -> pa.Table:
    """The rows of messages of lines."""
    parts = [entry.rows.lines for entry in entries if isinstance(entry.rows, LineRows)]
    return pa.table(
        {
            **_writer_columns(entries, [entry.rows.row_count for entry in entries]),
            "number": pa.array([number for part in parts for number in part.numbers], pa.uint64()),
            "time_unix_us": pa.array([time for part in parts for time in part.times_unix_us], pa.int64()),
            "level": pa.array([level for part in parts for level in part.levels], pa.uint8()),
            "source": pa.array([source for part in parts for source in part.sources]).dictionary_encode(),
            "stream": pa.array([stream for part in parts for stream in part.streams], pa.uint8()),
            "continued": pa.array([flag for part in parts for flag in part.continued], pa.bool_()),
            "line": pa.array([text for part in parts for text in part.texts], pa.string()),
        }
    )


def _point_rows(entries: Sequence[Entry]) -> list[tuple[Entry, PointRows]]:
    return [(entry, entry.rows) for entry in entries if isinstance(entry.rows, PointRows)]


def _writer_columns(entries: Sequence[Entry], lengths: Sequence[int]) -> dict[str, pa.Array]:
    job_uids = sorted({entry.key.job_uid for entry in entries})
    place = {job_uid: index for index, job_uid in enumerate(job_uids)}
    indexes = np.repeat(np.array([place[entry.key.job_uid] for entry in entries], np.int32), lengths)
    return {
        "job_uid": pa.DictionaryArray.from_arrays(pa.array(indexes), pa.array(job_uids)),
        "attempt": pa.array(np.repeat(np.array([entry.key.attempt for entry in entries], np.uint16), lengths)),
        "rank": pa.array(np.repeat(np.array([entry.key.rank for entry in entries], np.uint16), lengths)),
        "seq": pa.array(np.repeat(np.array([entry.rows.sequence for entry in entries], np.uint64), lengths)),
    }
