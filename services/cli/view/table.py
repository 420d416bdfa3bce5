"""Tables and one-line descriptions for people: projects, jobs, checkpoints, series, differences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text
from sihlai.metrics.v1.metrics_service_pb2 import CompareJobsResponse
from sihlai.metrics.v1.series_pb2 import Series, SeriesDefinition
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Checkpoint, Job
from sihlai.scheduler.v1.project_service_pb2 import Project

from services.cli.view.listing import Column, Listing
from services.cli.view.text import safe
from services.client.job import ENDED, state_name
from services.client.name import short
from services.client.series import label_of, lower_is_better

STATE_STYLES = {
    job_pb2.JOB_STATE_QUEUED: "yellow",
    job_pb2.JOB_STATE_STARTING: "cyan",
    job_pb2.JOB_STATE_RUNNING: "bold cyan",
    job_pb2.JOB_STATE_STOPPING: "yellow",
    job_pb2.JOB_STATE_COMPLETED: "green",
    job_pb2.JOB_STATE_STOPPED: "blue",
    job_pb2.JOB_STATE_FAILED: "bold red",
}
UPLOADING = "uploading"
"""The phase whose work is counted in bytes."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def projects_table(projects: Iterable[Project]) -> Listing:
    """One row a project."""
    table = Listing(
        Column(name="project"),
        Column(name="name", goes=2, breaks=True),
        Column(name="training dataset", goes=1, breaks=True),
        Column(name="validation dataset", goes=3, breaks=True),
        Column(name="created", goes=4),
    )
    for project in projects:
        table.add_row(
            short(project.name),
            safe(project.display_name),
            safe(project.training_dataset.uri),
            safe(project.validation_dataset.uri) or "split from training",
            moment(project.create_time),
        )
    return table


def jobs_table(jobs: Iterable[Job], columns: Sequence[str] = ()) -> Listing:
    """One row a job: these columns, or those that there is room for."""
    names = columns or JOB_COLUMNS_SHOWN
    goes = {} if columns else JOB_COLUMNS_GO
    table = Listing(*(Column(name=name, goes=goes.get(name, 0)) for name in names))
    for job in jobs:
        table.add_row(*(JOB_COLUMNS[name](job) for name in names))
    return table


def plain_cell(job: Job, column: str) -> str:
    """What a table shows of the job in this column, without mark-up."""
    return Text.from_markup(JOB_COLUMNS[column](job)).plain


