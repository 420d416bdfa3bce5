"""Queries on lines. The filters here and in `rows.matching_lines` make the same choice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from services.metrics.clickhouse.store import Store
from services.metrics.cursor import Places
from services.metrics.log import SOURCE_CHARACTERS_MAX, LogFilter
from services.metrics.rows import LINE_OVERHEAD_BYTES, Lines

# Of lines that are too long for one page together only the first come: `total` tells that there are more.
PAGE = """
SELECT number, time_unix_us, level, source, stream, continued, line, total FROM (
    SELECT
        *,
        count() OVER () AS total,
        sum(length(line) + length(source) + {{overhead:UInt64}}) OVER (ORDER BY number ROWS UNBOUNDED PRECEDING)
            - length(line) - length(source) AS bytes_before
    FROM (
        SELECT number, time_unix_us, level, source, stream, continued, line FROM logs
        WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND rank = {{rank:UInt16}}
          AND number > {{after:UInt64}} AND number <= {{upto:UInt64}}{conditions}
        ORDER BY number LIMIT {{lines:UInt32}}
    )
) WHERE bytes_before <= {{bytes:UInt64}} ORDER BY number
"""
NEWEST = """
SELECT rank, number, time_unix_us FROM logs
WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND ({windows}){conditions}
ORDER BY time_unix_us DESC, rank DESC, number DESC LIMIT {{lines:UInt32}}
"""
OLDEST = """
SELECT rank, min(time_unix_us) AS oldest FROM logs
WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND ({windows}) GROUP BY rank
"""
# The index on the times leaves out what is older.
SINCE = """
SELECT attempt, rank, min(number) AS first FROM logs
WHERE job_uid = {job_uid:String} AND time_unix_us >= {time_unix_us:Int64} GROUP BY attempt, rank
"""
# The expressions are those of the projection `fields`, letter by letter: else it is not used.
FIELDS = """
SELECT
    groupUniqArray(source) AS sources,
    groupUniqArray(rank) AS ranks,
    groupUniqArray(stream) AS streams,
    groupUniqArray(level) AS levels,
    groupUniqArray(attempt) AS attempts
