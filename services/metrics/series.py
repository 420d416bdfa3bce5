"""Queries on series and points.

What counts is decided here and only here (`Counted`), for points, buckets and summaries alike. No FINAL, and no answer
that hides a spike or a value that is not a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from services.metrics.buckets import Buckets, PlacedPoints
from services.metrics.point import SELECTED_SERIES_MAX, BucketBounds, Cuts, Selector, SeriesDefinition, Summary
from services.metrics.rows import PointColumns
from services.metrics.store import Store

# A point's place in its series: step, attempt, sequence, as one number. A tuple would be five times as slow.
PLACE = "bitShiftLeft(toInt128(step), 64) + bitShiftLeft(toInt128(attempt), 48) + toInt128(seq)"
DEFINITIONS = "SELECT job_uid, series_id, name, context, unit FROM series WHERE job_uid IN {job_uids:Array(String)}"
# The expressions are those of the projection `summaries`, letter by letter: else it is not used.
SUMMARIES = """
SELECT
    job_uid,
    series_id,
    attempt,
    count() AS count,
    min(step) AS step_min,
    max(step) AS step_max,
    argMax(value, bitShiftLeft(toInt128(step), 64) + toInt128(seq)) AS last,
    minIf(value, isFinite(value)) AS minimum,
    argMinIf(step, value, isFinite(value)) AS minimum_step,
    maxIf(value, isFinite(value)) AS maximum,
    argMaxIf(step, value, isFinite(value)) AS maximum_step,
    countIf(isFinite(value)) AS finite_count,
    countIf(isNaN(value)) AS nan_count,
    countIf(value = inf) AS positive_infinity_count,
    countIf(value = -inf) AS negative_infinity_count
FROM points
WHERE job_uid IN {{job_uids:Array(String)}}{conditions}
GROUP BY job_uid, series_id, attempt
"""
RANGES = """
SELECT job_uid, series_id, attempt, min(step) AS step_min, max(step) AS step_max FROM points
WHERE job_uid IN {job_uids:Array(String)} AND series_id IN {series_ids:Array(UInt64)}
GROUP BY job_uid, series_id, attempt
"""
# The difference of steps may wrap around as a signed number and is then right as an unsigned one.
BUCKETS = """
SELECT
    series_id,
    intDiv(toUInt64(step - {{first:Int64}}), {{width:UInt64}}) AS bucket,
    if(countIf(isFinite(value)) = 0, nan, minIf(value, isFinite(value))) AS minimum,
    if(countIf(isFinite(value)) = 0, nan, maxIf(value, isFinite(value))) AS maximum,
    argMin(value, {place}) AS first,
    argMax(value, {place}) AS last,
    avgIf(value, isFinite(value)) AS mean,
    count() AS count,
    countIf(isNaN(value)) AS nan_count,
    countIf(value = inf) AS positive_infinity_count,
    countIf(value = -inf) AS negative_infinity_count,
    argMax(time_unix_us, {place}) AS last_time_unix_us
FROM points
WHERE job_uid IN {{job_uids:Array(String)}} AND series_id IN {{series_ids:Array(UInt64)}}
  AND step >= {{first:Int64}} AND step <= {{last:Int64}}{conditions}
GROUP BY series_id, bucket ORDER BY series_id, bucket
"""
ROWS = """
SELECT series_id, step, attempt, seq, time_unix_us, value FROM points
WHERE job_uid IN {{job_uids:Array(String)}} AND series_id IN {{series_ids:Array(UInt64)}}
  AND step >= {{first:Int64}} AND step <= {{last:Int64}}{conditions}
LIMIT {{rows:UInt32}}
"""
POINTS = """
SELECT series_id, step, time_unix_us, value FROM points
WHERE job_uid IN {{job_uids:Array(String)}} AND series_id IN {{series_ids:Array(UInt64)}}
  AND step >= {{first:Int64}} AND step <= {{last:Int64}}{conditions}
ORDER BY series_id, step, attempt, seq LIMIT {{points:UInt32}} BY series_id
"""
MESSAGES = """
SELECT seq, count() AS count FROM points
WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND rank = {{rank:UInt16}}
  AND seq > {{after:UInt64}} AND seq <= {{upto:UInt64}}{conditions}
