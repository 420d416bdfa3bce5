"""Random series in a real engine, and a plain model that says what every answer must be: `… FOLDER SERIES SEED`.

Buckets are made both ways, by this process and by ClickHouse, and both must say what the model says. Cuts, ties,
infinities, NaN, duplicate and disordered steps, steps at the ends of what a number holds, attempts that logged nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from services.metrics.clickhouse.catalog import Catalog
from services.metrics.clickhouse.engine import open_engine
from services.metrics.clickhouse.lane import Lane, LaneLimits
from services.metrics.clickhouse.migration import migrate, read_migrations
from services.metrics.clickhouse.series import SeriesStore
from services.metrics.clickhouse.store import Store
from services.metrics.grid import AXIS_MAX, AXIS_MIN, Axis, Bounds, Grid
from services.metrics.point import Selector, SeriesDefinition, Summary, merged_summary, series_id_of
from services.metrics.query.query import Curve, Layout, PageStart, Queries, QueryLimits

SERIES_PER_JOB = 10
START = 1_700_000_000_000_000
VALUES = (0.0, -0.0, 1.0, 1.0, -1.0, 2.5, math.nan, math.inf, -math.inf, 1e300, -1e300, 5e-324, 1.7e308, 1.7e308)
EXTREMES = (AXIS_MIN, AXIS_MIN + 1, -(2**62), 2**62, AXIS_MAX - 1, AXIS_MAX)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A point, with what its place is made of."""

    attempt: int
    seq: int
    row: int
    step: int
    time: int
    value: float

    @property
    def turn(self) -> tuple[int, int, int]:
        return (self.attempt, self.seq, self.row)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job with its series' points."""

    uid: str
    from_steps: dict[int, int]
    definitions: list[SeriesDefinition]
    rows: dict[int, list[Row]]

    def counted(self, definition: SeriesDefinition) -> list[Row]:
        rows = self.rows[definition.series_id]
        if definition.is_system:
            return rows
        logged = {row.attempt for d in self.definitions if not d.is_system for row in self.rows[d.series_id]}
        return [
            row for row in rows if all(row.step < self.from_steps[later] for later in logged if later > row.attempt)
        ]


def made_job(rng: np.random.Generator, number: int) -> Job:
    uid = f"job-{number:06d}"
    attempts = list(range(1, int(rng.integers(1, 4)) + 1))
    span = int(rng.choice([8, 300, 20_000]))
    from_steps = {attempt: 0 if attempt == 1 else int(rng.integers(0, span)) for attempt in attempts}
    names = [f"loss/{i}" for i in range(SERIES_PER_JOB - 2)] + ["system/cpu", "system/gpu"]
    definitions = [
        SeriesDefinition(series_id=series_id_of(uid, name, ()), name=name, context=(), unit="") for name in names
    ]
    rows: dict[int, list[Row]] = {definition.series_id: [] for definition in definitions}
    for attempt in attempts:
        silent = rng.random() < 0.25
        for definition in definitions:
            if (silent and not definition.is_system) or rng.random() < 0.2:
                continue
            rows[definition.series_id] += made_rows(rng, attempt, from_steps[attempt], span)
    return Job(uid=uid, from_steps=from_steps, definitions=definitions, rows=rows)


