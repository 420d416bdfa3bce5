"""Rows ↔ values, in pairs. Enums are stored by their names, times as microseconds, small records as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import Row

from services.scheduler.job import (
    Attempt,
    AttemptOutcome,
    AttemptPhase,
    Checkpoint,
    CheckpointFile,
    CheckpointKey,
    Job,
    JobReason,
    JobState,
    Progress,
    ResumeSource,
    StopMode,
)
from services.scheduler.lease import Runner
from services.scheduler.placement import Capabilities, Gpu, needs_from_key
from services.scheduler.project import DatasetSource, Project

Values = dict[str, Any]


def project_to_row(project: Project) -> Values:
    """The columns of a project."""
    values = _shallow(project)
    values["training_dataset"] = _shallow(project.training_dataset)
    values["validation_dataset"] = _optional(project.validation_dataset)
    return values


def project_from_row(row: Row[Any]) -> Project:
    """The project of a row."""
    values = dict(row._mapping)
    values["training_dataset"] = DatasetSource(**values["training_dataset"])
    values["validation_dataset"] = _source_from_json(values["validation_dataset"])
    return Project(**values)


def job_to_row(job: Job) -> Values:
    """The columns of a job."""
    values = _shallow(job)
    values["needs_key"] = values.pop("needs").key
    values["labels"] = dict(job.labels)
    values["training_dataset"] = _shallow(job.training_dataset)
    values["validation_dataset"] = _optional(job.validation_dataset)
    values["ready"] = job.ready
    values["state"] = job.state.value
    values["reason"] = job.reason.value
    values["stop"] = int(job.stop)
    values["progress"] = _shallow(job.progress)
    values["last_checkpoint"] = _optional(job.last_checkpoint)
    values["source"] = dataclasses.asdict(job.source) if job.source is not None else None
    return values


def job_from_row(row: Row[Any]) -> Job:
    """The job of a row."""
    values = dict(row._mapping)
    del values["ready"]
    values["needs"] = needs_from_key(values.pop("needs_key"))
    values["training_dataset"] = DatasetSource(**values["training_dataset"])
    values["validation_dataset"] = _source_from_json(values["validation_dataset"])
    values["state"] = JobState(values["state"])
    values["reason"] = JobReason(values["reason"])
    values["stop"] = StopMode(values["stop"])
    values["progress"] = Progress(**values["progress"])
    values["last_checkpoint"] = checkpoint_key_from_json(values["last_checkpoint"])
    if (source := values["source"]) is not None:
        values["source"] = ResumeSource(**{**source, "key": CheckpointKey(**source["key"])})
    return Job(**values)


def attempt_to_row(attempt: Attempt) -> Values:
    """The columns of an attempt, but for `project_uid` and `adopted`, which are the store's own."""
    values = _shallow(attempt)
    values["active"] = attempt.active
    values["phase"] = attempt.phase.value
    values["outcome"] = attempt.outcome.value if attempt.outcome is not None else None
    values["reason"] = attempt.reason.value
    values["resume"] = _optional(attempt.resume)
    return values


def attempt_from_row(row: Row[Any], *, besides: tuple[str, ...] = ()) -> Attempt:
    """The attempt of a row, which may have columns besides."""
    values = dict(row._mapping)
    for own in ("project_uid", "active", "adopted", *besides):
        del values[own]
    values["phase"] = AttemptPhase(values["phase"])
    values["outcome"] = AttemptOutcome(values["outcome"]) if values["outcome"] is not None else None
    values["reason"] = JobReason(values["reason"])
    values["resume"] = checkpoint_key_from_json(values["resume"])
    return Attempt(**values)


def checkpoint_to_row(checkpoint: Checkpoint) -> Values:
    """The columns of a checkpoint."""
    values = _shallow(checkpoint)
    values |= _shallow(values.pop("key"))
    values["files"] = [_shallow(file) for file in checkpoint.files]
    return values


def checkpoint_from_row(row: Row[Any]) -> Checkpoint:
    """The checkpoint of a row."""
    values = dict(row._mapping)
    key = CheckpointKey(**{name: values.pop(name) for name in ("job_uid", "epoch", "iteration")})
    files = tuple(CheckpointFile(**file) for file in values.pop("files"))
    return Checkpoint(key=key, files=files, **values)


def runner_to_row(runner: Runner) -> Values:
    """The columns of a runner."""
    values = _shallow(runner)
    values["capabilities"] = capabilities_to_json(runner.capabilities)
    values["replaced"] = list(runner.replaced)
    return values


def runner_from_row(row: Row[Any]) -> Runner:
    """The runner of a row."""
    values = dict(row._mapping)
    values["capabilities"] = capabilities_from_json(values["capabilities"])
    values["replaced"] = tuple(values["replaced"])
    return Runner(**values)


def capabilities_to_json(capabilities: Capabilities) -> Values:
    """Capabilities as JSON."""
    values = _shallow(capabilities)
    values["gpus"] = [_shallow(gpu) for gpu in capabilities.gpus]
    values["tasks"] = sorted(capabilities.tasks)
    return values


def capabilities_from_json(values: Values) -> Capabilities:
    """The capabilities of their JSON."""
    gpus = tuple(Gpu(**gpu) for gpu in values["gpus"])
    return Capabilities(**{**values, "gpus": gpus, "tasks": frozenset(values["tasks"])})


def checkpoint_key_from_json(values: Values | None) -> CheckpointKey | None:
    """The key of its JSON."""
    return CheckpointKey(**values) if values is not None else None


def changes(before: Values, after: Values) -> Values:
    """The columns that differ."""
    return {name: value for name, value in after.items() if value != before[name]}


def _shallow(value: Any) -> Values:
    """The fields as they are: `dataclasses.asdict` copies deeply, which costs more than the insert."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _optional(value: Any) -> Values | None:
    return _shallow(value) if value is not None else None


def _source_from_json(values: Values | None) -> DatasetSource | None:
    return DatasetSource(**values) if values is not None else None