GROUP BY seq ORDER BY seq
"""
PAGE = """
SELECT series_id, step, time_unix_us, value FROM points
WHERE job_uid = {{job_uid:String}} AND attempt = {{attempt:UInt16}} AND rank = {{rank:UInt16}}
  AND seq > {{after:UInt64}} AND seq <= {{upto:UInt64}}{conditions}
ORDER BY series_id, seq, step
"""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Which rows of jobs count, as SQL."""

    cuts: Mapping[str, Cuts]
    system_ids: tuple[int, ...] = ()

    def conditions(self) -> str:
        """Begins with AND, or is empty. Made of numbers and of uids that the database gave."""
        terms = [
            f"(job_uid != {_quoted(job_uid)} OR attempt != {attempt:d} OR step < {bound:d})"
            for job_uid, cuts in self.cuts.items()
            for attempt, bound in cuts.bounds.items()
        ]
        if not terms:
            return ""
        condition = " AND ".join(terms)
        if self.system_ids:
            condition = f"(series_id IN ({', '.join(map(str, self.system_ids))}) OR ({condition}))"
        return f" AND {condition}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Points of some series between two steps, both included, as far as they count."""

    job_uids: tuple[str, ...]
    series_ids: tuple[int, ...]
    first: int
    last: int
    counted: Counted

    def parameters(self) -> dict[str, Any]:
        """For the queries."""
        return {
            "job_uids": list(self.job_uids),
            "series_ids": list(self.series_ids),
            "first": self.first,
            "last": self.last,
        }


@dataclass(frozen=True, kw_only=True)
class WriterPoints:
    """Points of one writer, of some series, as far as they count."""

    job_uid: str
    attempt: int
    rank: int
    series_ids: tuple[int, ...]
    counted: Counted

    def conditions(self) -> tuple[str, dict[str, Any]]:
        """For the queries, with their parameters."""
        condition, parameters = _among(self.series_ids)
        writer = {"job_uid": self.job_uid, "attempt": self.attempt, "rank": self.rank}
        return condition + self.counted.conditions(), {**parameters, **writer}


class SeriesStore:
    """Series of jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def definitions(self, job_uids: Sequence[str], selector: Selector) -> dict[str, list[SeriesDefinition]]:
        """The series that are meant, by job, sorted by name and context."""
        # A series may be recorded twice: its id keeps it apart from others.
        by_id: dict[str, dict[int, SeriesDefinition]] = {job_uid: {} for job_uid in job_uids}
        rows = (await self._store.read(DEFINITIONS, job_uids=list(job_uids))).to_pydict()
        for job_uid, series_id, name, context, unit in zip(*rows.values(), strict=True):
            definition = SeriesDefinition(series_id=series_id, name=name, context=tuple(sorted(context)), unit=unit)
            if selector.matches(definition):
                by_id[job_uid][series_id] = definition
        found = {job_uid: list(definitions.values()) for job_uid, definitions in by_id.items()}
        for definitions in found.values():
            definitions.sort(key=lambda d: (d.name, d.context))
        return found

    async def summaries(
        self, cuts: Mapping[str, Cuts], *, series_ids: Sequence[int], system_ids: Iterable[int]
    ) -> dict[int, dict[int, Summary]]:
        """What counts of these series of the jobs in `cuts`, in short, by series and attempt.

        Rows are read only where a cut goes through.
        """
        exempt = set(system_ids)
        found: dict[int, dict[int, Summary]] = {}
        cut_through: set[tuple[str, int]] = set()
        condition, parameters = _among(series_ids)
        parameters["job_uids"] = list(cuts)
        whole = await self._store.read(SUMMARIES.format(conditions=condition), **parameters)
        for job_uid, series_id, attempt, summary in _summaries(whole):
            bound = None if series_id in exempt else cuts[job_uid].bound(attempt)
            if bound is None or summary.step_max < bound:
                found.setdefault(series_id, {})[attempt] = summary
            elif summary.step_min < bound:
                cut_through.add((job_uid, attempt))
        if cut_through:
            condition += f" AND ({_below(cut_through, cuts)})"
            rows = await self._store.read(SUMMARIES.format(conditions=condition), **parameters)
            for _, series_id, attempt, summary in _summaries(rows):
                # Series that the cut does not go through are in it too, with the summary that they have already.
                found.setdefault(series_id, {}).setdefault(attempt, summary)
        return found

    async def ranges(self, wanted: Wanted) -> dict[int, dict[int, tuple[int, int]]]:
        """The first and the last step of each series and attempt, whether they count and are wanted or not."""
        parameters = {"job_uids": list(wanted.job_uids), "series_ids": list(wanted.series_ids)}
        found: dict[int, dict[int, tuple[int, int]]] = {}
        for row in (await self._store.read(RANGES, **parameters)).to_pylist():
            found.setdefault(row["series_id"], {})[row["attempt"]] = (row["step_min"], row["step_max"])
        return found

    async def buckets(self, wanted: Wanted, bounds: BucketBounds) -> dict[int, Buckets]:
        """The buckets of each series that have points; `bounds` holds instead of the steps of `wanted`."""
        sql = BUCKETS.format(place=PLACE, conditions=wanted.counted.conditions())
        steps = {"first": bounds.first, "last": bounds.last, "width": bounds.width}
        rows = await self._store.read(sql, **{**wanted.parameters(), **steps})
        return {series_id: _buckets(part, bounds) for series_id, part in _by_series(rows).items()}

    async def rows(self, wanted: Wanted, *, rows_max: int) -> dict[int, PlacedPoints] | None:
        """All points of each series that has some, in no order; None where there are more than `rows_max` in all."""
        sql = ROWS.format(conditions=wanted.counted.conditions())
        rows = await self._store.read(sql, **wanted.parameters(), rows=rows_max + 1)
        if rows.num_rows > rows_max:
            return None
        return {series_id: _placed(part) for series_id, part in _by_series(rows.sort_by("series_id")).items()}

    async def points(self, wanted: Wanted, *, points_max: int) -> dict[int, PointColumns]:
        """At most `points_max` points of each series, by step."""
        sql = POINTS.format(conditions=wanted.counted.conditions())
        rows = await self._store.read(sql, **wanted.parameters(), points=points_max)
        return {series_id: _points(series_id, part) for series_id, part in _by_series(rows).items()}

    async def page_ends(self, wanted: WriterPoints, *, after: int, upto: int, rows_max: int) -> list[int]:
        """Sequences at which to cut a writer's messages into pages of about `rows_max` points; the last is `upto`."""
        conditions, parameters = wanted.conditions()
        rows = await self._store.read(MESSAGES.format(conditions=conditions), **parameters, after=after, upto=upto)
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
        rows = await self._store.read(PAGE.format(conditions=conditions), **parameters, after=after, upto=upto)
        return [_points(series_id, part) for series_id, part in _by_series(rows).items()]


