"""An attempt's points and lines on their way into its spool: gathered into batches, numbered, never refused.

One folder on disk for each attempt, with a spool of points, one of lines, and the definitions of all series so far,
which every opening of the writer sends again. The folder outlives attempt and agent, until everything in it is stored.

A spool that is full never stops the training: what does not fit is dropped and counted, and lines before and after the
gap say so. Not safe for threads: the event loop alone uses it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sihlai.logs.v1 import log_line_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest
from sihlai.metrics.v1 import series_pb2

from runner.agent.decision import AttemptKey
from runner.agent.lines import pieces_of
from runner.agent.spool import Record, SpoolFull, WriterSpool, framed, whole_records
from runner.report import LINE_CHARACTERS_MAX
from services.chassis.log import get_logger

log = get_logger(__name__)

POINTS_A_BATCH_MAX = 2_000
LINES_A_BATCH_MAX = 200
LINE_BYTES_A_BATCH_MAX = 64 * 2**10
GAP_RESERVE_BYTES = 4_096
"""Kept free below a spool's limit, for the line that tells of the gap."""
TAIL_LINES = 20
TAIL_CHARACTERS_A_LINE = 500

SPOOL_FILE = "spool.json"
SERIES_FILE = "series.records"
CLOSED_FILE = "closed"

UNITS = {"_seconds": "s", "_bytes": "bytes", "_percent": "%", "_celsius": "°C", "_watts": "W"}
"""Units of series by the end of their names."""


@dataclass(frozen=True, kw_only=True)
class SpoolLimits:
    """Sizes and waits of a spool; the configuration has a setting for each."""

    bytes_max: int
    segment_bytes_max: int
    batch_points_min: int
    batch_seconds_max: float


