"""Jobs side by side: where their configurations differ, their summaries, their curves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.chassis.errors import Unavailable
from services.metrics.job import ConfiguredJob, JobFacts
from services.metrics.jobs import Jobs
from services.metrics.point import Selector
from services.metrics.query import Curve, Queries, Selection, SummarizedSeries

BUCKETS_DEFAULT = 200


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Jobs in the order asked for. `differences` is None where the scheduler could not be asked."""

    jobs: list[ComparedJob]
    differences: list[Difference] | None


async def compare_jobs(
    jobs: Jobs, queries: Queries, names: Sequence[str], selector: Selector | None, *, buckets_max: int
) -> Comparison:
    """Compare. Without a selector: the summaries of all series and no curves."""
    facts = await jobs.named(names)
    uids = list(dict.fromkeys(job.uid for job in facts))
    selection = await queries.select(uids, selector or Selector())
    summaries, curves, configured = await asyncio.gather(
        queries.summarize(selection),
        _curves(queries, selection if selector is not None else None, buckets_max),
        _configured(jobs, uids),
    )
    compared = [
        ComparedJob(
            facts=configured[job.uid].facts if job.uid in configured else job,
            series=summaries[job.uid],
            curves=curves.get(job.uid, []),
        )
        for job in facts
    ]
    known = [configured[job.uid] for job in facts if job.uid in configured]
    return Comparison(jobs=compared, differences=differences(known) if len(known) == len(facts) else None)


async def _curves(queries: Queries, selection: Selection | None, buckets_max: int) -> Mapping[str, list[Curve]]:
    if selection is None:
        return {}
    return await queries.buckets(selection, step_min=None, step_max=None, buckets_max=buckets_max)


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