def _among(series_ids: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """A condition that spares reading other series. Very many would not fit into a request: the caller picks then."""
    if len(series_ids) > SELECTED_SERIES_MAX:
        return "", {}
    return " AND series_id IN {series_ids:Array(UInt64)}", {"series_ids": list(series_ids)}


def _below(attempts: Iterable[tuple[str, int]], cuts: Mapping[str, Cuts]) -> str:
    """The rows of these attempts that lie below their cuts, as SQL."""
    terms = [
        f"job_uid = {_quoted(job_uid)} AND attempt = {attempt:d} AND step < {cuts[job_uid].bound(attempt):d}"
        for job_uid, attempt in sorted(attempts)
    ]
    return " OR ".join(terms)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _summaries(rows: pa.Table) -> Iterator[tuple[str, int, int, Summary]]:
    columns = rows.to_pydict()
    keys = zip(columns.pop("job_uid"), columns.pop("series_id"), columns.pop("attempt"), strict=True)
    finite_counts = columns.pop("finite_count")
    for name in ("minimum", "maximum"):
        pairs = zip(columns[name], finite_counts, strict=True)
        columns[name] = [value if finite_count else None for value, finite_count in pairs]
    columns["last_step"] = columns["step_max"]
    for key, values in zip(keys, zip(*columns.values(), strict=True), strict=True):
        yield (*key, Summary(**dict(zip(columns, values, strict=True))))


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
        steps=rows["step"].to_numpy(),
        attempts=rows["attempt"].to_numpy(),
        sequences=rows["seq"].to_numpy(),
        times_unix_us=rows["time_unix_us"].to_numpy(),
        values=rows["value"].to_numpy(),
    )


def _buckets(rows: pa.Table, bounds: BucketBounds) -> Buckets:
    numbers = rows["bucket"].to_pylist()
    columns = {name: rows[name].to_numpy() for name in rows.column_names if name not in ("series_id", "bucket")}
    return Buckets.of(numbers, columns, bounds)
