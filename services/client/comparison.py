"""Jobs side by side: where their configurations differ, and their series."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sihlai.metrics.v1 import metrics_service_pb2 as pb
from sihlai.scheduler.v1.job_pb2 import Job

from services.client.call import METRICS, Transport, ask
from services.client.frame import Frame
from services.client.job import JobFacts
from services.client.name import short
from services.client.series import label_of


class Comparison:
    """Jobs side by side; `proto` has everything, curves included."""

    def __init__(self, proto: pb.CompareJobsResponse) -> None:
        self.proto = proto

    @property
    def differences(self) -> Mapping[str, Mapping[str, Any]]:
        """The fields of the configurations that differ, by path, then by job; None where a job lacks the field."""
        jobs = [short(job.job) for job in self.proto.jobs]
        return {
            found.path: {
                job: json.loads(value) if value else None for job, value in zip(jobs, found.values, strict=True)
            }
            for found in self.proto.differences
        }

    def frame(self) -> Frame:
        """One row for each series of each job: its last, lowest and highest values with their steps."""
        rows = [(job.job, series) for job in self.proto.jobs for series in job.series]
        columns: dict[str, list[Any]] = {
            "job": [short(job) for job, _ in rows],
            "series": [label_of(each.definition.name, each.definition.context) for _, each in rows],
        }
        for name in ("last", "last_step", "minimum", "minimum_step", "maximum", "maximum_step", "count", "nan_count"):
            present = name.partition("_")[0] if name.startswith(("minimum", "maximum")) else ""
            columns[name] = [
                getattr(each.summary, name) if not present or each.summary.HasField(present) else None  # type: ignore[arg-type]
                for _, each in rows
            ]
        return Frame(columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.frame().__arrow_c_stream__(requested_schema)


async def of_job(transport: Transport, job: str, *others: JobFacts, names: Iterable[str] = ()) -> Comparison:
    """This job and others side by side: where their configurations differ, and the series of these names."""
    return await _compared(transport, [job, *(each.name for each in others)], names)


async def of_jobs(transport: Transport, jobs: Iterable[Job], *names: str) -> Comparison:
    """Where their configurations differ, and these series side by side."""
    return await _compared(transport, [each.name for each in jobs], names)


async def _compared(transport: Transport, jobs: Iterable[str], names: Iterable[str]) -> Comparison:
    request = pb.CompareJobsRequest(jobs=jobs, selector=pb.SeriesSelector(names=names))
    return Comparison(await ask(transport, METRICS.CompareJobs, request))
