"""Queries on points: summaries, buckets, points page by page.

What counts is decided in `wanted`. No FINAL, and no answer that hides a spike or a value that is not a number. What
reads rollups stands in `rollup`, letter by letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from services.metrics.buckets import COUNTS, Buckets, Parts, PlacedPoints, joined
from services.metrics.clickhouse.rollup import (
    BY_SERIES,
    BY_WRITER,
    FEW,
    OWN_AXIS,
    SUMMARY_COLUMNS,
    TURN,
    block,
    block_bits,
    block_columns,
    block_settings,
    decoded_bests,
)
from services.metrics.clickhouse.store import Store
from services.metrics.clickhouse.wanted import (
    LEVELS,
    OF_SERIES,
    Counted,
    Position,
    Wanted,
    WriterPoints,
    block_terms,
    pairs,
)
from services.metrics.cursor import Places
from services.metrics.grid import AXIS_MAX, AXIS_MIN, WHOLE_BITS, Axis, Grid
from services.metrics.point import SELECTED_SERIES_MAX, Cuts, Summary, joined_summary
from services.metrics.rows import PointColumns

SUMMARIES = """
SELECT job_uid, series_id, attempt,{columns}
FROM points
WHERE {of_series}{conditions}
GROUP BY job_uid, series_id, attempt {settings}
"""
ORIGINS = f"""
SELECT job_uid, min(time_unix_us) AS origin FROM points
WHERE job_uid IN {{job_uids:Array(String)}} GROUP BY job_uid {BY_WRITER}
"""  # noqa: S608 — BY_WRITER is ours
PLACES = f"""
SELECT job_uid, attempt, rank, max(seq) AS place FROM points
WHERE job_uid IN {{job_uids:Array(String)}} GROUP BY job_uid, attempt, rank {BY_WRITER}
"""  # noqa: S608 — BY_WRITER is ours
PARTS = """
SELECT series_id, {attempt} AS part_attempt, {number} AS number,{columns}
FROM points
WHERE {of_series}{conditions}
GROUP BY series_id, part_attempt, number {settings}
"""
ROWS = """
SELECT series_id, {axis} AS place, {turn} AS turn, time_unix_us, value FROM points
WHERE {of_series}{conditions}
LIMIT {{rows:UInt32}} {settings}
"""
# Of one job, so that rows are read in the order of the table's key.
POINTS = """
SELECT series_id, step, time_unix_us, value, attempt, seq, row, rank FROM points
WHERE job_uid = {{job_uid:String}} AND series_id IN {{series_ids:Array(UInt64)}}{conditions}
ORDER BY series_id, {axis}, attempt, seq, row, rank LIMIT {{points:UInt32}} {settings}
"""
AFTER = """ AND series_id >= {after_series:UInt64}
  AND (series_id > {after_series:UInt64} OR ({axis}, attempt, seq, row, rank) > (
    {after_place:Int64}, {after_attempt:UInt16}, {after_seq:UInt64}, {after_row:UInt32}, {after_rank:UInt16}))"""
MESSAGES = """
SELECT seq, count() AS count FROM points
WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND rank = {{rank:UInt16}}
  AND seq > {{after:UInt64}} AND seq <= {{upto:UInt64}}{conditions}
GROUP BY seq ORDER BY seq {settings}
"""
PAGE = """
SELECT series_id, step, time_unix_us, value FROM points
WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND rank = {{rank:UInt16}}
  AND seq > {{after:UInt64}} AND seq <= {{upto:UInt64}}{conditions}
ORDER BY series_id, seq, row, step {settings}
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointPage:
    """Points by series and place. `last` is the position of the last one where there are more."""

    points: list[PointColumns]
    last: Position | None


