"""Batches on their way from the event loop into an attempt's spool: numbered and written in the spools' thread.

A disk that is full or stands still never stops the training: what finds no room is dropped and counted, and lines
before and after the gap say so. The newest lines that found none are kept in memory and are written as soon as there is
room, at the latest at the end, into space that was set aside for them: a traceback so survives a full disk.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from sihlai.logs.v1 import log_line_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest
from sihlai.metrics.v1 import series_pb2

from runner.agent.telemetry.last_lines import LastLines, batch_of
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.space import SpoolFull
from runner.agent.telemetry.spool.writer_spool import WriterSpool
from services.chassis.log import get_logger

log = get_logger(__name__)

RESERVE_BYTES_EXTRA = 1_024
"""For the line that tells of the gap, and for the numbers of the batch."""
STANDS_STILL = "the disk stands still"
_Kind = Literal["points", "lines"]


class Journal:
    """One attempt's, as the event loop sees it. `on_append` is called in the spools' thread."""

    def __init__(self, spool: Spool, *, now_unix_us: Callable[[], int], on_append: Callable[[], None]) -> None:
        self._disk = spool.disk
        self._writing = _Writing(spool, now_unix_us=now_unix_us, on_append=on_append)
        self._lock = threading.Lock()
        """Held for what did not find its way to the thread, and never while the disk is waited for."""
        self._overflow = _Overflow(spool.disk.limits.last_lines_bytes)
        self._overflows = False
        self._refused_rows = 0
        if not spool.closed:
            self._disk.writing.post(self._writing.begin)

    def points(self, batch: ingest.PointBatch, rows: int) -> None:
        """Append points."""
        if not self._post(partial(self._writing.append_points, batch, rows), batch.ByteSize()):
            with self._lock:
                self._overflow.add_points(batch, rows)

    def lines(self, batch: ingest.LineBatch) -> None:
        """Append lines."""
        if not self._post(partial(self._writing.append_lines, batch), batch.ByteSize()):
            with self._lock:
                self._overflow.add_lines(batch)

    def refused(self, rows: int) -> None:
        """Count points that were not fit to be recorded."""
        with self._lock:
            first, self._refused_rows = not self._refused_rows, self._refused_rows + rows
        if first:
            self._disk.writing.post(self._count_refused)

    def close(self) -> None:
        """Nothing follows: what was held back is written now or never."""
        self._disk.writing.post(self._writing.close)

    @property
    def stalled(self) -> bool:
        """Whether the disk stands still."""
        waiting_seconds = time.monotonic() - self._disk.writing.moved_at
        return self._disk.writing.waiting_bytes > 0 and waiting_seconds > self._disk.limits.stall_seconds_max

    @property
    def crowded(self) -> bool:
        """Whether so much waits for the disk that more had better wait too."""
        return self._disk.writing.waiting_bytes > self._disk.limits.waiting_bytes_max // 2

    def _post(self, call: Callable[[], None], size_bytes: int) -> bool:
        """Whether there was room. From the first that found none on, none is looked for until the thread comes by:
        what waits then would overtake what was held back."""
        writing = self._disk.writing
        if not self._overflows and writing.waiting_bytes + size_bytes <= self._disk.limits.waiting_bytes_max:
            writing.post(call, size_bytes)
            return True
        if not self._overflows:
            self._overflows = True
            writing.post(self._take_overflow)
        return False

    def _count_refused(self) -> None:
        """In the spools' thread."""
        with self._lock:
            rows, self._refused_rows = self._refused_rows, 0
        self._writing.count_refused(rows)

    def _take_overflow(self) -> None:
        """In the spools' thread."""
        with self._lock:
            overflow, self._overflow = self._overflow, _Overflow(self._disk.limits.last_lines_bytes)
            self._overflows = False
        self._writing.take_overflow(overflow)


class _Overflow:
    """What found no room in memory on its way to the disk."""

    def __init__(self, last_lines_bytes: int) -> None:
        self.point_rows = 0
        self.line_rows = 0
        self.new_series: list[series_pb2.SeriesDefinition] = []
        self.lines = LastLines(last_lines_bytes)

    def add_points(self, batch: ingest.PointBatch, rows: int) -> None:
        self.point_rows += rows
        self.new_series.extend(batch.new_series)

    def add_lines(self, batch: ingest.LineBatch) -> None:
        self.line_rows += len(batch.lines)
        self.lines.add(batch)


