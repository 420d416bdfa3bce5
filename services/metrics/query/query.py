"""What is asked of series: lists, points, buckets, summaries, of one job or of several side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.buckets import Buckets, bucketed, placed_range
from services.metrics.clickhouse.catalog import Catalog
from services.metrics.clickhouse.series import SeriesStore
from services.metrics.clickhouse.wanted import Position, Wanted
from services.metrics.cursor import Places
from services.metrics.grid import Axis, Bounds, Grid, Interval
from services.metrics.point import SELECTED_SERIES_MAX, Cuts, Selector, SeriesDefinition, Summary, merged_summary
from services.metrics.rows import PointColumns

Answer = TypeVar("Answer")

Summaries: TypeAlias = Mapping[int, Mapping[int, Summary]]
"""By series and attempt."""

NO_CUTS = Cuts({})
FEW_SERIES = 10


@dataclass(frozen=True, kw_only=True)
class SummarizedSeries:
    """A series with its points in short."""

    definition: SeriesDefinition
    summary: Summary


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A series with its points or its buckets, laid out by `axis`; neither where none counts."""

    definition: SeriesDefinition
    axis: Axis
    points: PointColumns | None = None
    buckets: Buckets | None = None
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What curves are laid out by, and from where to where; of each at most so many buckets."""

    axis: Axis = Axis.STEP
    bounds: Bounds = field(default_factory=Bounds)
    buckets_max: int = 0


@dataclass(frozen=True, kw_only=True)
class PageStart:
    """Where a page of points begins: after a position, or with the first of the series that go by time."""

    by_time: bool
    after: Position | None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Series of some jobs, by job, and where the attempts of each job stop to count."""

    definitions: Mapping[str, Sequence[SeriesDefinition]]
    cuts: Mapping[str, Cuts]
    is_whole: bool
    """These are all series of the jobs: they need not be named."""

    @property
    def all(self) -> list[SeriesDefinition]:
        """Of all jobs."""
        return [definition for of_job in self.definitions.values() for definition in of_job]

    @property
    def series_ids(self) -> tuple[int, ...]:
        """Of all jobs."""
        return tuple(definition.series_id for definition in self.all)

    @property
    def system_ids(self) -> tuple[int, ...]:
        """Of the series that no cut concerns."""
        return tuple(definition.series_id for definition in self.all if definition.is_system)

    def wanted(self, layout: Layout, origins: Mapping[str, int], *, by_time: bool) -> Wanted:
        """The points of those series that go by time, or of the others."""
        of_jobs = {
            job_uid: tuple(d.series_id for d in of_job if d.is_system == by_time)
            for job_uid, of_job in self.definitions.items()
        }
        series = {job_uid: series_ids for job_uid, series_ids in of_jobs.items() if series_ids}
        return Wanted(
            series=series,
            by_time=by_time,
            axis=layout.axis,
            bounds=layout.bounds,
            cuts={} if by_time else {job_uid: self.cuts[job_uid] for job_uid in series},
            origins=origins,
        )


@dataclass(frozen=True, kw_only=True)
class QueryLimits:
    """What one answer holds at most."""

    points_max: int
    buckets_max: int
    few_rows: int
    """Up to here buckets are made by this process: a query that only reads takes half the time of one that groups."""
    cursor_tries_max: int
    """How often an answer is read again because something was stored meanwhile."""