def job_table(job: Job) -> Table:
    """Everything about one job that a person asks for first."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = [
        ("job", f"[bold]{short(job.name)}[/bold]"),
        ("state", state_text(job)),
        ("why", safe(job.reason_message or job.why_not_running)),
        ("queue", f"{job.queue_position} before it" if job.HasField("queue_position") else ""),
        ("progress", progress_text(job)),
        ("held up", safe(job.progress.problem) if job.state not in ENDED else ""),
        ("name", safe(job.spec.display_name)),
        ("labels", safe(", ".join(f"{key}={value}" for key, value in sorted(job.spec.labels.items())))),
        ("model", safe(model_text(job))),
        ("dataset", safe(job.training_dataset.uri)),
        ("validated on", safe(job.validation_dataset.uri) if job.HasField("validation_dataset") else ""),
        ("created", f"{moment(job.create_time)} by {safe(job.creator)}"),
        ("started", moment(job.start_time) if job.HasField("start_time") else ""),
        ("ended", moment(job.end_time) if job.HasField("end_time") else ""),
        ("stopped by", safe(job.stopper)),
        ("evaluates" if job.evaluation else "goes on from", short(job.source_checkpoint or job.source_job)),
        ("last checkpoint", checkpoint_text(job.last_checkpoint) if job.HasField("last_checkpoint") else "none"),
        *((f"attempt {attempt.number}", safe(attempt_text(attempt))) for attempt in job.attempts),
        ("uid", job.uid),
    ]
    for label, value in rows:
        if value:
            table.add_row(label, value)
    return table


def checkpoints_table(checkpoints: Iterable[Checkpoint]) -> Listing:
    """One row a checkpoint."""
    table = Listing(
        Column(name="checkpoint"),
        Column(name="iteration", goes=1),
        Column(name="why", goes=4),
        Column(name="selection", goes=3),
        Column(name="best", goes=2),
        Column(name="size", goes=5),
        Column(name="created", goes=6),
    )
    for checkpoint in checkpoints:
        table.add_row(
            short(checkpoint.name),
            str(checkpoint.iteration),
            cause_text(checkpoint),
            number(checkpoint.selection_value) if checkpoint.HasField("selection_value") else "",
            "[green]✓[/green]" if checkpoint.best else "",
            size_text(sum(file.size_bytes for file in checkpoint.files)),
            moment(checkpoint.create_time),
        )
    return table


def series_table(series: Iterable[Series], sparklines: dict[int, str]) -> Listing:
    """One row a series: its summary and its shape."""
    table = Listing(
        Column(name="series"),
        Column(name="last"),
        Column(name="minimum", goes=2),
        Column(name="maximum", goes=3),
        Column(name="points", goes=4),
        Column(name="not finite", goes=1),
        Column(name="shape", goes=5),
    )
    for each in series:
        summary = each.summary
        lost = summary.nan_count + summary.positive_infinity_count + summary.negative_infinity_count
        table.add_row(
            safe(series_label(each.definition)),
            at_step(summary.last, summary.last_step) if summary.count else "",
            at_step(summary.minimum, summary.minimum_step) if summary.HasField("minimum") else "",
            at_step(summary.maximum, summary.maximum_step) if summary.HasField("maximum") else "",
            str(summary.count),
            f"[red]{lost}[/red]" if lost else "",
            sparklines.get(each.definition.series_id, ""),
        )
    return table


def differences_table(comparison: CompareJobsResponse) -> Table:
    """One row a field that differs, one column a job."""
    table = _table("configuration", *(short(job.job) for job in comparison.jobs))
    for difference in comparison.differences:
        table.add_row(safe(difference.path), *(safe(_shown_json(value)) for value in difference.values))
    return table


def best_table(comparison: CompareJobsResponse, labels: Iterable[str]) -> Table:
    """One row a series of these, for each job its lowest or highest value, whichever is the better one."""
    table = _table("best values", *(short(job.job) for job in comparison.jobs))
    by_job = [{series_label(series.definition): series for series in job.series} for job in comparison.jobs]
    for label in labels:
        if label.startswith("system/"):
            continue
        cells = [best_text(found[label]) if label in found else "" for found in by_job]
        table.add_row(safe(label), *cells)
    return table


def best_text(series: Series) -> str:
    """The better end of a series with its step: the lowest value of a loss or an error, else the highest."""
    summary = series.summary
    low = lower_is_better(series.definition.name)
    if not summary.HasField("minimum" if low else "maximum"):
        return "not a number" if summary.count else ""
    value, step = (summary.minimum, summary.minimum_step) if low else (summary.maximum, summary.maximum_step)
    return at_step(value, step)


def series_label(definition: SeriesDefinition) -> str:
    """The series' name, with its context in braces."""
    return label_of(definition.name, definition.context)


def state_text(job: Job) -> str:
    """The state in its colour, with the reason where it has one."""
    name = state_name(job.state)
    reason = job_pb2.JobReason.Name(job.reason).removeprefix("JOB_REASON_").lower().replace("_", " ")
    evaluated = job.evaluation and job.reason == job_pb2.JOB_REASON_LIMIT_REACHED  # its limit is all that there is
    detail = f" [dim]({reason})[/dim]" if job.reason != job_pb2.JOB_REASON_UNSPECIFIED and not evaluated else ""
    style = STATE_STYLES.get(job.state, "default")
    return f"[{style}]{name}[/{style}]{detail}"


def progress_text(job: Job) -> str:
    """Steps done, and what the runner does where it is not training."""
    progress = job.progress
    most = progress.iterations_max or job.spec.trainer.iterations_max
    steps = f"{progress.iteration} of {most}" if progress.iteration else ""
    shown = size_text if progress.phase == UPLOADING else str
    work = f" {shown(progress.done)} of {shown(progress.total)}" if progress.total else ""
    phase = f"{safe(progress.phase)}{work}" if progress.phase and job.state not in ENDED else ""
    left = f"{progress.time_left.ToTimedelta().total_seconds():.0f} s left" if progress.HasField("time_left") else ""
    return ", ".join(part for part in (steps, phase, left if job.state not in ENDED else "") if part)