class SeriesStore:
    """Points of series."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def summaries(
        self,
        series: Mapping[str, Sequence[int]],
        cuts: Mapping[str, Cuts],
        *,
        system_ids: Iterable[int],
        are_all: bool = False,
    ) -> dict[int, dict[int, Summary]]:
        """What counts of these series of jobs, in short, by series and attempt. `are_all`: the jobs have no others.

        Where a cut goes through, blocks are read up to it, and rows in the last block only.
        """
        of_series, parameters = _of_series(series, are_all=are_all)
        sql = SUMMARIES.format(columns=SUMMARY_COLUMNS, of_series=of_series, conditions="", settings=BY_SERIES)
        whole = await self._store.read_into(_summaries, sql, **parameters)
        exempt = set(system_ids)
        found: dict[int, dict[int, Summary]] = {}
        cut_through: dict[tuple[str, int], int] = {}
        for job_uid, series_id, attempt, summary in whole:
            bound = None if series_id in exempt else cuts[job_uid].bound(attempt)
            if bound is None or summary.axis_max < bound:
                found.setdefault(series_id, {})[attempt] = summary
            elif summary.axis_min < bound:
                cut_through[job_uid, attempt] = bound
        if cut_through:
            wholes = {(series_id, attempt): summary for _, series_id, attempt, summary in whole}
            for (series_id, attempt), summary in (
                await self._below(cut_through, of_series, parameters, wholes)
            ).items():
                # Series that the cut does not go through are in it too, with the summary that they have already.
                found.setdefault(series_id, {}).setdefault(attempt, summary)
        return found

    async def origins(self, job_uids: Sequence[str]) -> dict[str, int]:
        """The time of the first point of each job that has some."""
        rows = (await self._store.read(ORIGINS, job_uids=list(job_uids))).to_pylist()
        return {row["job_uid"]: row["origin"] for row in rows}

    async def places(self, job_uids: Sequence[str]) -> dict[str, Places]:
        """The highest stored sequence of each writer of points, by job."""
        places: dict[str, Places] = {job_uid: {} for job_uid in job_uids}
        for row in (await self._store.read(PLACES, job_uids=list(job_uids))).to_pylist():
            places[row["job_uid"]][row["attempt"], row["rank"]] = row["place"]
        return places

    async def buckets(self, wanted: Wanted, grid: Grid) -> dict[int, Buckets]:
        """The buckets of each series that has points."""
        queries = _rollup_queries(wanted, grid) if wanted.has_rollups else [_row_query(wanted, grid)]
        parts = await asyncio.gather(*(self._store.read_into(_parts, sql, **wanted.parameters()) for sql in queries))
        return await asyncio.to_thread(joined, _concatenated(parts), grid)

    async def rows(self, wanted: Wanted, *, rows_max: int) -> dict[int, PlacedPoints] | None:
        """All points of each series that has some, in no order; None where there are more than `rows_max` in all."""
        sql = ROWS.format(
            axis=wanted.axis_sql(), turn=TURN, of_series=OF_SERIES, conditions=wanted.conditions(), settings=FEW
        )
        rows = await self._store.read(sql, **wanted.parameters(), rows=rows_max + 1)
        if rows.num_rows > rows_max:
            return None
        return {series_id: _placed(part) for series_id, part in _by_series(rows.sort_by("series_id")).items()}

    async def points(self, wanted: Wanted, *, after: Position | None, points_max: int) -> PointPage:
        """At most `points_max` points of one job by series id and place, after a position."""
        axis = wanted.axis_sql()
        ((job_uid, series_ids),) = wanted.series.items()
        parameters: dict[str, Any] = {"job_uid": job_uid, "series_ids": list(series_ids)}
        conditions = wanted.conditions()
        if after is not None:
            conditions += AFTER.replace("{axis}", axis)
            parameters |= {
                "after_series": after.series_id,
                "after_place": after.place,
                "after_attempt": after.attempt,
                "after_seq": after.sequence,
                "after_row": after.row,
                "after_rank": after.rank,
            }
        sql = POINTS.format(axis=axis, conditions=conditions, settings=FEW)
        rows = await self._store.read(sql, **parameters, points=points_max + 1)
        more = rows.num_rows > points_max
        rows = rows.slice(0, points_max)
        points = [_points(series_id, part) for series_id, part in _by_series(rows).items()]
        return PointPage(points=points, last=_position(rows, wanted) if more else None)

    async def page_ends(self, wanted: WriterPoints, *, after: int, upto: int, rows_max: int) -> list[int]:
        """Sequences at which to cut a writer's messages into pages of about `rows_max` points; the last is `upto`."""
        conditions, parameters = wanted.conditions()
        sql = MESSAGES.format(conditions=conditions, settings=FEW)
        rows = await self._store.read(sql, **parameters, after=after, upto=upto)
        ends: list[int] = []
        in_page = 0
        for sequence, count in zip(rows["seq"].to_pylist(), rows["count"].to_pylist(), strict=True):
            in_page += count
            if in_page >= rows_max:
                ends.append(sequence)
                in_page = 0
        return ends if ends and ends[-1] == upto else [*ends, upto]

    async def page(self, wanted: WriterPoints, *, after: int, upto: int) -> list[PointColumns]:
        """What a writer sent in the messages above `after` and up to `upto`, by series, in order."""
        conditions, parameters = wanted.conditions()
        sql = PAGE.format(conditions=conditions, settings=FEW)
        rows = await self._store.read(sql, **parameters, after=after, upto=upto)
        return [_points(series_id, part) for series_id, part in _by_series(rows).items()]

    async def _below(
        self,
        cut_through: Mapping[tuple[str, int], int],
        of_series: str,
        parameters: Mapping[str, Any],
        wholes: Mapping[tuple[int, int], Summary],
    ) -> dict[tuple[int, int], Summary]:
        """The summaries of what lies below a bound, by series and attempt, of the attempts that have one."""
        intervals = {key: (AXIS_MIN, bound - 1) for key, bound in cut_through.items()}
        queries = [
            SUMMARIES.format(
                columns=block_columns(OWN_AXIS if level else "step"),
                of_series=of_series,
                conditions=f" AND ({' OR '.join(terms)})",
                settings=block_settings(level),
            )
            for level, terms in enumerate(block_terms(intervals, None, LEVELS, by_time=False))
            if terms
        ]
        read = await asyncio.gather(*(self._store.read_into(_cut_summaries, sql, **parameters) for sql in queries))
        parts: dict[tuple[int, int], list[Summary]] = {}
        for key, summary in (pair for part in read for pair in part):
            parts.setdefault(key, []).append(summary)
        return {
            key: replace(
                joined_summary(sorted(of_key, key=lambda s: s.axis_max)),
                time_min=wholes[key].time_min,
                time_max=wholes[key].time_max,
            )
            for key, of_key in parts.items()
        }


