"""Where everybody on a runner puts an attempt's points and lines: checked, gathered into batches, handed to the spool.

Nothing that is handed in here is ever refused by metrics later: what does not fit is made to fit, or dropped and
counted, with one warning for each kind. The event loop alone uses this, and nothing here waits for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping

from sihlai.logs.v1 import log_line_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest
from sihlai.metrics.v1 import series_pb2

from runner.agent.telemetry.definition import Dictionary, SeriesRefused
from runner.agent.telemetry.journal import Journal
from runner.agent.telemetry.lines import pieces_of
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.report import LINE_CHARACTERS_MAX
from services.chassis.log import get_logger

log = get_logger(__name__)

POINTS_A_BATCH_MAX = 2_000
LINES_A_BATCH_MAX = 200
BATCH_BYTES_MAX = 64 * 2**10
"""Of lines, or of new series, in one batch; the last of them may reach beyond it. Metrics takes twice that always."""
TEXT_CHARACTERS_MAX = 2**20
"""Of one text that is handed in, whatever is in it; the rest is cut off, and said to be."""
SOURCE_CHARACTERS_MAX = 64
TAIL_LINES = 20
TAIL_CHARACTERS_A_LINE = 500
LEVELS = frozenset(log_line_pb2.LogLevel.values())
STEP_MAX = 2**63 - 1
TIME_UNIX_US_MIN = -62_135_596_800_000_000
TIME_UNIX_US_MAX = 253_402_300_799_999_999
"""The years 1 to 9999: what a Timestamp takes."""


class Recorder:
    """One attempt's. `on_append` is called after each batch, in the spools' thread."""

    def __init__(self, spool: Spool, *, now_unix_us: Callable[[], int], on_append: Callable[[], None]) -> None:
        self.spool = spool
        self._limits = spool.disk.limits
        self._now_unix_us = now_unix_us
        self._journal = Journal(spool, now_unix_us=now_unix_us, on_append=on_append)
        self._dictionary = Dictionary(spool.key.job_uid, spool.series.values())
        self._columns: dict[int, series_pb2.PointColumns] = {}
        self._points_pending = 0
        self._batch = ingest.LineBatch()
        self._line_bytes_pending = 0
        self._warned: set[str] = set()
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
        if not -STEP_MAX <= step <= STEP_MAX:
            self._refuse(len(values), "step", f"steps are whole numbers of 64 bits, but {step} was found")
            return
        time_unix_us = self._time(time_unix_us)
        for name, value in values.items():
            try:
                series_id = self._dictionary.series_id(name, context or {})
            except SeriesRefused as refused:
                self._refuse(1, refused.kind, str(refused))
                continue
            columns = self._columns.get(series_id)
            if columns is None:
                columns = self._columns[series_id] = series_pb2.PointColumns(series_id=series_id)
            columns.steps.append(step)
            columns.times_unix_us.append(time_unix_us)
            columns.values.append(value)
            self._points_pending += 1
            if self._points_pending >= POINTS_A_BATCH_MAX or self._dictionary.new_bytes >= BATCH_BYTES_MAX:
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
        time_unix_us = self._time(time_unix_us)
        if level not in LEVELS:
            level = log_line_pb2.LOG_LEVEL_UNSPECIFIED
        source = _unicode(source[:SOURCE_CHARACTERS_MAX])
        if len(text) > TEXT_CHARACTERS_MAX:
            text = (
                f"{text[:TEXT_CHARACTERS_MAX]}\n({len(text) - TEXT_CHARACTERS_MAX} more characters were cut off here)"
            )
        for piece in pieces_of(_unicode(text), LINE_CHARACTERS_MAX):
            self._batch.times_unix_us.append(time_unix_us)
            self._batch.levels.append(level)
            self._batch.sources.append(source)
            self._batch.streams.append(stream)
            self._batch.lines.append(piece.text)
            self._batch.continued.append(piece.continued or continued)
            self._line_bytes_pending += len(piece.text.encode())
            if source == "trainer":
                self._tail.append(piece.text[:TAIL_CHARACTERS_A_LINE])
            if len(self._batch.lines) >= LINES_A_BATCH_MAX or self._line_bytes_pending >= BATCH_BYTES_MAX:
                self._flush_lines()
        self._flush_soon()

    def tail(self) -> str:
        """The trainer's last lines."""
        return "\n".join(self._tail)

    def flush(self) -> None:
        """Hand over to the spool what is gathered."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._flush_points()
        self._flush_lines()

    async def room(self) -> None:
        """Wait while much waits for the disk, but not for one that stands still. Who can be kept waiting asks here."""
        if self._journal.crowded and not self._journal.stalled:
            with contextlib.suppress(TimeoutError):
                await self.spool.disk.writing.run(lambda: None, seconds_max=self._limits.stall_seconds_max)

    async def written(self, seconds_max: float | None = None) -> None:
        """Flush, and wait until it is on the disk, as far as that takes it. Raises TimeoutError."""
        self.flush()
        await self.spool.disk.writing.run(lambda: None, seconds_max=seconds_max)

    def close(self) -> None:
        """Nothing follows. How many rows were dropped, if any, is said before the last lines."""
        self.flush()
        self._journal.close()

    def _time(self, time_unix_us: int | None) -> int:
        if time_unix_us is None or not TIME_UNIX_US_MIN <= time_unix_us <= TIME_UNIX_US_MAX:
            return self._now_unix_us()
        return time_unix_us

    def _refuse(self, rows: int, kind: str, problem: str) -> None:
        """Drop points, with a line for the first of a kind."""
        self._journal.refused(rows)
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("points_refused", attempt=str(self.spool.key), problem=problem)
            self.line(f"points are dropped: {problem}", level=log_line_pb2.LOG_LEVEL_WARNING)

    def _flush_soon(self) -> None:
        if self._flush_timer is None and (self._points_pending or self._batch.lines):
            self._flush_timer = asyncio.get_running_loop().call_later(self._limits.batch_seconds_max, self.flush)

    def _flush_points(self) -> None:
        if self._points_pending:
            batch = ingest.PointBatch(new_series=self._dictionary.take_new(), columns=self._columns.values())
            rows, self._points_pending = self._points_pending, 0
            self._columns.clear()
            self._journal.points(batch, rows)

    def _flush_lines(self) -> None:
        if self._batch.lines:
            batch, self._batch = self._batch, ingest.LineBatch()
            self._line_bytes_pending = 0
            self._journal.lines(batch)


def _unicode(text: str) -> str:
    """The text with what UTF-8 cannot say replaced: a path may hold such."""
    return text if text.isascii() else text.encode(errors="replace").decode()