def made_rows(rng: np.random.Generator, attempt: int, first: int, span: int) -> list[Row]:
    count = int(rng.integers(1, 60))
    steps = [int(first + step) for step in np.sort(rng.integers(-2, span, count))]
    if rng.random() < 0.3:
        rng.shuffle(steps)
    if rng.random() < 0.2:
        steps[int(rng.integers(count))] = int(rng.choice(EXTREMES))
    if rng.random() < 0.3:
        values = [float(v) for v in rng.normal(size=count)]
    else:
        values = [VALUES[int(i)] for i in rng.integers(0, len(VALUES), count)]
    time = START + attempt * 10**10
    times = [time + int(i) * int(rng.choice([0, 1, 10**6, 10**8])) for i in range(count)]
    return [
        Row(attempt=attempt, seq=1 + i // 7, row=i % 7, step=step, time=at, value=value)
        for i, (step, at, value) in enumerate(zip(steps, times, values, strict=True))
    ]


def table_of(jobs: Sequence[Job]) -> pa.Table:
    rows = [
        (job.uid, definition, row)
        for job in jobs
        for definition in job.definitions
        for row in job.rows[definition.series_id]
    ]
    return pa.table(
        {
            "job_uid": [uid for uid, _, _ in rows],
            "series_id": pa.array([d.series_id for _, d, _ in rows], pa.uint64()),
            "step": [row.step for _, _, row in rows],
            "attempt": pa.array([row.attempt for _, _, row in rows], pa.uint16()),
            "rank": pa.array([0] * len(rows), pa.uint16()),
            "seq": pa.array([row.seq for _, _, row in rows], pa.uint64()),
            "row": pa.array([row.row for _, _, row in rows], pa.uint32()),
            "by_time": [d.is_system for _, d, _ in rows],
            "time_unix_us": [row.time for _, _, row in rows],
            "value": [row.value for _, _, row in rows],
        }
    )


def place(row: Row, axis: Axis, origin: int) -> int:
    return row.step if axis is Axis.STEP else row.time - (origin if axis is Axis.RELATIVE_TIME else 0)


def expected_buckets(job: Job, layout: Layout) -> dict[int, list[tuple[int, int, list[Row]]]]:
    """The rows of each bucket, in the order of their places, by series."""
    origin = min((row.time for rows in job.rows.values() for row in rows), default=0)
    found: dict[int, list[tuple[int, int, list[Row]]]] = {}
    for system in (False, True):
        of_kind = [d for d in job.definitions if d.is_system == system]
        axis = Axis.TIME if system and layout.axis is Axis.STEP else layout.axis
        ends = []
        for definition in of_kind:
            counted = job.counted(definition)
            if axis is Axis.STEP or system:
                ends += [place(row, axis, origin) for row in counted]
            else:  # whole attempts
                attempts = {row.attempt for row in counted}
                ends += [place(r, axis, origin) for r in job.rows[definition.series_id] if r.attempt in attempts]
        if not ends:
            continue
        first, last = min(ends), max(ends)
        if axis is layout.axis:
            first, last = max(first, layout.bounds.low), min(last, layout.bounds.high)
        if first > last:
            continue
        grid = Grid.over(first, last, layout.buckets_max)
        for definition in of_kind:
            by_bucket: dict[int, list[Row]] = {}
            for row in job.counted(definition):
                at = place(row, layout.axis, origin)
                if layout.bounds.low <= at <= layout.bounds.high:
                    number = 0 if grid.bits == 64 else place(row, axis, origin) >> grid.bits
                    by_bucket.setdefault(number, []).append(row)
            found[definition.series_id] = [
                (
                    grid.first(number),
                    grid.last(number),
                    sorted(rows, key=lambda r: (place(r, axis, origin), r.turn)),
                )
                for number, rows in sorted(by_bucket.items())
            ]
    return found


def same(found: float, wanted: float) -> bool:
    return found == wanted or (math.isnan(found) and math.isnan(wanted))


def check_buckets(curve: Curve, expected: list[tuple[int, int, list[Row]]], where: str) -> None:
    buckets = curve.buckets
    if buckets is None:
        assert not expected, where
        return
    assert list(zip(buckets.firsts, buckets.lasts, strict=True)) == [(a, b) for a, b, _ in expected], where
    columns = {name: column.tolist() for name, column in buckets.columns.items()}
    for index, (_, _, rows) in enumerate(expected):
        finite = [row.value for row in rows if math.isfinite(row.value)]
        wanted = {
            "minimum": min(finite, default=math.nan),
            "maximum": max(finite, default=math.nan),
            "first": rows[0].value,
            "last": rows[-1].value,
            "last_time_unix_us": rows[-1].time,
            "count": len(rows),
            "nan_count": sum(math.isnan(row.value) for row in rows),
            "positive_infinity_count": sum(row.value == math.inf for row in rows),
            "negative_infinity_count": sum(row.value == -math.inf for row in rows),
        }
        for name, value in wanted.items():
            assert same(columns[name][index], value), (where, index, name, columns[name][index], value)
        mean = columns["mean"][index]
        if not finite:
            assert math.isnan(mean), where
            continue
        right = math.fsum(value / len(finite) for value in finite)
        assert abs(mean - right) <= 1e-12 * max(map(abs, finite)) + 1e-280, (where, index, mean, right)


def check_summary(job: Job, definition: SeriesDefinition, summary: Summary | None) -> None:
    rows = job.counted(definition)
    where = f"{job.uid} {definition.name}"
    if summary is None:
        assert not rows, where
        return
    axis = Axis.TIME if definition.is_system else Axis.STEP
    last = max(rows, key=lambda r: (place(r, axis, 0), r.turn))
    finite = [(row.value + 0.0, row.step) for row in rows if math.isfinite(row.value)]
    assert summary.count == len(rows), where
    assert same(summary.last, last.value), where
    assert (summary.last_step, summary.last_time_unix_us) == (last.step, last.time), where
    lowest = min(finite, default=(None, 0))
    highest = min(((-value, step) for value, step in finite), default=(None, 0))
    assert (summary.minimum, summary.minimum_step) == lowest, (where, summary, lowest)
    assert summary.maximum_step == highest[1], (where, summary, highest)
    assert summary.maximum is None if highest[0] is None else summary.maximum == -highest[0], where


async def all_points(queries: Queries, job: Job, layout: Layout) -> dict[int, list[tuple[int, int, float]]]:
    selection = await queries.select([job.uid], Selector())
    origins = await queries.origins([job.uid], layout.axis)
    found: dict[int, list[tuple[int, int, float]]] = {}
    start: PageStart | None = None
    while True:
        curves, start = await queries.points(selection, layout, origins, start=start)
        for curve in curves:
            assert curve.points is not None
            columns = (curve.points.steps, curve.points.times_unix_us, curve.points.values)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            found.setdefault(curve.definition.series_id, []).extend(rows)
        if start is None:
            return found


async def check_points(queries: Queries, job: Job, layout: Layout) -> None:
    found = await all_points(queries, job, layout)
    origin = min((row.time for rows in job.rows.values() for row in rows), default=0)
    for definition in job.definitions:
        axis = Axis.TIME if definition.is_system and layout.axis is Axis.STEP else layout.axis
        rows = sorted(job.counted(definition), key=lambda r: (place(r, axis, origin), r.turn))
        rows = [r for r in rows if layout.bounds.low <= place(r, layout.axis, origin) <= layout.bounds.high]
        points = found.get(definition.series_id, [])
        assert [(s, t) for s, t, _ in points] == [(r.step, r.time) for r in rows], (job.uid, definition.name, layout)
        assert all(same(p[2], r.value) for p, r in zip(points, rows, strict=True)), (job.uid, definition.name)


def layouts(rng: np.random.Generator, job: Job) -> list[Layout]:
    rows = [row for rows in job.rows.values() for row in rows]
    if not rows:
        return [Layout(buckets_max=10)]
    origin = min(row.time for row in rows)
    found = []
    for axis, bounded in itertools.product(Axis, (False, True)):
        ends = sorted(place(rows[int(i)], axis, origin) for i in rng.integers(0, len(rows), 2))
        bounds = Bounds(low=ends[0], high=ends[1]) if bounded else Bounds()
        found.append(Layout(axis=axis, bounds=bounds, buckets_max=int(rng.choice([1, 3, 40, 1_000]))))
    return found


async def check(folder: str, series: int, seed: int) -> None:
    engine = open_engine(f"chdb://{folder}", lock_seconds=5, query_seconds=60, insert_seconds=60)
    connection = engine.connect()
    migrate(connection, read_migrations())
    rng = np.random.default_rng(seed)
    jobs = [made_job(rng, number) for number in range(max(1, series // SERIES_PER_JOB))]
    store = Store(engine, lanes=LaneLimits(readers=dict.fromkeys(Lane, 2), wait_seconds=30))
    await store.record_series([(job.uid, definition) for job in jobs for definition in job.definitions])
    writers = [(job.uid, attempt, step) for job in jobs for attempt, step in job.from_steps.items()]
    rows = pa.table(
        {
            "job_uid": [uid for uid, _, _ in writers],
            "attempt": pa.array([attempt for _, attempt, _ in writers], pa.uint16()),
            "rank": pa.array([0] * len(writers), pa.uint16()),
            "kind": ["points"] * len(writers),
            "epoch": [1] * len(writers),
            "from_step": [step for _, _, step in writers],
            "time_unix_us": [0] * len(writers),
        }
    )
    connection.insert("writers", rows)
    for start in range(0, len(jobs), 50):
        connection.insert("points", table_of(jobs[start : start + 50]))
    catalog, stored = Catalog(store, definitions_max=1_000), SeriesStore(store)
    limits = {"points_max": 37, "buckets_max": 100_000, "cursor_tries_max": 1}
    here = Queries(catalog, stored, limits=QueryLimits(few_rows=1_000_000, **limits))
    clickhouse = Queries(catalog, stored, limits=QueryLimits(few_rows=0, **limits))
    for job in jobs:
        selection = await here.select([job.uid], Selector())
        assert len(selection.all) == SERIES_PER_JOB
        summaries = await here.summaries(selection)
        for definition in job.definitions:
            by_attempt = summaries.get(definition.series_id)
            check_summary(job, definition, merged_summary(by_attempt) if by_attempt else None)
        for layout in layouts(rng, job):
            expected = expected_buckets(job, layout)
            origins = await here.origins([job.uid], layout.axis)
            for name, queries in (("here", here), ("clickhouse", clickhouse)):
                for curve in (await queries.buckets(selection, layout, origins))[job.uid]:
                    where = f"{name} {job.uid} {curve.definition.name} {layout}"
                    check_buckets(curve, expected.get(curve.definition.series_id, []), where)
        await check_points(here, job, layouts(rng, job)[int(rng.integers(0, 6)) % len(layouts(rng, job))])
    store.close()
    connection.close()
    engine.close()
    sys.stdout.write(f"checked {len(jobs) * SERIES_PER_JOB} series\n")


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