def _of_series(series: Mapping[str, Sequence[int]], *, are_all: bool) -> tuple[str, dict[str, Any]]:
    """A condition with its parameters. Very many series would not fit into a request: all of the jobs, then."""
    if are_all or sum(map(len, series.values())) > SELECTED_SERIES_MAX:
        return "job_uid IN {job_uids:Array(String)}", {"job_uids": list(series)}
    return OF_SERIES, {"series": pairs(series)}


def _row_query(wanted: Wanted, grid: Grid) -> str:
    """The parts of buckets, made of rows."""
    axis = wanted.axis_sql()
    return PARTS.format(
        attempt="toUInt16(0)",
        number=_number(0, axis, grid, by_time=wanted.by_time),
        columns=block_columns(axis),
        of_series=OF_SERIES,
        conditions=wanted.conditions(),
        settings=FEW,
    )


def _rollup_queries(wanted: Wanted, grid: Grid) -> list[str]:
    """The parts of buckets, made of the largest blocks that lie within a bucket, the bounds and the cuts."""
    levels = [level for level in LEVELS if block_bits(level, by_time=wanted.by_time) <= grid.bits]
    bounds = wanted.bounds
    cut = {
        (job_uid, attempt): bounds.within(AXIS_MIN, bound - 1)
        for job_uid, attempt, bound in Counted(cuts=wanted.cuts).bounds()
    }
    uncut = bounds.within(AXIS_MIN, AXIS_MAX)
    axis = wanted.axis_sql()
    return [
        PARTS.format(
            attempt="attempt" if cut else "toUInt16(0)",
            number=_number(level, axis, grid, by_time=wanted.by_time),
            columns=block_columns(OWN_AXIS if level else axis),
            of_series=OF_SERIES,
            conditions=f" AND ({' OR '.join(terms)})",
            settings=block_settings(level),
        )
        for level, terms in enumerate(block_terms(cut, uncut, levels, by_time=wanted.by_time))
        if terms
    ]


def _number(level: int, axis: str, grid: Grid, *, by_time: bool) -> str:
    """The bucket of a point, or of a block of a higher level; with all bits there is one bucket."""
    if grid.bits == WHOLE_BITS:
        return "toInt64(0)"
    expression = block(level) if level else axis
    return f"bitShiftRight({expression}, {grid.bits - block_bits(level, by_time=by_time)})"


