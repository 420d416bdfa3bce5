"""Rows ↔ values, in pairs. Enums are stored by their names, times as microseconds, small records as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from msgspec.structs import asdict
from sqlalchemy import Row

from services.chassis.log import get_logger
from services.scheduler.domain.job import (
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
from services.scheduler.domain.lease import Runner
from services.scheduler.domain.placement import Capabilities, Gpu, needs_from_key
from services.scheduler.domain.project import DatasetSource, Project
from services.scheduler.domain.view import DAMAGE, Damaged
from services.scheduler.store.statement import Values

log = get_logger(__name__)

Record: TypeAlias = Mapping[Any, Any]
"""A row, by columns."""
Value = TypeVar("Value")


def readable(
    rows: Iterable[Row[Any]], convert: Callable[[Record], Value], *, place: Callable[[Row[Any]], str]
) -> list[Value | Damaged]:
    """The values of the rows in their order. For one that cannot be read a line in the log, and its place."""
    found: list[Value | Damaged] = []
    names: list[str] = []
    for row in rows:
        # As Python has the names of fields: to make a value of SQLAlchemy's own ones takes three times as long.
        names = names or [sys.intern(str(name)) for name in row._fields]
        try:
            found.append(convert(dict(zip(names, row, strict=True))))
        except DAMAGE as error:
            log.error("record_damaged", record=place(row), kind=convert.__name__, problem=f"{error!r}")
            found.append(Damaged(place=place(row)))
    return found


def project_to_row(project: Project) -> Values:
    """The columns of a project."""
    values = asdict(project)
    values["training_dataset"] = asdict(project.training_dataset)
    values["validation_dataset"] = _optional(project.validation_dataset)
    return values


def project_from_row(row: Record) -> Project:
    """The project of a row."""
    values = dict(row)
    values["training_dataset"] = DatasetSource(**values["training_dataset"])
    values["validation_dataset"] = _source_from_json(values["validation_dataset"])
    return Project(**values)


def job_to_row(job: Job) -> Values:
    """The columns of a job."""
    values = asdict(job)
    values["needs_key"] = values.pop("needs").key
    values["labels"] = dict(job.labels)
    values["training_dataset"] = asdict(job.training_dataset)
    values["validation_dataset"] = _optional(job.validation_dataset)
    values["ready"] = job.ready
    values["state"] = job.state.value
    values["reason"] = job.reason.value
    values["stop"] = int(job.stop)
    values["progress"] = progress_to_json(job.progress)
    values["last_checkpoint"] = _optional(job.last_checkpoint)
    values["source"] = {**asdict(job.source), "key": asdict(job.source.key)} if job.source is not None else None
    return values


def job_from_row(row: Record) -> Job:
    """The job of a row."""
    values = dict(row)
    del values["ready"]
    values["labels"] = {**values["labels"]}
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
    values = asdict(attempt)
    values["active"] = attempt.active
    values["phase"] = attempt.phase.value
    values["outcome"] = attempt.outcome.value if attempt.outcome is not None else None
    values["reason"] = attempt.reason.value
    values["resume"] = _optional(attempt.resume)
    values["progress"] = progress_to_json(attempt.progress)
    return values


def attempt_from_row(row: Record, *, besides: tuple[str, ...] = ()) -> Attempt:
    """The attempt of a row, which may have columns besides."""
    values = dict(row)
    for own in ("project_uid", "active", "adopted", "adopt_time_us", *besides):
        del values[own]
    values["phase"] = AttemptPhase(values["phase"])
    values["outcome"] = AttemptOutcome(values["outcome"]) if values["outcome"] is not None else None
    values["reason"] = JobReason(values["reason"])
    values["resume"] = checkpoint_key_from_json(values["resume"])
    values["progress"] = Progress(**values["progress"])
    return Attempt(**values)


def checkpoint_to_row(checkpoint: Checkpoint) -> Values:
    """The columns of a checkpoint."""
    values = asdict(checkpoint)
    values |= asdict(values.pop("key"))
    values["files"] = [asdict(file) for file in checkpoint.files]
    return values


def checkpoint_from_row(row: Record, *, besides: tuple[str, ...] = ()) -> Checkpoint:
    """The checkpoint of a row, which may have columns besides."""
    values = dict(row)
    for own in besides:
        del values[own]
    key = CheckpointKey(**{name: values.pop(name) for name in ("job_uid", "epoch", "iteration")})
    files = tuple(CheckpointFile(**file) for file in values.pop("files"))
    return Checkpoint(key=key, files=files, **values)


def runner_to_row(runner: Runner) -> Values:
    """The columns of a runner."""
    values = asdict(runner)
    values["capabilities"] = capabilities_to_json(runner.capabilities)
    values["replaced"] = list(runner.replaced)
    return values


def runner_from_row(row: Record) -> Runner:
    """The runner of a row."""
    values = dict(row)
    values["capabilities"] = capabilities_from_json(values["capabilities"])
    values["replaced"] = tuple(values["replaced"])
    return Runner(**values)


def capabilities_to_json(capabilities: Capabilities) -> Values:
    """Capabilities as JSON."""
    values = asdict(capabilities)
    values["gpus"] = [asdict(gpu) for gpu in capabilities.gpus]
    values["tasks"] = sorted(capabilities.tasks)
    values["extras"] = sorted(capabilities.extras)
    return values


def capabilities_from_json(values: Values) -> Capabilities:
    """The capabilities of their JSON, which an older version may have written."""
    gpus = tuple(Gpu(**gpu) for gpu in values["gpus"])
    tasks, extras = frozenset(values["tasks"]), frozenset(values.get("extras", ()))
    return Capabilities(**{**values, "gpus": gpus, "tasks": tasks, "extras": extras})


def progress_to_json(progress: Progress) -> Values:
    """The progress as JSON."""
    return asdict(progress)


def checkpoint_key_from_json(values: Values | None) -> CheckpointKey | None:
    """The key of its JSON."""
    return CheckpointKey(**values) if values is not None else None


def changes(before: Values, after: Values) -> Values:
    """The columns that differ."""
    return {name: value for name, value in after.items() if value != before[name]}


def _optional(value: Any) -> Values | None:
    return asdict(value) if value is not None else None


def _source_from_json(values: Values | None) -> DatasetSource | None:
    return DatasetSource(**values) if values is not None else None
