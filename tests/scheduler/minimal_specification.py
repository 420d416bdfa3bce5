"""The least that a job says, and every task that its head can have."""

from __future__ import annotations

from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

TASKS = [task for task in task_pb2.Task.values() if task]


def minimal() -> JobSpec:
    spec = JobSpec()
    spec.model.heads.add(task=task_pb2.TASK_MULTICLASS_CLASSIFICATION, id="digits")
    return spec
