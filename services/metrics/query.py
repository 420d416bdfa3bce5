"""What is asked of series: lists, points, buckets, summaries, of one job or of several side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.chassis.errors import InvalidArgument, Reason, Violation
from services.metrics.buckets import Buckets, bucketed
from services.metrics.job import JobFacts
from services.metrics.point import (
    SELECTED_SERIES_MAX,
    BucketBounds,
    Cuts,
    Selector,
    SeriesDefinition,
    Summary,
    merged_summary,
    step_range,
)
from services.metrics.rows import PointColumns
from services.metrics.series import Counted, SeriesStore, Wanted
from services.metrics.store import Store

STEP_MIN = -(2**63)
STEP_MAX = 2**63 - 1
NO_CUTS = Cuts({})
FEW_SERIES = 10


@dataclass(frozen=True, kw_only=True)
class SummarizedSeries:
    """A series with its points in short."""

    definition: SeriesDefinition
    summary: Summary


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A series with its points or its buckets; neither where none counts."""

    definition: SeriesDefinition
    points: PointColumns | None = None
    buckets: Buckets | None = None
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Series of some jobs, by job, and where the attempts of each job stop to count."""

    definitions: Mapping[str, Sequence[SeriesDefinition]]
    cuts: Mapping[str, Cuts]

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

    def few(self) -> list[SeriesDefinition]:
        """All of them, or InvalidArgument where they are too many for one answer."""
        found = self.all
        if len(found) > SELECTED_SERIES_MAX:
            description = f"takes {len(found)} series, but at most {SELECTED_SERIES_MAX} go into one answer: name fewer"
            raise InvalidArgument([Violation(field="selector", description=description)])
        return found

    def wanted(self, step_min: int | None, step_max: int | None) -> Wanted:
        """Their points between two steps."""
        return Wanted(
            job_uids=tuple(self.definitions),
            series_ids=self.series_ids,
            first=STEP_MIN if step_min is None else step_min,
            last=STEP_MAX if step_max is None else step_max,
            counted=Counted(cuts=self.cuts, system_ids=self.system_ids),
        )


@dataclass(frozen=True, kw_only=True)
class QueryLimits:
    """What one answer holds at most."""

    points_max: int
    buckets_max: int
    few_rows: int
    """Up to here buckets are made by this process: a query that only reads takes half the time of one that groups."""


class Queries:
    """Answers from storage alone: whoever was acknowledged is in them."""

    def __init__(self, store: Store, series: SeriesStore, *, limits: QueryLimits) -> None:
        self._store = store
        self._series = series
        self._limits = limits

    async def select(self, job_uids: Sequence[str], selector: Selector) -> Selection:
        """The series that are meant, and what of them counts."""
        definitions, cuts = await asyncio.gather(
            self._series.definitions(job_uids, selector), self._store.cuts(job_uids)
        )
        return Selection(definitions=definitions, cuts=cuts)

    async def summarize(self, selection: Selection) -> dict[str, list[SummarizedSeries]]:
        """The selected series with points that count, with their summaries, by job, sorted by name."""
        summaries = await self._series.summaries(
            selection.cuts, series_ids=selection.series_ids, system_ids=selection.system_ids
        )
        return {
            job_uid: [
                SummarizedSeries(definition=d, summary=merged_summary(summaries[d.series_id]))
                for d in of_job
                if d.series_id in summaries
            ]
            for job_uid, of_job in selection.definitions.items()
        }

    async def page(
        self, job: JobFacts, *, name_prefix: str, after: int | None, size: int
    ) -> tuple[list[SummarizedSeries], bool]:
        """A page of a job's series, after the one with the id `after`, and whether there are more."""
        selection = await self.select([job.uid], Selector())
        found = (await self.summarize(selection))[job.uid]
        found = [series for series in found if series.definition.name.startswith(name_prefix)]
        start = 0
        if after is not None:
            places = [i for i, series in enumerate(found) if series.definition.series_id == after]
            if not places:
                violation = Violation(field="page_token", description="is not of this job and prefix: begin again")
                raise InvalidArgument([violation], reason=Reason.INVALID_PAGE_TOKEN)
            start = places[0] + 1
        return found[start : start + size], len(found) > start + size

    async def points(self, selection: Selection, *, step_min: int | None, step_max: int | None) -> list[Curve]:
        """Points of the selected series, in equal shares of what an answer holds."""
        definitions = selection.few()
        if not definitions:
            return []
        share = max(1, self._limits.points_max // len(definitions))
        wanted = selection.wanted(step_min, step_max)
        found = await self._series.points(wanted, points_max=share + 1)
        return [_point_curve(definition, found.get(definition.series_id), share) for definition in definitions]

    async def buckets(
        self, selection: Selection, *, step_min: int | None, step_max: int | None, buckets_max: int
    ) -> dict[str, list[Curve]]:
        """Buckets of the selected series, by job; the bounds are the same for all of them."""
        definitions = selection.few()
        wanted = selection.wanted(step_min, step_max)
        share = max(1, min(buckets_max, self._limits.buckets_max // max(1, len(definitions))))
        found = await self._few_buckets(wanted, share)
        if found is None:
            found = await self._many_buckets(wanted, share, selection)
        return {
            job_uid: [Curve(definition=d, buckets=found.get(d.series_id)) for d in of_job]
            for job_uid, of_job in selection.definitions.items()
        }

    async def _few_buckets(self, wanted: Wanted, share: int) -> dict[int, Buckets] | None:
        """Buckets made here, where there are few points; else None. One simple query is all that it takes."""
        if not wanted.series_ids:
            return {}
        if len(wanted.series_ids) > FEW_SERIES:
            return None
        found = await self._series.rows(wanted, rows_max=self._limits.few_rows)
        if found is None:
            return None
        if not found:
            return {}
        first = min(int(points.steps.min()) for points in found.values())
        last = max(int(points.steps.max()) for points in found.values())
        bounds = BucketBounds.over(first=first, last=last, buckets_max=share)
        return {series_id: bucketed(points, bounds) for series_id, points in found.items()}

    async def _many_buckets(self, wanted: Wanted, share: int, selection: Selection) -> dict[int, Buckets]:
        """Buckets made by ClickHouse, after it was asked for the range of steps."""
        ranges = await self._series.ranges(wanted)
        span = step_range(
            (ranges.get(d.series_id, {}), NO_CUTS if d.is_system else selection.cuts[job_uid])
            for job_uid, of_job in selection.definitions.items()
            for d in of_job
        )
        if span is None:
            return {}
        first, last = max(span[0], wanted.first), min(span[1], wanted.last)
        if first > last:
            return {}
        bounds = BucketBounds.over(first=first, last=last, buckets_max=share)
        return await self._series.buckets(wanted, bounds)


def _point_curve(definition: SeriesDefinition, points: PointColumns | None, share: int) -> Curve:
    if points is None or len(points.steps) <= share:
        return Curve(definition=definition, points=points)
    cut = PointColumns(
        series_id=points.series_id,
        steps=points.steps[:share],
        times_unix_us=points.times_unix_us[:share],
        values=points.values[:share],
    )
    return Curve(definition=definition, points=cut, truncated=True)