class Queries:
    """Answers from storage alone: whoever was acknowledged is in them."""

    def __init__(self, catalog: Catalog, series: SeriesStore, *, limits: QueryLimits) -> None:
        self._catalog = catalog
        self._series = series
        self._limits = limits

    async def select(
        self, job_uids: Sequence[str], selector: Selector, *, most: int = SELECTED_SERIES_MAX
    ) -> Selection:
        """The series that are meant, and what of them counts; InvalidArgument where they are too many for an answer."""
        definitions, cuts = await asyncio.gather(
            self._catalog.definitions(job_uids, selector, most=most), self._catalog.cuts(job_uids)
        )
        if definitions is None:
            description = f"takes more than {most} series, the most that go into one answer: name fewer"
            raise InvalidArgument([Violation(field="selector", description=description)])
        return Selection(definitions=definitions, cuts=cuts, is_whole=selector == Selector())

    async def select_page(
        self, job_uid: str, selector: Selector, *, after: tuple[str, str, int] | None, size: int
    ) -> tuple[Selection, bool]:
        """At most `size` series of a job that are meant, after (job uid, name, id), by name; and if more follow."""
        found, cuts = await asyncio.gather(
            self._catalog.page([job_uid], selector, name_prefix="", after=after, size=size + 1),
            self._catalog.cuts([job_uid]),
        )
        definitions = {job_uid: [definition for _, definition in found[:size]]}
        return Selection(definitions=definitions, cuts=cuts, is_whole=False), len(found) > size

    async def summaries(self, selection: Selection) -> Summaries:
        """What counts of the selected series, in short, by series and attempt."""
        if not selection.series_ids:
            return {}
        series = {job_uid: [d.series_id for d in of_job] for job_uid, of_job in selection.definitions.items()}
        return await self._series.summaries(
            series, selection.cuts, system_ids=selection.system_ids, are_all=selection.is_whole
        )

    async def page(
        self,
        job_uids: Sequence[str],
        selector: Selector,
        *,
        name_prefix: str = "",
        after: tuple[str, str, int] | None,
        size: int,
    ) -> tuple[list[tuple[str, SeriesDefinition, Summary | None]], bool]:
        """A page of series, after (job uid, name, id), in the order of the jobs, by name; and whether there are more.

        The summary is None where no point counts.
        """
        found = await self._catalog.page(job_uids, selector, name_prefix=name_prefix, after=after, size=size + 1)
        page = found[:size]
        by_job: dict[str, list[SeriesDefinition]] = {}
        for job_uid, definition in page:
            by_job.setdefault(job_uid, []).append(definition)
        if not page:
            return [], False
        is_whole = selector == Selector() and not name_prefix and after is None and len(found) <= size
        cuts = await self._catalog.cuts(list(by_job))
        selection = Selection(definitions=by_job, cuts=cuts, is_whole=is_whole)
        summaries = await self.summaries(selection)
        rows: list[tuple[str, SeriesDefinition, Summary | None]] = [
            (job_uid, d, merged_summary(summaries[d.series_id]) if d.series_id in summaries else None)
            for job_uid, d in page
        ]
        return rows, len(found) > size

    async def origins(self, job_uids: Sequence[str], axis: Axis) -> dict[str, int]:
        """Where the time of each job begins, where that is asked for: at its first point."""
        return await self._series.origins(job_uids) if axis is Axis.RELATIVE_TIME else {}

    async def points(
        self, selection: Selection, layout: Layout, origins: Mapping[str, int], *, start: PageStart | None
    ) -> tuple[list[Curve], PageStart | None]:
        """A page of points of the selected series of one job, and where the next one begins; None at the end."""
        curves: list[Curve] = []
        room = self._limits.points_max
        by_id = {definition.series_id: definition for definition in selection.all}
        for by_time in (False, True):
            wanted = selection.wanted(layout, origins, by_time=by_time)
            if not wanted.series_ids or (start is not None and start.by_time and not by_time):
                continue
            if not room:
                return curves, PageStart(by_time=by_time, after=None)
            after = start.after if start is not None and start.by_time == by_time else None
            page = await self._series.points(wanted, after=after, points_max=room)
            cut = None if page.last is None else page.last.series_id
            curves += [
                Curve(
                    definition=by_id[points.series_id],
                    axis=wanted.laid_out_by,
                    points=points,
                    truncated=points.series_id == cut,
                )
                for points in page.points
            ]
            if page.last is not None:
                return _by_name(curves), PageStart(by_time=by_time, after=page.last)
            room -= sum(len(points.steps) for points in page.points)
        return _by_name(curves), None

    async def buckets(
        self,
        selection: Selection,
        layout: Layout,
        origins: Mapping[str, int],
        summaries: Summaries | None = None,
    ) -> dict[str, list[Curve]]:
        """Buckets of the selected series, by job; the bounds are the same for all that have the same axis.

        Summaries of the selection save a query to whoever has them.
        """
        count = max(1, len(selection.series_ids))
        share = max(1, min(layout.buckets_max, self._limits.buckets_max // count))
        kinds = [selection.wanted(layout, origins, by_time=by_time) for by_time in (False, True)]
        by_step, by_time = await asyncio.gather(*(self._buckets(wanted, share, summaries) for wanted in kinds))
        found = by_step | by_time
        return {
            job_uid: [
                Curve(definition=d, axis=kinds[d.is_system].laid_out_by, buckets=found.get(d.series_id)) for d in of_job
            ]
            for job_uid, of_job in selection.definitions.items()
        }

    async def with_places(
        self, job_uids: Sequence[str], read: Callable[[], Awaitable[Answer]]
    ) -> tuple[Answer, dict[str, Places], frozenset[str]]:
        """An answer with how far each writer of each job was stored before it was read.

        It is read again where a job was written to meanwhile, a few times; named are the jobs where it was so each
        time.
        """
        before = await self._series.places(job_uids)
        for turn in range(1, self._limits.cursor_tries_max + 1):
            answer = await read()
            after = await self._series.places(job_uids)
            changed = frozenset(job_uid for job_uid in job_uids if before[job_uid] != after[job_uid])
            if not changed or turn == self._limits.cursor_tries_max:
                return answer, before, changed
            before = after
        raise AssertionError("there is at least one try")

    async def _buckets(self, wanted: Wanted, share: int, summaries: Summaries | None) -> dict[int, Buckets]:
        """Buckets of series of one kind: made here where there are few points, else by ClickHouse."""
        if not wanted.series_ids:
            return {}
        if summaries is None and len(wanted.series_ids) > FEW_SERIES:
            summaries = await self._summaries(wanted)
        if summaries is not None and _count(wanted, summaries) > self._limits.few_rows:
            return await self._many_buckets(wanted, share, summaries)
        # The range decides on the grid: it must not depend on who makes the buckets.
        asks_range = not wanted.bounds.is_whole or not (wanted.is_own_axis or wanted.is_uncut)
        reading = self._series.rows(wanted, rows_max=self._limits.few_rows)
        if asks_range and summaries is None:
            found, summaries = await asyncio.gather(reading, self._summaries(wanted))
        else:
            found = await reading
        if found is None:
            return await self._many_buckets(wanted, share, summaries or await self._summaries(wanted))
        if not found:
            return {}
        span = _span(wanted, summaries) if summaries is not None else None
        grid = Grid.over(*(span or placed_range(found.values())), buckets_max=share)
        return await asyncio.to_thread(
            lambda: {series_id: bucketed(points, grid) for series_id, points in found.items()}
        )

    async def _many_buckets(self, wanted: Wanted, share: int, summaries: Summaries) -> dict[int, Buckets]:
        span = _span(wanted, summaries)
        if span is None:
            return {}
        return await self._series.buckets(wanted, Grid.over(*span, buckets_max=share))

    async def _summaries(self, wanted: Wanted) -> Summaries:
        cuts = wanted.cuts or dict.fromkeys(wanted.series, NO_CUTS)
        system_ids = wanted.series_ids if wanted.by_time else ()
        return await self._series.summaries(wanted.series, cuts, system_ids=system_ids)


def summarized(selection: Selection, summaries: Summaries) -> dict[str, list[SummarizedSeries]]:
    """The series with points that count, by job, in the selection's order."""
    return {
        job_uid: [
            SummarizedSeries(definition=d, summary=merged_summary(summaries[d.series_id]))
            for d in of_job
            if d.series_id in summaries
        ]
        for job_uid, of_job in selection.definitions.items()
    }


def _count(wanted: Wanted, summaries: Summaries) -> int:
    of_series = (summaries.get(series_id, {}) for series_id in wanted.series_ids)
    return sum(summary.count for by_attempt in of_series for summary in by_attempt.values())


def _span(wanted: Wanted, summaries: Summaries) -> Interval | None:
    """From where to where the points lie that count, within the bounds; None where there is none.

    Of the times of series that go by step with those that are cut away: they lie between the others.
    """
    by_step = wanted.laid_out_by is Axis.STEP
    ranges = [
        (s.axis_min, s.axis_max) if by_step else (s.time_min - wanted.origin(uid), s.time_max - wanted.origin(uid))
        for uid, series_ids in wanted.series.items()
        for series_id in series_ids
        for s in summaries.get(series_id, {}).values()
    ]
    if not ranges:
        return None
    first, last = min(first for first, _ in ranges), max(last for _, last in ranges)
    return wanted.bounds.within(first, last) if wanted.laid_out_by is wanted.axis else (first, last)


def _by_name(curves: list[Curve]) -> list[Curve]:
    return sorted(curves, key=lambda curve: (curve.definition.name, curve.definition.context))