class _Writing:
    """One attempt's, in the spools' thread."""

    def __init__(self, spool: Spool, *, now_unix_us: Callable[[], int], on_append: Callable[[], None]) -> None:
        self._spool = spool
        self._now_unix_us = now_unix_us
        self._on_append = on_append
        self._held_back = LastLines(spool.disk.limits.last_lines_bytes)
        self._gap_rows: dict[_Kind, int] = {"points": 0, "lines": 0}
        self._why = ""
        self._new_series: list[series_pb2.SeriesDefinition] = []
        """Of points that were dropped: the next ones tell of them."""

    def begin(self) -> None:
        self._spool.lines.reserve(self._spool.disk.limits.last_lines_bytes + RESERVE_BYTES_EXTRA)

    def append_points(self, batch: ingest.PointBatch, rows: int) -> None:
        spool = self._spool
        self._new_series += batch.new_series
        try:
            for definition in self._new_series:
                if definition.series_id not in spool.series:
                    spool.add_series(definition)
            del batch.new_series[:]
            batch.new_series.extend(self._new_series)
            batch.sequence, _ = spool.points.next_numbers()
            spool.points.append(batch.SerializeToString(), rows=rows)
        except SpoolFull as full:
            self._drop("points", rows, str(full))
            return
        self._new_series = []
        self._end_points_gap()
        self._on_append()

    def append_lines(self, batch: ingest.LineBatch) -> None:
        try:
            self._write_held_back()
            self._append(batch)
        except SpoolFull as full:
            self._hold_back(batch, str(full))

    def take_overflow(self, overflow: _Overflow) -> None:
        self._new_series += overflow.new_series
        if overflow.point_rows:
            self._drop("points", overflow.point_rows, STANDS_STILL)
        if overflow.line_rows:
            self._held_back.add_all(overflow.lines.take())
            self._drop("lines", overflow.line_rows, STANDS_STILL)

    def count_refused(self, rows: int) -> None:
        self._spool.points.drop(rows)

    def close(self) -> None:
        if not self._gap_rows["lines"]:
            self._end_points_gap()
        try:
            try:
                self._write_held_back()
            except SpoolFull:
                self._write_held_back(reserved=True)
        except SpoolFull as full:
            log.warning("last_lines_lost", attempt=str(self._spool.key), problem=str(full))
        self._spool.close()
        self._on_append()

    def _append(self, batch: ingest.LineBatch, *, urgent: bool = False) -> None:
        append_lines(self._spool.lines, batch, urgent=urgent)
        self._on_append()

    def _write_held_back(self, *, reserved: bool = False) -> None:
        """Where lines were dropped: say how many, and write those that were held back. Raises SpoolFull."""
        rows = self._gap_rows["lines"]
        if not rows:
            return
        held = self._held_back.take()
        batch = ingest.LineBatch()
        dropped = {"lines": rows - len(held), "points": self._gap_rows["points"] if reserved else 0}
        for kind, count in dropped.items():
            if count:
                text = f"{count} {kind} were dropped before this line, because {self._why}"
                batch.MergeFrom(notice(text, self._now_unix_us()))
        batch.MergeFrom(batch_of(held))
        try:
            append_lines(self._spool.lines, batch, reserved=reserved)
        except SpoolFull:
            self._held_back.put_back(held)
            raise
        self._gap_rows["lines"] = 0
        self._spool.lines.drop(-len(held))
        log.warning("spool_gap_ended", attempt=str(self._spool.key), what="lines", rows_dropped=rows - len(held))
        self._on_append()

    def _end_points_gap(self) -> None:
        rows, self._gap_rows["points"] = self._gap_rows["points"], 0
        if rows:
            log.warning("spool_gap_ended", attempt=str(self._spool.key), what="points", rows_dropped=rows)
            self._say(f"{rows} points were dropped before this line, because {self._why}")

    def _drop(self, kind: _Kind, rows: int, why: str) -> None:
        begins = not self._gap_rows[kind]
        self._gap_rows[kind] += rows
        self._why = why
        (self._spool.points if kind == "points" else self._spool.lines).drop(rows)
        if begins:
            log.warning("spool_full", attempt=str(self._spool.key), what=kind, problem=why)
            with contextlib.suppress(SpoolFull):  # then the end of the gap tells of it alone
                self._append(notice(f"{why}: {kind} are dropped from here on", self._now_unix_us()), urgent=True)

    def _hold_back(self, batch: ingest.LineBatch, why: str) -> None:
        self._held_back.add(batch)
        self._drop("lines", len(batch.lines), why)

    def _say(self, text: str) -> None:
        """A line of the agent's, also where there is hardly any room."""
        batch = notice(text, self._now_unix_us())
        try:
            self._append(batch, urgent=True)
        except SpoolFull as full:
            self._hold_back(batch, str(full))


def append_lines(lines: WriterSpool, batch: ingest.LineBatch, *, urgent: bool = False, reserved: bool = False) -> None:
    """Number the batch and append it; in the spools' thread. Raises SpoolFull."""
    batch.sequence, batch.first_number = lines.next_numbers()
    if reserved:
        lines.append_reserved(batch.SerializeToString(), rows=len(batch.lines))
    else:
        lines.append(batch.SerializeToString(), rows=len(batch.lines), urgent=urgent)


def notice(text: str, time_unix_us: int) -> ingest.LineBatch:
    """A warning of the agent's, not numbered yet."""
    return ingest.LineBatch(
        times_unix_us=[time_unix_us],
        levels=[log_line_pb2.LOG_LEVEL_WARNING],
        sources=["agent"],
        streams=[log_line_pb2.LOG_STREAM_LOG],
        lines=[text],
        continued=[False],
    )
