"""Stored rows: lanes for queries, the one thread for inserts, and what is recorded about writers.

Reads have clients of their own, so that no query waits for an insert, and lanes, so that none waits for another kind's.
Inserts never overlap: one thread is faster than several, and what was inserted before is visible to what comes after.
Queries on points stand in `series`, those on lines in `lines`.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from services.metrics.clickhouse.engine import Engine
from services.metrics.clickhouse.lane import Lane, LaneLimits, Readers
from services.metrics.cursor import Places
from services.metrics.point import SeriesDefinition
from services.metrics.writer_key import Finish, Progress, WriterKey, WriterKind, WriterRecord

Made = TypeVar("Made")

TABLES = {WriterKind.POINTS: "points", WriterKind.LINES: "logs"}

PROGRESS = """
SELECT max(seq) AS sequence, {line_number} AS line_number FROM {table}
WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND rank = {{rank:UInt16}}
GROUP BY job_uid, attempt, rank
"""
LINE_NUMBERS = {WriterKind.POINTS: "0", WriterKind.LINES: "max(number)"}
STORED_PLACES = """
SELECT attempt, rank, max({place}) AS place FROM {table}
WHERE job_uid = {{job_uid:String}} GROUP BY attempt, rank
"""
WRITERS = """
SELECT attempt, rank, max(epoch) AS epoch FROM writers
WHERE job_uid = {job_uid:String} AND kind = {kind:String} GROUP BY attempt, rank
"""
FINISHES = """
SELECT attempt, rank, max(last_seq) AS last_sequence, argMax(rows_dropped, last_seq) AS dropped FROM finishes
WHERE job_uid = {job_uid:String} AND kind = {kind:String} GROUP BY attempt, rank
"""
GAPS = """
SELECT attempt, rank FROM gaps
WHERE job_uid = {job_uid:String} AND kind = {kind:String} GROUP BY attempt, rank
"""
SERIES_IDS = "SELECT DISTINCT series_id FROM series WHERE job_uid = {job_uid:String}"


class Store:
    """ClickHouse, from the event loop. Raises Unavailable (METRICS_STORE_UNAVAILABLE) where it does not answer."""

    def __init__(self, engine: Engine, *, lanes: LaneLimits) -> None:
        self._inserter = engine.connect()
        self._insert_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="insert")
        self._lanes = {
            lane: Readers(engine, lane, readers=lanes.readers[lane], wait_seconds=lanes.wait_seconds) for lane in Lane
        }
        self._lane = Lane.QUERY
        self._recorded: list[Callable[[Iterable[str]], None]] = []
        self.is_shared = engine.is_shared
        """Other processes may write what is read here."""

    def on_recorded(self, listener: Callable[[Iterable[str]], None]) -> None:
        """Tell it of the jobs of which this process has recorded writers or series, or has tried to."""
        self._recorded.append(listener)

    def on(self, lane: Lane) -> Store:
        """The same store, read through this lane."""
        other = copy.copy(self)
        other._lane = lane
        return other

    async def read(self, sql: str, **parameters: Any) -> pa.Table:
        """A query's rows."""
        return await self._lanes[self._lane].read(_as_it_is, sql, parameters)

    async def read_into(self, make: Callable[[pa.Table], Made], sql: str, **parameters: Any) -> Made:
        """What `make` makes of a query's rows, off the event loop."""
        return await self._lanes[self._lane].read(make, sql, parameters)

    async def insert(self, table: str, rows: pa.Table) -> None:
        """Insert the rows as one block. They are stored when this returns, and never will be when it raises."""
        await asyncio.get_running_loop().run_in_executor(self._insert_thread, self._inserter.insert, table, rows)

    async def insert_rows(self, kind: WriterKind, rows: pa.Table, *, deadline_unix_us: int | None) -> None:
        """The same for the rows of writers, which the engine takes until the deadline."""
        insert = partial(self._inserter.insert, TABLES[kind], rows, deadline_unix_us=deadline_unix_us)
        await asyncio.get_running_loop().run_in_executor(self._insert_thread, insert)

    def close(self) -> None:
        """After the last call. Waits for what is running."""
        self._insert_thread.shutdown()
        self._inserter.close()
        for readers in self._lanes.values():
            readers.close()

    async def progress(self, key: WriterKey) -> Progress:
        """What of a writer is stored."""
        sql = PROGRESS.format(table=TABLES[key.kind], line_number=LINE_NUMBERS[key.kind])
        rows = await self.read(sql, job_uid=key.job_uid, attempt=key.attempt, rank=key.rank)
        return Progress(**rows.to_pylist()[0]) if rows.num_rows else Progress(sequence=0, line_number=0)

    async def stored_sequences(self, job_uid: str, kind: WriterKind) -> Places:
        """The highest sequence of each writer of a job."""
        return await self._places(job_uid, kind, "seq")

    async def stored_numbers(self, job_uid: str) -> Places:
        """The highest line number of each attempt and rank of a job."""
        return await self._places(job_uid, WriterKind.LINES, "number")

    async def writer_records(self, job_uid: str, kind: WriterKind) -> list[WriterRecord]:
        """What is recorded about each writer of a job that was opened."""
        # Ends first: what an end stands for was recorded before it, so the other answers cannot be older than it.
        finishes = await self.read(FINISHES, job_uid=job_uid, kind=kind.value)
        writers, gaps, stored = await asyncio.gather(
            self.read(WRITERS, job_uid=job_uid, kind=kind.value),
            self.read(GAPS, job_uid=job_uid, kind=kind.value),
            self.stored_sequences(job_uid, kind),
        )
        ends = {
            (row["attempt"], row["rank"]): Finish(last_sequence=row["last_sequence"], rows_dropped=row["dropped"])
            for row in finishes.to_pylist()
        }
        with_gaps = {(row["attempt"], row["rank"]) for row in gaps.to_pylist()}
        return [
            WriterRecord(
                attempt=attempt,
                rank=rank,
                epoch=epoch,
                stored_sequence=stored.get((attempt, rank), 0),
                finish=ends.get((attempt, rank)),
                has_gaps=(attempt, rank) in with_gaps,
            )
            for attempt, rank, epoch in sorted(tuple(row.values()) for row in writers.to_pylist())
        ]

    async def writer_record(self, key: WriterKey) -> WriterRecord | None:
        """What is recorded about one writer; None where it was never opened."""
        records = await self.writer_records(key.job_uid, key.kind)
        return next((r for r in records if (r.attempt, r.rank) == (key.attempt, key.rank)), None)

    async def record_writer(self, key: WriterKey, *, epoch: int, from_step: int, now: datetime) -> None:
        """Record that a writer was opened, with the first step of its attempt."""
        try:
            await self.insert("writers", _row(key, now, epoch=epoch, from_step=from_step))
        finally:
            self._tell([key.job_uid])

    async def record_gap(self, key: WriterKey, *, first: int, last: int, now: datetime) -> None:
        """Record that these messages will never come."""
        await self.insert("gaps", _row(key, now, first_seq=first, last_seq=last))

    async def record_finish(self, key: WriterKey, finish: Finish, *, now: datetime) -> None:
        """Record the end of a writer."""
        row = _row(key, now, last_seq=finish.last_sequence, rows_dropped=finish.rows_dropped)
        await self.insert("finishes", row)

    async def series_ids(self, job_uid: str) -> set[int]:
        """The ids of all series of a job that are recorded."""
        return set((await self.read(SERIES_IDS, job_uid=job_uid))["series_id"].to_pylist())

    async def record_series(self, definitions: Iterable[tuple[str, SeriesDefinition]]) -> None:
        """Record what series are, by job uid. A second record of one does no harm."""
        pairs = list(definitions)
        rows = {
            "job_uid": [job_uid for job_uid, _ in pairs],
            "series_id": pa.array([d.series_id for _, d in pairs], pa.uint64()),
            "name": [d.name for _, d in pairs],
            "context": pa.array([list(d.context) for _, d in pairs], pa.map_(pa.string(), pa.string())),
            "unit": [d.unit for _, d in pairs],
        }
        try:
            await self.insert("series", pa.table(rows))
        finally:
            self._tell(sorted({job_uid for job_uid, _ in pairs}))

    def _tell(self, job_uids: Sequence[str]) -> None:
        for listener in self._recorded:
            listener(job_uids)

    async def _places(self, job_uid: str, kind: WriterKind, place: str) -> Places:
        rows = await self.read(STORED_PLACES.format(table=TABLES[kind], place=place), job_uid=job_uid)
        return {(row["attempt"], row["rank"]): row["place"] for row in rows.to_pylist()}


def _as_it_is(rows: pa.Table) -> pa.Table:
    return rows


def _row(key: WriterKey, now: datetime, **columns: int) -> pa.Table:
    row = {
        "job_uid": [key.job_uid],
        "attempt": pa.array([key.attempt], pa.uint16()),
        "rank": pa.array([key.rank], pa.uint16()),
        "kind": [key.kind.value],
        "time_unix_us": [int(now.timestamp() * 1_000_000)],
    }
    return pa.table({**row, **{name: [value] for name, value in columns.items()}})
