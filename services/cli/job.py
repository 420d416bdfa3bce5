"""`sihlai job`: submit, list, show, stop, resume, conversions, defaults."""

from __future__ import annotations

import enum
import uuid
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from rich.markup import escape
from rich.table import Table
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1 import job_service_pb2 as pb
from sihlai.scheduler.v1.job_pb2 import Job
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.cli.defaults import field_defaults
from services.cli.job_conversion import show_conversions
from services.cli.log import follow_job
from services.cli.name import checkpoint_name, job_name, project_name, short
from services.cli.output import Output
from services.cli.session import EXIT_FAILED, CommandError, Session, command
from services.cli.specification import (
    SpecificationError,
    add_head,
    assign,
    parsed_task,
    read_specification,
    set_label,
    set_resolution,
)
from services.cli.table import job_table, jobs_table

PAGE_SIZE = 1_000
JOBS_LISTED = 50
app = typer.Typer(no_args_is_help=True, help="Trainings: submitted, watched, stopped, resumed.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Such as `digits/first`.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="A field of the specification, such as trainer.batch_size=64."),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show log and states until the job has ended.")]


class Optimizer(enum.StrEnum):
    """The optimizers of the specification."""

    ADAMW = "adamw"
    SGD = "sgd"


@app.command("submit")
@command
async def submit_job(
    session: Session,
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Such as `digits`, or `digits/first` with an id.")],
    file: Annotated[Path | None, typer.Option("--file", help="A specification in YAML or JSON.")] = None,
    assignments: Assignments = None,
    task: Annotated[str | None, typer.Option(help="One head for this task, such as multiclass-classification.")] = None,
    head: Annotated[
        list[str] | None, typer.Option(metavar="[ID=]TASK[@SET]", help="A head; give it once for each.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="`tiny`, or a model of torchvision such as resnet18.")] = None,
    resolution: Annotated[str | None, typer.Option(metavar="N|HxW", help="What the model sees, in pixels.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps of the optimizer.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    optimizer: Annotated[Optimizer | None, typer.Option(help="The optimizer.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The optimizer's highest rate.")] = None,
    validations: Annotated[int | None, typer.Option(help="Validations, spread evenly.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentations.")] = None,
    priority: Annotated[int | None, typer.Option(help="Jobs with a higher number go first.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A word to filter by.")] = None,
    display_name: Annotated[str | None, typer.Option("--name", help="A name for people.")] = None,
    follow: Follow = False,
) -> None:
    """Put a job into its project's queue. Flags win over --set, and --set over --file."""
    spec = read_specification(file) if file else JobSpec()
    for assignment in assignments or ():
        assign(spec, assignment)
    if task and head:
        raise SpecificationError("--task is one head: give either --task, or --head for each")
    if task or head:
        del spec.model.heads[:]
    if task:
        spec.model.heads.add(task=parsed_task(task))
    for text in head or ():
        add_head(spec, text)
    for text in label or ():
        set_label(spec, text)
    if resolution:
        set_resolution(spec, resolution)
    if optimizer or learning_rate is not None:
        _set_optimizer(spec, optimizer, learning_rate)
    plain = {
        "model.backbone.name": backbone,
        "trainer.iterations_max": iterations,
        "trainer.batch_size": batch_size,
        "trainer.validations": validations,
        "trainer.seed": seed,
        "priority": priority,
        "display_name": display_name,
    }
    for path, value in plain.items():
        if value is not None:
            assign(spec, f"{path}={value}")
    parent, job_id = _parent_and_id(project)
    request = pb.SubmitJobRequest(parent=parent, job_id=job_id, spec=spec, request_id=str(uuid.uuid4()))
    answer = await session.services.jobs.SubmitJob(request)
    await _tell_new_job(session, answer, answer.job, follow)


@app.command("list")
@command
async def list_jobs(
    session: Session,
    project: Annotated[str, typer.Argument(metavar="[PROJECT]", help="Such as `digits`; without one, all.")] = "-",
    state: Annotated[list[str] | None, typer.Option(help="In this state, such as running; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="With this label.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = JOBS_LISTED,
) -> None:
    """List jobs, newest first."""
    spec = JobSpec()
    for text in label or ():
        set_label(spec, text)
    job_filter = pb.JobFilter(states=[_parsed_state(text) for text in state or ()], labels=dict(spec.labels))
    found = pb.ListJobsResponse()
    while len(found.jobs) < limit:
        request = pb.ListJobsRequest(
            parent=project_name(project),
            page_size=min(limit - len(found.jobs), PAGE_SIZE),
            page_token=found.next_page_token,
            filter=job_filter,
        )
        page = await session.services.jobs.ListJobs(request)
        found.jobs.extend(page.jobs)
        found.next_page_token = page.next_page_token
        if not page.next_page_token:
            break
    if session.output.as_json:
        session.output.json(found)
        return
    session.output.show(jobs_table(found.jobs))
    if found.next_page_token:
        session.output.note(f"there are more than {limit}: ask for them with --limit")


@app.command("show")
@command
async def show_job(session: Session, job: JobArgument) -> None:
    """Show one job: where it is, why it is not running yet, its attempts and its last checkpoint."""
    answer = await session.services.jobs.GetJob(pb.GetJobRequest(name=job_name(job)))
    if session.output.as_json:
        session.output.json(answer)
        return
    session.output.show(job_table(answer.job))
    if answer.job.attempts:
        session.output.note(f"what conversions made of its dataset: sihlai job conversions {short(answer.job.name)}")


@app.command("stop")
@command
async def stop_job(
    session: Session,
    job: JobArgument,
    now: Annotated[bool, typer.Option("--now", help="At once, without a checkpoint.")] = False,
    grace: Annotated[float | None, typer.Option(min=0, help="Seconds for writing the checkpoint.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for the job's record.")] = "",
    follow: Follow = False,
) -> None:
    """Stop a job: it finishes its step and writes a checkpoint."""
    request = pb.StopJobRequest(
        name=job_name(job),
        mode=job_pb2.STOP_MODE_IMMEDIATE if now else job_pb2.STOP_MODE_CHECKPOINT,
        reason=reason,
        request_id=str(uuid.uuid4()),
    )
    if grace is not None:
        duration = Duration()
        duration.FromMilliseconds(round(grace * 1000))
        request.grace.CopyFrom(duration)
    answer = await session.services.jobs.StopJob(request)
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.show(jobs_table([answer.job]))
    if follow:
        await _follow_to_the_end(session, answer.job.name)


@app.command("resume")
@command
async def resume_job(
    session: Session,
    job: JobArgument,
    checkpoint: Annotated[
        str | None, typer.Option(help="Go on from this checkpoint, such as digits/first/best; else the last.")
    ] = None,
    job_id: Annotated[str, typer.Option("--id", help="The new job's id.")] = "",
    display_name: Annotated[str, typer.Option("--name", help="The new job's name for people.")] = "",
    assignments: Assignments = None,
    follow: Follow = False,
) -> None:
    """Make a new job that goes on from an ended one, with other settings of the trainer where they are given."""
    changes = JobSpec()
    for assignment in assignments or ():
        assign(changes, assignment)
    if changes.ListFields() and [field.name for field, _ in changes.ListFields()] != ["trainer"]:
        raise SpecificationError("a resumed job may change settings of the trainer alone: --set trainer.…=…")
    request = pb.ResumeJobRequest(
        name=job_name(job),
        job_id=job_id,
        checkpoint=checkpoint_name(checkpoint) if checkpoint else "",
        display_name=display_name,
        request_id=str(uuid.uuid4()),
    )
    if changes.HasField("trainer"):
        request.trainer.CopyFrom(changes.trainer)
    answer = await session.services.jobs.ResumeJob(request)
    await _tell_new_job(session, answer, answer.job, follow)


app.command("conversions")(show_conversions)


@app.command("defaults")
def show_defaults(
    as_json: Annotated[bool, typer.Option("--json", help="JSON for programs: one object a line.")] = False,
) -> None:
    """Show every field of a specification with its meaning and default."""
    output = Output(as_json=as_json)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("field", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for found in field_defaults():
        if as_json:
            output.json({"path": found.path, "default": found.default, "meaning": found.meaning})
        table.add_row(escape(found.path), escape(found.default), escape(found.meaning))
    if not as_json:
        output.show(table)


async def _tell_new_job(
    session: Session, answer: pb.SubmitJobResponse | pb.ResumeJobResponse, job: Job, follow: bool
) -> None:
    if session.output.as_json:
        session.output.json(answer)
    elif follow:
        session.output.note(f"submitted {short(job.name)}")
    else:
        session.output.line(short(job.name))
        session.output.note(f"follow it: sihlai logs -f {short(job.name)}; sihlai metrics watch {short(job.name)}")
    if follow:
        await _follow_to_the_end(session, job.name)


async def _follow_to_the_end(session: Session, name: str) -> None:
    """Show log and states; a failed job is a failed command."""
    job = await follow_job(session, name)
    if job.state == job_pb2.JOB_STATE_FAILED:
        raise CommandError(
            f"{short(name)} failed: {job.reason_message or 'no reason was given'}", exit_code=EXIT_FAILED
        )


def _parent_and_id(text: str) -> tuple[str, str]:
    if "/" in text.removeprefix("projects/"):
        parent, _, job_id = job_name(text).rpartition("/jobs/")
        return parent, job_id
    return project_name(text), ""


def _set_optimizer(spec: JobSpec, optimizer: Optimizer | None, learning_rate: float | None) -> None:
    """The rate belongs to an optimizer: the one that is given, else the file's, else the default one."""
    name = optimizer or spec.trainer.WhichOneof("optimizer") or Optimizer.ADAMW
    settings = getattr(spec.trainer, name)
    settings.SetInParent()
    if learning_rate is not None:
        settings.learning_rate = learning_rate


def _parsed_state(text: str) -> job_pb2.JobState.ValueType:
    wanted = f"JOB_STATE_{text.upper()}"
    if wanted in job_pb2.JobState.keys():  # noqa: SIM118  # an enum wrapper is no mapping
        return job_pb2.JobState.Value(wanted)
    states = ", ".join(name.removeprefix("JOB_STATE_").lower() for name in job_pb2.JobState.keys()[1:])
    raise SpecificationError(f"{text!r} is no state: it must be one of {states}")