class Spool:
    """What an attempt has written and what of it is not stored yet: two writers, rank 0."""

    def __init__(self, folder: Path, *, job: str, key: AttemptKey, attempt: int, limits: SpoolLimits) -> None:
        """Open the attempt's spool, or begin it. Raises OSError where the disk does not let it."""
        self.folder = folder
        self.job = job
        self.key = key
        self.attempt = attempt
        self.points = _writer(folder / "points", limits)
        self.lines = _writer(folder / "lines", limits)
        self.closed = (folder / CLOSED_FILE).exists()
        if self.closed:
            self.points.close()
            self.lines.close()
        self.series: dict[int, series_pb2.SeriesDefinition] = {}
        self._read_series()
        if not (folder / SPOOL_FILE).exists():
            content = {"job": job, "job_uid": key.job_uid, "epoch": key.epoch, "attempt": attempt}
            draft = folder / f".{SPOOL_FILE}"
            draft.write_text(json.dumps(content))
            draft.replace(folder / SPOOL_FILE)

    @classmethod
    def found(cls, folder: Path, limits: SpoolLimits) -> Spool:
        """The spool that an earlier agent left. Raises ValueError or KeyError where it does not say whose it is."""
        content = json.loads((folder / SPOOL_FILE).read_text())
        key = AttemptKey(job_uid=str(content["job_uid"]), epoch=int(content["epoch"]))
        return cls(folder, job=str(content["job"]), key=key, attempt=int(content["attempt"]), limits=limits)

    def add_series(self, definition: series_pb2.SeriesDefinition) -> None:
        """Keep a series with the spool. Raises SpoolFull where the disk is full: then it is not kept."""
        record = framed(Record(0, 0, definition.SerializeToString()))
        path = self.folder / SERIES_FILE
        size_bytes = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(record) != len(record):
                    raise OSError(28, "the disk is full")
        except OSError as error:
            if path.exists():
                os.truncate(path, size_bytes)
            raise SpoolFull(f"{path.name} cannot be written: {error.strerror}") from error
        self.series[definition.series_id] = definition

    def close(self) -> None:
        """Nothing is appended any more. What is there is kept until it is stored."""
        if not self.closed:
            self.closed = True
            self.points.close()
            self.lines.close()
            (self.folder / CLOSED_FILE).touch()

    def sync(self) -> None:
        """Make what was appended survive a loss of power; may run in another thread."""
        self.points.sync()
        self.lines.sync()

    def delete(self) -> None:
        """Everything is stored, or nobody wants it any more."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_series(self) -> None:
        path = self.folder / SERIES_FILE
        if not path.exists():
            return
        records = whole_records(path.read_bytes())
        os.truncate(path, sum(len(framed(record)) for record in records))
        for record in records:
            definition = series_pb2.SeriesDefinition.FromString(record.body)
            self.series[definition.series_id] = definition


class Recorder:
    """Where everybody on this runner puts an attempt's points and lines. `on_append` is called after each batch."""

    def __init__(
        self, spool: Spool, *, limits: SpoolLimits, now_unix_us: Callable[[], int], on_append: Callable[[], None]
    ) -> None:
        self.spool = spool
        self._limits = limits
        self._now_unix_us = now_unix_us
        self._on_append = on_append
        self._columns: dict[int, series_pb2.PointColumns] = {}
        self._points_pending = 0
        self._ids = {_identity(each.name, each.context): each.series_id for each in spool.series.values()}
        self._new_series: list[series_pb2.SeriesDefinition] = []
        self._batch = ingest.LineBatch()
        self._line_bytes_pending = 0
        self._gap_rows = {"points": 0, "lines": 0}
        self._flush_timer: asyncio.TimerHandle | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    def points(
        self,
        values: Mapping[str, float],
        *,
        step: int,
        time_unix_us: int | None = None,
        context: Mapping[str, str] | None = None,
    ) -> None:
        """Values of one step by series name."""
        time_unix_us = self._now_unix_us() if time_unix_us is None else time_unix_us
        for name, value in values.items():
            series_id = self._series_id(name, context or {})
            if series_id is None:
                continue
            columns = self._columns.get(series_id)
            if columns is None:
                columns = self._columns[series_id] = series_pb2.PointColumns(series_id=series_id)
            columns.steps.append(step)
            columns.times_unix_us.append(time_unix_us)
            columns.values.append(value)
            self._points_pending += 1
            if self._points_pending >= POINTS_A_BATCH_MAX:
                self._flush_points()
        if self._points_pending >= self._limits.batch_points_min:
            self._flush_points()
        self._flush_soon()

    def line(
        self,
        text: str,
        *,
        level: log_line_pb2.LogLevel.ValueType = log_line_pb2.LOG_LEVEL_INFO,
        source: str = "agent",
        stream: log_line_pb2.LogStream.ValueType = log_line_pb2.LOG_STREAM_LOG,
        time_unix_us: int | None = None,
        continued: bool = False,
    ) -> None:
        """A line of the job's log; a long text, or one of several lines, becomes several. `continued`: more follows."""
        time_unix_us = self._now_unix_us() if time_unix_us is None else time_unix_us
        text = text.encode(errors="replace").decode()  # a path may hold what UTF-8 cannot
        for piece in pieces_of(text, LINE_CHARACTERS_MAX):
            self._batch.times_unix_us.append(time_unix_us)
            self._batch.levels.append(level)
            self._batch.sources.append(source)
            self._batch.streams.append(stream)
            self._batch.lines.append(piece.text)
            self._batch.continued.append(piece.continued or continued)
            self._line_bytes_pending += len(piece.text.encode())
            if source == "trainer":
                self._tail.append(piece.text[:TAIL_CHARACTERS_A_LINE])
            if len(self._batch.lines) >= LINES_A_BATCH_MAX or self._line_bytes_pending >= LINE_BYTES_A_BATCH_MAX:
                self._flush_lines()
        self._flush_soon()

    def tail(self) -> str:
        """The trainer's last lines."""
        return "\n".join(self._tail)

    def flush(self) -> None:
        """Put on disk what is gathered."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._flush_points()
        self._flush_lines()

    def close(self) -> None:
        """Nothing follows. How many rows were dropped, if any, is the last line."""
        self.flush()
        self._note_gap_end("points")
        self._note_gap_end("lines")
        self.spool.close()
        self._on_append()

    def _series_id(self, name: str, context: Mapping[str, str]) -> int | None:
        """The id, known to the spool from now on; None where the disk is full and the point is dropped."""
        identity = _identity(name, context)
        series_id = self._ids.get(identity)
        if series_id is not None:
            return series_id
        definition = series_pb2.SeriesDefinition(
            series_id=series_id_of(self.spool.key.job_uid, name, context),
            name=name,
            context=context,
            unit=unit_of(name),
        )
        try:
            self.spool.add_series(definition)
        except SpoolFull as full:
            self._drop("points", 1, full)
            return None
        self._ids[identity] = definition.series_id
        self._new_series.append(definition)
        return definition.series_id

    def _flush_soon(self) -> None:
        if self._flush_timer is None and (self._points_pending or self._batch.lines):
            self._flush_timer = asyncio.get_running_loop().call_later(self._limits.batch_seconds_max, self.flush)

    def _flush_points(self) -> None:
        if not self._points_pending:
            return
        batch = ingest.PointBatch(
            sequence=self.spool.points.next_sequence, new_series=self._new_series, columns=self._columns.values()
        )
        rows = self._points_pending
        self._columns.clear()
        self._points_pending = 0
        try:
            self.spool.points.append(batch.SerializeToString(), rows=rows)
        except SpoolFull as full:
            self._drop("points", rows, full)
            return
        self._new_series.clear()
        self._note_gap_end("points")
        self._on_append()

    def _flush_lines(self) -> None:
        if not self._batch.lines:
            return
        batch, self._batch = self._batch, ingest.LineBatch()
        self._line_bytes_pending = 0
        try:
            self._append_lines(batch, reserve_bytes=GAP_RESERVE_BYTES)
        except SpoolFull as full:
            self._drop("lines", len(batch.lines), full)
            return
        self._note_gap_end("lines")

    def _append_lines(self, batch: ingest.LineBatch, *, reserve_bytes: int = 0) -> None:
        spool = self.spool.lines
        batch.sequence = spool.next_sequence
        batch.first_number = spool.rows + 1
        spool.append(batch.SerializeToString(), rows=len(batch.lines), reserve_bytes=reserve_bytes)
        self._on_append()

    def _drop(self, what: Literal["points", "lines"], rows: int, full: SpoolFull) -> None:
        spool = self.spool.points if what == "points" else self.spool.lines
        spool.rows_dropped += rows
        first = not self._gap_rows[what]
        self._gap_rows[what] += rows
        if first:
            log.warning("spool_full", attempt=str(self.spool.key), problem=str(full))
            self._append_gap_line(f"the spool is full ({full}): {what} are dropped from here on")

    def _note_gap_end(self, what: Literal["points", "lines"]) -> None:
        if rows := self._gap_rows[what]:
            self._gap_rows[what] = 0
            log.warning("spool_gap_ended", attempt=str(self.spool.key), what=what, rows_dropped=rows)
            self._append_gap_line(f"{rows} {what} were dropped before this line, because the spool was full")

    def _append_gap_line(self, text: str) -> None:
        """Written from what is kept free below the limit; where even that is gone, the count in `finish` has to do."""
        batch = ingest.LineBatch(
            times_unix_us=[self._now_unix_us()],
            levels=[log_line_pb2.LOG_LEVEL_WARNING],
            sources=["agent"],
            streams=[log_line_pb2.LOG_STREAM_LOG],
            lines=[text],
            continued=[False],
        )
        try:
            self._append_lines(batch)
        except SpoolFull as full:
            log.warning("gap_not_noted", attempt=str(self.spool.key), problem=str(full))


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


def _writer(folder: Path, limits: SpoolLimits) -> WriterSpool:
    return WriterSpool(folder, bytes_max=limits.bytes_max, segment_bytes_max=limits.segment_bytes_max)
