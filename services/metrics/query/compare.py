"""Jobs side by side: where their configurations differ, their summaries, their curves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.chassis.errors import Unavailable
from services.metrics.cursor import Places
from services.metrics.job import ConfiguredJob, JobFacts
from services.metrics.jobs import Jobs
from services.metrics.point import SELECTED_SERIES_MAX, Selector
from services.metrics.query.query import Curve, Layout, Queries, SummarizedSeries, summarized

Answer = TypeVar("Answer")

BUCKETS_DEFAULT = 200
SUMMARIES_MAX = 5_000
"""Series of a comparison without curves."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field that is not the same in all jobs: its value in each, as JSON, empty where a job does not have it."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedJob:
    """One job of a comparison. `facts` may be old where the scheduler is away."""

    facts: JobFacts
    series: list[SummarizedSeries]
    curves: list[Curve]
    origin: int
    """Where its time begins, where curves are laid out by relative time; else 0."""
    places: Places | None
    """How far its writers were stored when the curves were read; None where nobody asked."""
    places_overlap: bool
    """It was written to while the curves were read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Jobs in the order asked for. `differences` is None where the scheduler could not be asked."""

    jobs: list[ComparedJob]
    differences: list[Difference] | None


async def compare_jobs(
    jobs: Jobs, queries: Queries, names: Sequence[str], selector: Selector | None, layout: Layout, *, with_places: bool
) -> Comparison:
    """Compare. Without a selector: the summaries of all series and no curves."""
    facts = await jobs.named(names)
    uids = list(dict.fromkeys(job.uid for job in facts))
    most = SUMMARIES_MAX if selector is None else SELECTED_SERIES_MAX
    selection, origins = await asyncio.gather(
        queries.select(uids, selector or Selector(), most=most), queries.origins(uids, layout.axis)
    )

    async def read() -> tuple[Mapping[str, list[SummarizedSeries]], Mapping[str, list[Curve]]]:
        summaries = await queries.summaries(selection)
        shown = summarized(selection, summaries)
        return shown, {} if selector is None else await queries.buckets(selection, layout, origins, summaries)

    placed, configured = await asyncio.gather(
        queries.with_places(uids, read) if with_places else _without_places(read), _configured(jobs, uids)
    )
    (summaries, curves), places, overlapping = placed
    compared = [
        ComparedJob(
            facts=configured[job.uid].facts if job.uid in configured else job,
            series=summaries[job.uid],
            curves=curves.get(job.uid, []),
            origin=origins.get(job.uid, 0),
            places=places.get(job.uid),
            places_overlap=job.uid in overlapping,
        )
        for job in facts
    ]
    known = [configured[job.uid] for job in facts if job.uid in configured]
    return Comparison(jobs=compared, differences=differences(known) if len(known) == len(facts) else None)


async def _without_places(read: Callable[[], Awaitable[Answer]]) -> tuple[Answer, dict[str, Places], frozenset[str]]:
    return await read(), {}, frozenset()


async def _configured(jobs: Jobs, uids: Sequence[str]) -> Mapping[str, ConfiguredJob]:
    try:
        return await jobs.configured(uids)
    except Unavailable:
        return {}


def differences(jobs: Sequence[ConfiguredJob]) -> list[Difference]:
    """The fields that are not the same in all jobs, by path."""
    paths = sorted({path for job in jobs for path in job.configuration})
    rows = ((path, tuple(job.configuration.get(path, "") for job in jobs)) for path in paths)
    return [Difference(path=path, values=values) for path, values in rows if len(set(values)) > 1]