def _best_columns(rows: pa.Table) -> dict[str, list[Any]]:
    """The columns that summaries of rows and of blocks have in common, as lists."""
    names = ("count", "axis_min", "axis_max", "last", "last_time_unix_us", *COUNTS[1:])
    columns = {name: rows[name].to_numpy() for name in names}
    none = columns["count"] == sum(columns[name] for name in COUNTS[1:])
    found = {name: column.tolist() for name, column in columns.items()}
    for name, best in (("minimum", "lowest"), ("maximum", "highest")):
        values, steps = decoded_bests(rows[best], highest=best == "highest")
        found[name] = [None if nothing else v for v, nothing in zip(values.tolist(), none.tolist(), strict=True)]
        found[f"{name}_step"] = np.where(none, 0, steps).tolist()
    return found


def _summaries(rows: pa.Table) -> list[tuple[str, int, int, Summary]]:
    columns = _best_columns(rows)
    columns |= {name: rows[name].to_pylist() for name in ("time_min", "time_max", "last_step")}
    keys = (rows[name].to_pylist() for name in ("job_uid", "series_id", "attempt"))
    summaries = (Summary(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True))
    return list(zip(*keys, summaries, strict=True))


def _cut_summaries(rows: pa.Table) -> list[tuple[tuple[int, int], Summary]]:
    """Of series that go by step, so that the last step is the end of the axis. The times are left out."""
    columns = _best_columns(rows)
    columns |= {"time_min": [0] * rows.num_rows, "time_max": [0] * rows.num_rows, "last_step": columns["axis_max"]}
    keys = zip(rows["series_id"].to_pylist(), rows["attempt"].to_pylist(), strict=True)
    summaries = (Summary(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True))
    return list(zip(keys, summaries, strict=True))


def _parts(rows: pa.Table) -> Parts:
    names = ("axis_min", "axis_max", "first", "last", "last_time_unix_us", "scaled_sum", *COUNTS)
    columns = {name: rows[name].to_numpy() for name in names}
    none = columns["count"] == sum(columns[name] for name in COUNTS[1:])
    for name, best in (("minimum", "lowest"), ("maximum", "highest")):
        columns[name] = np.where(none, np.nan, decoded_bests(rows[best], highest=best == "highest")[0])
    return Parts(
        series_ids=rows["series_id"].to_numpy(),
        numbers=rows["number"].to_numpy(),
        attempts=rows["part_attempt"].to_numpy(),
        columns=columns,
    )


def _concatenated(parts: Sequence[Parts]) -> Parts:
    return Parts(
        series_ids=np.concatenate([part.series_ids for part in parts]),
        numbers=np.concatenate([part.numbers for part in parts]),
        attempts=np.concatenate([part.attempts for part in parts]),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
    )


def _by_series(rows: pa.Table) -> dict[int, pa.Table]:
    """The rows of each series; they are sorted by series."""
    ids = rows["series_id"].to_numpy()
    if not len(ids):
        return {}
    starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    ends = [*starts[1:], len(ids)]
    return {int(ids[start]): rows.slice(start, end - start) for start, end in zip(starts, ends, strict=True)}


def _points(series_id: int, rows: pa.Table) -> PointColumns:
    return PointColumns(
        series_id=series_id,
        steps=rows["step"].to_numpy(),
        times_unix_us=rows["time_unix_us"].to_numpy(),
        values=rows["value"].to_numpy(),
    )


def _placed(rows: pa.Table) -> PlacedPoints:
    return PlacedPoints(
        places=rows["place"].to_numpy(),
        turns=rows["turn"].to_numpy(),
        times_unix_us=rows["time_unix_us"].to_numpy(),
        values=rows["value"].to_numpy(),
    )


def _position(rows: pa.Table, wanted: Wanted) -> Position:
    """Of the last row."""
    row = rows.slice(rows.num_rows - 1).to_pylist()[0]
    origin = wanted.origin(next(iter(wanted.series))) if wanted.laid_out_by is Axis.RELATIVE_TIME else 0
    return Position(
        series_id=row["series_id"],
        place=row["step"] if wanted.laid_out_by is Axis.STEP else row["time_unix_us"] - origin,
        attempt=row["attempt"],
        sequence=row["seq"],
        row=row["row"],
        rank=row["rank"],
    )