FROM (
    SELECT attempt, rank, level, stream, source FROM logs
    WHERE job_uid = {job_uid:String} GROUP BY job_uid, attempt, rank, level, stream, source
)
"""
TIME_MAX = 2**63 - 1
WINDOW_LINES_MIN = 256
WINDOW_GROWTH = 4
WINDOWS_MAX = 500
"""Of one query: its text has a condition for each."""


@dataclass(frozen=True, kw_only=True)
class LogFields:
    """The values that filters can take for a job."""

    sources: tuple[str, ...]
    ranks: tuple[int, ...]
    streams: tuple[int, ...]
    levels: tuple[int, ...]
    attempts: tuple[int, ...]


class LineStore:
    """Lines of jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self,
        job_uid: str,
        attempt: int,
        rank: int,
        *,
        after: int,
        upto: int,
        lines_max: int,
        bytes_max: int,
        wanted: LogFilter,
    ) -> tuple[Lines, bool]:
        """Lines with numbers above `after` and up to `upto`, in order, and whether these are all.

        At most `lines_max`, and about `bytes_max` bytes, but always one.
        """
        conditions, parameters = _conditions(wanted)
        rows = await self._store.read(
            PAGE.format(conditions=conditions),
            job_uid=job_uid,
            attempt=attempt,
            rank=rank,
            after=after,
            upto=upto,
            lines=lines_max,
            bytes=bytes_max,
            overhead=LINE_OVERHEAD_BYTES,
            **parameters,
        )
        columns = await asyncio.to_thread(rows.to_pydict)
        total = columns["total"][0] if rows.num_rows else 0
        lines = Lines(
            attempt=attempt,
            rank=rank,
            numbers=columns["number"],
            times_unix_us=columns["time_unix_us"],
            levels=columns["level"],
            sources=_short(columns["source"]),
            streams=columns["stream"],
            texts=columns["line"],
            continued=columns["continued"],
        )
        return lines, rows.num_rows == total < lines_max

    async def before_last(
        self, job_uid: str, *, lines: int, wanted: LogFilter, stored: Places, scanned_max: int
    ) -> Places:
        """The places after which the newest `lines` lines come that the filter takes: of the last attempts, by time.

        It is looked for backwards by number, `scanned_max` lines a query at most, and no further than needed.
        """
        places = dict(stored)
        for attempt in sorted({attempt for attempt, _ in stored}, reverse=True):
            uptos = {rank: upto for (its, rank), upto in stored.items() if its == attempt and upto}
            uptos = {rank: upto for rank, upto in uptos.items() if wanted.takes_writer(attempt, rank)}
            if lines == 0 or not uptos:
                continue
            newest = await self._newest(job_uid, attempt, uptos, lines=lines, wanted=wanted, scanned_max=scanned_max)
            for rank, number in newest:
                places[attempt, rank] = min(places[attempt, rank], number - 1)
            lines -= len(newest)
        return places

    async def _newest(
        self, job_uid: str, attempt: int, uptos: Mapping[int, int], *, lines: int, wanted: LogFilter, scanned_max: int
    ) -> list[tuple[int, int]]:
        """Ranks and numbers of the newest lines of an attempt."""
        conditions, parameters = _conditions(wanted)
        writer = {"job_uid": job_uid, "attempt": attempt}
        found: list[tuple[int, int, int]] = []
        left = dict(uptos)
        """Of ranks that may have more of the newest: numbers above these were looked at."""
        window = max(WINDOW_LINES_MIN, -(-lines // len(left)))
        while left:
            ranks = list(left)[:WINDOWS_MAX]
            window = min(window, max(1, scanned_max // len(ranks)))
            lows = {rank: max(0, left[rank] - window) for rank in ranks}
            windows = " OR ".join(
                f"(rank = {rank:d} AND number > {lows[rank]:d} AND number <= {left[rank]:d})" for rank in ranks
            )
            sql = NEWEST.format(windows=windows, conditions=conditions)
            rows = await self._store.read(sql, **writer, **parameters, lines=lines)
            found = await asyncio.to_thread(_latest, found, rows, lines)
            oldest: dict[int, int] = {}
            if len(found) == lines and len(uptos) > 1:
                times = await self._store.read(OLDEST.format(windows=windows), **writer)
                oldest = dict(zip(times["rank"].to_pylist(), times["oldest"].to_pylist(), strict=True))
            for rank in ranks:
                # Earlier lines of a process are older still. With one process alone they cannot be among the newest.
                enough = len(found) == lines and (len(uptos) == 1 or oldest.get(rank, TIME_MAX) <= found[-1][0])
                if lows[rank] == 0 or enough:
                    del left[rank]
                else:
                    left[rank] = lows[rank]
            window *= WINDOW_GROWTH
        return [(rank, number) for _, rank, number in found]

    async def before_time(self, job_uid: str, *, time_unix_us: int, stored: Places) -> Places:
        """The places after which the first lines come that were written at this time or later."""
        rows = await self._store.read(SINCE, job_uid=job_uid, time_unix_us=time_unix_us)
        return _before(rows.to_pylist(), stored)

    async def fields(self, job_uid: str) -> LogFields:
        """The values that occur."""
        row = (await self._store.read(FIELDS, job_uid=job_uid)).to_pylist()[0]
        row["sources"] = set(_short(row["sources"]))
        return LogFields(**{name: tuple(sorted(values)) for name, values in row.items()})


def _short(sources: list[str]) -> list[str]:
    """As they are taken now: there was no limit once."""
    return [source[:SOURCE_CHARACTERS_MAX] for source in sources]


def _latest(found: list[tuple[int, int, int]], rows: pa.Table, lines: int) -> list[tuple[int, int, int]]:
    """The newest of both, by time, rank and number, the newest first."""
    columns = (rows["time_unix_us"].to_pylist(), rows["rank"].to_pylist(), rows["number"].to_pylist())
    return sorted([*found, *zip(*columns, strict=True)], reverse=True)[:lines]


def _before(rows: list[dict[str, Any]], stored: Places) -> Places:
    """Just before the first line of each writer; writers without one are passed as far as they are stored."""
    return stored | {(row["attempt"], row["rank"]): row["first"] - 1 for row in rows}


def _conditions(wanted: LogFilter) -> tuple[str, dict[str, Any]]:
    parts: dict[str, tuple[str, Any]] = {
        "level_min": ("level >= {level_min:UInt8}", wanted.level_min),
        "sources": ("source IN {sources:Array(String)}", list(wanted.sources)),
        "ranks": ("rank IN {ranks:Array(UInt16)}", list(wanted.ranks)),
        "streams": ("stream IN {streams:Array(UInt8)}", list(wanted.streams)),
        "contains": ("position(line, {contains:String}) > 0", wanted.contains),
        "regex": ("match(line, {regex:String})", wanted.expression if wanted.regex else ""),
        "attempts": ("attempt IN {attempts:Array(UInt16)}", list(wanted.attempts)),
    }
    given = {name: part for name, part in parts.items() if part[1]}
    text = "".join(f" AND {condition}" for condition, _ in given.values())
    return text, {name: value for name, (_, value) in given.items()}
