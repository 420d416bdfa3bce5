"""What is asked of series: lists, points, buckets, summaries, of one job or of several side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
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

    async def summarize(self, job_uids: Sequence[str], selector: Selector) -> dict[str, list[SummarizedSeries]]:
        """The series with points that count, with their summaries, by job, sorted by name."""
        definitions, cuts = await asyncio.gather(
            self._series.definitions(job_uids, selector), self._store.cuts(job_uids)
        )
        everything = [definition for of_job in definitions.values() for definition in of_job]
        summaries = await self._series.summaries(job_uids, cuts, system_ids=_system_ids(everything))
        return {
            job_uid: [
                SummarizedSeries(definition=d, summary=merged_summary(summaries[d.series_id]))
                for d in of_job
                if d.series_id in summaries
            ]
            for job_uid, of_job in definitions.items()
        }

    async def page(
        self, job: JobFacts, *, name_prefix: str, after: int | None, size: int
    ) -> tuple[list[SummarizedSeries], bool]:
        """A page of a job's series, after the one with the id `after`, and whether there are more."""
        found = (await self.summarize([job.uid], Selector()))[job.uid]
        found = [series for series in found if series.definition.name.startswith(name_prefix)]
        start = 0
        if after is not None:
            places = [i for i, series in enumerate(found) if series.definition.series_id == after]
            if not places:
                violation = Violation(field="page_token", description="is not of this job and prefix: begin again")
                raise InvalidArgument([violation], reason=Reason.INVALID_PAGE_TOKEN)
            start = places[0] + 1
        return found[start : start + size], len(found) > start + size

    async def points(
        self, job: JobFacts, selector: Selector, *, step_min: int | None, step_max: int | None
    ) -> list[Curve]:
        """Points of the series that are meant, in equal shares of what an answer holds."""
        definitions, cuts = await self._selected([job.uid], selector)
        if not definitions:
            return []
        share = max(1, self._limits.points_max // len(definitions))
        wanted = Wanted(
            job_uids=(job.uid,),
            series_ids=tuple(definition.series_id for definition in definitions),
            first=STEP_MIN if step_min is None else step_min,
            last=STEP_MAX if step_max is None else step_max,
            counted=Counted(cuts=cuts, system_ids=tuple(_system_ids(definitions))),
        )
        found = await self._series.points(wanted, points_max=share + 1)
        return [_point_curve(definition, found.get(definition.series_id), share) for definition in definitions]

    async def buckets(
        self,
        job_uids: Sequence[str],
        selector: Selector,
        *,
        step_min: int | None,
        step_max: int | None,
        buckets_max: int,
    ) -> dict[str, list[Curve]]:
        """Buckets of the series that are meant, by job; the bounds are the same for all of them."""
        definitions_by_job, cuts = await asyncio.gather(
            self._series.definitions(job_uids, selector), self._store.cuts(job_uids)
        )
        definitions = _required_few(definitions_by_job)
        wanted = Wanted(
            job_uids=tuple(job_uids),
            series_ids=tuple(definition.series_id for definition in definitions),
            first=STEP_MIN if step_min is None else step_min,
            last=STEP_MAX if step_max is None else step_max,
            counted=Counted(cuts=cuts, system_ids=tuple(_system_ids(definitions))),
        )
        share = max(1, min(buckets_max, self._limits.buckets_max // max(1, len(definitions))))
        found = await self._few_buckets(wanted, share)
        if found is None:
            found = await self._many_buckets(wanted, share, definitions_by_job)
        return {
            job_uid: [Curve(definition=d, buckets=found.get(d.series_id)) for d in of_job]
            for job_uid, of_job in definitions_by_job.items()
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

    async def _many_buckets(
        self, wanted: Wanted, share: int, definitions: Mapping[str, Sequence[SeriesDefinition]]
    ) -> dict[int, Buckets]:
        """Buckets made by ClickHouse, after it was asked for the range of steps."""
        ranges = await self._series.ranges(wanted.job_uids)
        cuts = wanted.counted.cuts
        span = step_range(
            (ranges.get(d.series_id, {}), NO_CUTS if d.is_system else cuts[job_uid])
            for job_uid, of_job in definitions.items()
            for d in of_job
        )
        if span is None:
            return {}
        first, last = max(span[0], wanted.first), min(span[1], wanted.last)
        if first > last:
            return {}
        bounds = BucketBounds.over(first=first, last=last, buckets_max=share)
        return await self._series.buckets(wanted, bounds)

    async def _selected(
        self, job_uids: Sequence[str], selector: Selector
    ) -> tuple[list[SeriesDefinition], dict[str, Cuts]]:
        definitions, cuts = await asyncio.gather(
            self._series.definitions(job_uids, selector), self._store.cuts(job_uids)
        )
        return _required_few(definitions), cuts


def _required_few(by_job: Mapping[str, Sequence[SeriesDefinition]]) -> list[SeriesDefinition]:
    """All of them, or InvalidArgument where they are too many for one answer."""
    found = [definition for of_job in by_job.values() for definition in of_job]
    if len(found) > SELECTED_SERIES_MAX:
        description = f"takes {len(found)} series, but at most {SELECTED_SERIES_MAX} go into one answer: name fewer"
        raise InvalidArgument([Violation(field="selector", description=description)])
    return found


def _system_ids(definitions: Iterable[SeriesDefinition]) -> list[int]:
    return [definition.series_id for definition in definitions if definition.is_system]


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
