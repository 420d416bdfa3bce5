"""What blocking and awaiting clients give alike: facts that are known without a call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sihlai.metrics.v1.metrics_service_pb2 import CompareJobsResponse
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.client.frame import Frame
from services.client.job import ENDED, state_name
from services.client.name import short
from services.client.series import label_of


class JobFacts:
    """A job as it was when it was last read; `proto` has everything."""

    proto: job_pb2.Job

    @property
    def name(self) -> str:
        """`projects/digits/jobs/first`."""
        return self.proto.name

    @property
    def state(self) -> str:
        """`queued`, `starting`, `running`, `stopping`, `completed`, `stopped` or `failed`."""
        return state_name(self.proto.state)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.proto.state in ENDED

    @property
    def spec(self) -> JobSpec:
        """Its specification with every default filled in."""
        return self.proto.spec

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short(self.name)!r}, {self.state})"


class Comparison:
    """Jobs side by side; `proto` has everything, curves included."""

    def __init__(self, proto: CompareJobsResponse) -> None:
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