def model_text(job: Job) -> str:
    """Backbone and heads in a line."""
    return ", ".join([job.spec.model.backbone.name, *(head.id for head in job.spec.model.heads)])


def attempt_text(attempt: job_pb2.Attempt) -> str:
    """Where it ran and how it ended."""
    outcome = job_pb2.AttemptOutcome.Name(attempt.outcome).removeprefix("ATTEMPT_OUTCOME_").lower().replace("_", " ")
    ending = outcome if attempt.outcome else "running"
    # The end of the log is part of the message, and stands with the job's reason already.
    message = attempt.message.partition("\n")[0]
    return f"{attempt.runner}, from step {attempt.from_step}, {ending}" + (f": {message}" if message else "")


def checkpoint_text(checkpoint: Checkpoint) -> str:
    """Its short name, iteration and cause."""
    return f"{short(checkpoint.name)} at iteration {checkpoint.iteration} ({cause_text(checkpoint)})"


def cause_text(checkpoint: Checkpoint) -> str:
    """Why it was written, in words."""
    return job_pb2.CheckpointCause.Name(checkpoint.cause).removeprefix("CHECKPOINT_CAUSE_").lower().replace("_", " ")


def duration_text(job: Job) -> str:
    """How long the job took, or has taken: empty before its start."""
    if not job.HasField("start_time"):
        return ""
    end = job.end_time.ToDatetime() if job.HasField("end_time") else None
    if end is None:
        return ""
    return seconds_text((end - job.start_time.ToDatetime()).total_seconds())


def seconds_text(seconds: float) -> str:
    """`12.3 s`, `4 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size_text(size_bytes: float) -> str:
    """Bytes with a unit that fits."""
    step = 0 if size_bytes < 1 else min(int(math.log(size_bytes, 1024)), len(UNITS) - 1)
    return f"{size_bytes / 1024**step:.{0 if step == 0 else 1}f} {UNITS[step]}"


def at_step(value: float, step: int) -> str:
    """A value with its step."""
    return f"{number(value)} [dim]at {step}[/dim]"


def number(value: float) -> str:
    """A value in five digits."""
    return f"{value:.5g}"


def moment(time: Timestamp) -> str:
    """A time on the clock of whoever reads it."""
    return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _shown_json(value: str) -> str:
    """A JSON value as a person reads it; a dash where a job does not have the field."""
    if not value:
        return "-"
    found = json.loads(value)
    return found if isinstance(found, str) else value


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


JOB_COLUMNS: dict[str, Callable[[Job], str]] = {
    "job": lambda job: safe(short(job.name)),
    "state": state_text,
    "progress": progress_text,
    "name": lambda job: safe(job.spec.display_name),
    "created": lambda job: moment(job.create_time),
    "took": duration_text,
    "checkpoint": lambda job: str(job.last_checkpoint.iteration) if job.HasField("last_checkpoint") else "",
    "labels": lambda job: safe(", ".join(f"{key}={value}" for key, value in sorted(job.spec.labels.items()))),
    "priority": lambda job: str(job.spec.priority),
    "creator": lambda job: safe(job.creator),
    "runner": lambda job: safe(job.attempts[-1].runner.removeprefix("runners/")) if job.attempts else "",
    "backbone": lambda job: safe(job.spec.model.backbone.name),
    "heads": lambda job: safe(", ".join(head.id for head in job.spec.model.heads)),
    "uid": lambda job: job.uid,
}
"""What a table of jobs can show, by column."""
JOB_COLUMNS_SHOWN = ("job", "state", "progress", "name", "created", "took", "checkpoint")
JOB_COLUMNS_GO = {"checkpoint": 5, "name": 4, "took": 3, "created": 2, "progress": 1}
"""Which go first where there is no room."""
JOB_ORDERS: Mapping[str, Callable[[Job], Any]] = JOB_COLUMNS | {
    "progress": lambda job: job.progress.iteration,
    "created": lambda job: job.create_time.ToNanoseconds(),
    "took": lambda job: job.end_time.ToNanoseconds() - job.start_time.ToNanoseconds() if duration_text(job) else 0,
    "checkpoint": lambda job: job.last_checkpoint.iteration,
    "priority": lambda job: job.spec.priority,
}
"""What jobs are sorted by, by column."""
