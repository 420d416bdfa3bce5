"""Queries on lines. The filters here and in `rows.matching_lines` make the same choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.metrics.cursor import Places
from services.metrics.log import LogFilter
from services.metrics.rows import Lines
from services.metrics.store import Store

PAGE = """
SELECT number, time_unix_us, level, source, stream, continued, line FROM logs
WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND rank = {{rank:UInt16}}
  AND number > {{after:UInt64}} AND number <= {{upto:UInt64}}{conditions}
ORDER BY number LIMIT {{lines:UInt32}}
"""
LAST = """
SELECT attempt, rank, min(number) AS first FROM (
    SELECT attempt, rank, number FROM logs WHERE job_uid = {{job_uid:String}}{conditions}
    ORDER BY attempt DESC, time_unix_us DESC, rank DESC, number DESC LIMIT {{lines:UInt32}}
) GROUP BY attempt, rank
"""
SINCE = """
SELECT attempt, rank, min(number) AS first FROM logs
WHERE job_uid = {job_uid:String} AND time_unix_us >= {time_unix_us:Int64} GROUP BY attempt, rank
"""
FIELDS = """
SELECT
    groupUniqArray(source) AS sources,
    groupUniqArray(rank) AS ranks,
    groupUniqArray(stream) AS streams,
    groupUniqArray(level) AS levels,
    groupUniqArray(attempt) AS attempts
FROM logs WHERE job_uid = {job_uid:String}
"""


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
        self, job_uid: str, attempt: int, rank: int, *, after: int, upto: int, lines_max: int, wanted: LogFilter
    ) -> Lines:
        """At most `lines_max` lines with numbers above `after` and up to `upto`, in order."""
        conditions, parameters = _conditions(wanted)
        rows = await self._store.read(
            PAGE.format(conditions=conditions),
            job_uid=job_uid,
            attempt=attempt,
            rank=rank,
            after=after,
            upto=upto,
            lines=lines_max,
            **parameters,
        )
        columns = rows.to_pydict()
        return Lines(
            attempt=attempt,
            rank=rank,
            numbers=columns["number"],
            times_unix_us=columns["time_unix_us"],
            levels=columns["level"],
            sources=columns["source"],
            streams=columns["stream"],
            texts=columns["line"],
            continued=columns["continued"],
        )

    async def before_last(self, job_uid: str, *, lines: int, wanted: LogFilter, stored: Places) -> Places:
        """The places after which the newest `lines` lines come that the filter takes."""
        conditions, parameters = _conditions(wanted)
        rows = await self._store.read(LAST.format(conditions=conditions), job_uid=job_uid, lines=lines, **parameters)
        return _before(rows.to_pylist(), stored)

    async def before_time(self, job_uid: str, *, time_unix_us: int, stored: Places) -> Places:
        """The places after which the first lines come that were written at this time or later."""
        rows = await self._store.read(SINCE, job_uid=job_uid, time_unix_us=time_unix_us)
        return _before(rows.to_pylist(), stored)

    async def fields(self, job_uid: str) -> LogFields:
        """The values that occur."""
        row = (await self._store.read(FIELDS, job_uid=job_uid)).to_pylist()[0]
        return LogFields(**{name: tuple(sorted(values)) for name, values in row.items()})


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
