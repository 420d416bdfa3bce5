"""`sihlai job`: submit, list, show, stop, resume, delete, evaluate, watch, wait, conversions, defaults."""

from __future__ import annotations

import enum
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.markup import escape
from sihlai.conversion.v1.dataset_pb2 import DatasetSource
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1 import job_service_pb2 as pb
from sihlai.scheduler.v1.job_pb2 import Job
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.cli import completion
from services.cli.command.arguments import CheckpointArgument, JobArgument
from services.cli.command.conversions import show_conversions
from services.cli.command.job_delete import delete
from services.cli.command.job_samples import draw_samples
from services.cli.command.job_watch import wait, watch
from services.cli.command.log import follow_job, parsed_since
from services.cli.credentials import read_credentials
from services.cli.defaults import field_defaults
from services.cli.error import EXIT_JOB_FAILED, CommandError
from services.cli.session import Session, command
from services.cli.specification import add_head, assign, read_specification, set_label, set_resolution
from services.cli.view.listing import Column, Listing
from services.cli.view.output import Format, Output
from services.cli.view.table import JOB_COLUMNS, JOB_ORDERS, job_table, jobs_table, plain_cell
from services.client.call import JOBS, ask, whole
from services.client.dataset import dataset_uri, task_of
from services.client.job import parsed_state
from services.client.name import checkpoint_name, job_name, project_name, short
from services.client.number import SECONDS_MAX, number
from services.client.specification import SpecificationError

JOBS_LISTED = 50
app = typer.Typer(no_args_is_help=True, help="Trainings: submitted, watched, stopped, resumed.")

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
    project: Annotated[
        str,
        typer.Argument(
            metavar="PROJECT",
            autocompletion=completion.projects,
            help="Such as `digits`, or `digits/first` with an id.",
        ),
    ],
    spec_file: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="A specification in YAML or JSON; - is standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="The same as SPEC.")] = None,
    assignments: Assignments = None,
    task: Annotated[str | None, typer.Option(help="One head for this task, such as multiclass-classification.")] = None,
    head: Annotated[
        list[str] | None, typer.Option(metavar="[ID=]TASK[@SET]", help="A head; give it once for each.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="`tiny`, `small`, or one of torchvision or timm.")] = None,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be submitted, in the form of SPEC, and submit nothing.")
    ] = False,
    follow: Follow = False,
) -> None:
    """Put a job into its project's queue. Flags win over --set, and --set over SPEC.

    Examples: sihlai job submit digits/first --task multiclass-classification --backbone tiny --resolution 16;
    sihlai job submit digits spec.yaml --iterations 300 --follow
    """
    if spec_file and file:
        raise SpecificationError("give SPEC once: as an argument or with --file")
    file = spec_file or file
    spec = read_specification(file) if file else JobSpec()
    for assignment in assignments or ():
        assign(spec, assignment)
    if task and head:
        raise SpecificationError("--task is one head: give either --task, or --head for each")
    if task or head:
        del spec.model.heads[:]
    if task:
        spec.model.heads.add(task=task_of(task))
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
    if dry_run:
        plain = json_format.MessageToDict(spec, preserving_proto_field_name=True)
        Output(format=session.output.format if session.output.as_json else Format.YAML).json(plain)
        return
    request = pb.SubmitJobRequest(parent=parent, job_id=job_id, spec=spec, request_id=str(uuid.uuid4()))
    answer = await session.client.run(ask, JOBS.SubmitJob, request)
    await _tell_new_job(session, answer, answer.job, follow)


@app.command("list")
@command
async def list_jobs(
    session: Session,
    project: Annotated[
        str,
        typer.Argument(
            metavar="[PROJECT]", autocompletion=completion.projects, help="Such as `digits`; without one, all."
        ),
    ] = "-",
    state: Annotated[list[str] | None, typer.Option(help="In this state, such as running; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="With this label.")] = None,
    since: Annotated[str | None, typer.Option(help="Made from a time on (ISO 8601), or 90s, 15m, 2h, 1d ago.")] = None,
    sort: Annotated[
        str, typer.Option(metavar="COLUMN", help="By this column, up; -COLUMN is down. Else newest first.")
    ] = "",
    columns: Annotated[str, typer.Option(metavar="A,B,…", help=f"These columns: {', '.join(JOB_COLUMNS)}.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = JOBS_LISTED,
) -> None:
    """List jobs, newest first.

    Examples: sihlai job list digits --state running; sihlai job list --since 1d --sort took --columns job,state,took
    """
    spec = JobSpec()
    for text in label or ():
        set_label(spec, text)
    job_filter = pb.JobFilter(states=[parsed_state(text) for text in state or ()], labels=dict(spec.labels))
    if since is not None:
        job_filter.created_after.FromDatetime(parsed_since(since, now=datetime.now(UTC)))
    wanted = [_column(text.strip()) for text in columns.split(",") if text.strip()]
    request = pb.ListJobsRequest(parent=project_name(project), filter=job_filter)
    found = await session.client.run(whole, JOBS.ListJobs, request, limit=limit)
    jobs = list(found.jobs)
    if sort:
        by = JOB_ORDERS[_column(sort.removeprefix("-"))]
        jobs.sort(key=by, reverse=sort.startswith("-"))
    more = found.next_page_token
    if session.output.as_json and wanted:
        session.output.json({"jobs": [{name: plain_cell(job, name) for name in wanted} for job in jobs]})
        return
    if session.output.as_json:
        session.output.json(pb.ListJobsResponse(jobs=jobs, next_page_token=more))
        return
    session.output.show(jobs_table(jobs, wanted))
    if more:
        session.output.note(f"there are more than {limit}: ask for them with --limit")


@app.command("show")
@command
async def show_job(session: Session, job: JobArgument) -> None:
    """Show one job: where it is, why it is not running yet, its attempts and its last checkpoint.

    Example: sihlai job show digits/first
    """
    answer = await session.client.run(ask, JOBS.GetJob, pb.GetJobRequest(name=job_name(job)))
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
    grace: Annotated[float | None, typer.Option(help="Seconds for writing the checkpoint.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for the job's record.")] = "",
    follow: Follow = False,
) -> None:
    """Stop a job: it finishes its step and writes a checkpoint.

    Example: sihlai job stop digits/first --grace 60 --follow
    """
    request = pb.StopJobRequest(
        name=job_name(job),
        mode=job_pb2.STOP_MODE_IMMEDIATE if now else job_pb2.STOP_MODE_CHECKPOINT,
        reason=reason,
        request_id=str(uuid.uuid4()),
    )
    if grace is not None:
        request.grace.FromMilliseconds(round(number(grace, "--grace", at_most=SECONDS_MAX) * 1000))
    before = datetime.now(UTC)
    answer = await session.client.run(ask, JOBS.StopJob, request)
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.show(jobs_table([answer.job]))
    if follow:
        await _follow_to_the_end(session, answer.job.name, since=before)


@app.command("resume")
@command
async def resume_job(
    session: Session,
    job: JobArgument,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.checkpoints,
            help="Go on from this checkpoint, such as digits/first/best; else the last.",
        ),
    ] = None,
    job_id: Annotated[str, typer.Option("--id", help="The new job's id.")] = "",
    display_name: Annotated[str, typer.Option("--name", help="The new job's name for people.")] = "",
    assignments: Assignments = None,
    follow: Follow = False,
) -> None:
    """Make a new job that goes on from an ended one, with other settings of the trainer where they are given.

    Example: sihlai job resume digits/first --set trainer.iterations_max=600 --follow
    """
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
    answer = await session.client.run(ask, JOBS.ResumeJob, request)
    await _tell_new_job(session, answer, answer.job, follow)


@app.command("evaluate")
@command
async def evaluate_checkpoint(
    session: Session,
    checkpoint: CheckpointArgument,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="What to validate on: a folder, file:///… or s3://…; else what its job had."),
    ] = None,
    endpoint_url: Annotated[str, typer.Option(help="The address of an S3-compatible server, for --dataset.")] = "",
    region: Annotated[str, typer.Option(help="The bucket's region, for --dataset.")] = "",
    credentials_file: Annotated[
        Path | None, typer.Option(help="The credentials of --dataset, in a file as for `sihlai project create`.")
    ] = None,
    job_id: Annotated[str, typer.Option("--id", help="The new job's id.")] = "",
    display_name: Annotated[str, typer.Option("--name", help="The new job's name for people.")] = "",
    follow: Follow = False,
) -> None:
    """Make a job that only validates: all metrics and samples of a checkpoint's model.

    Example: sihlai job evaluate digits/first/best --dataset ~/data/harder --follow
    """
    if dataset is None and (endpoint_url or region or credentials_file):
        raise SpecificationError("--endpoint-url, --region and --credentials-file belong to --dataset: give it as well")
    request = pb.EvaluateCheckpointRequest(
        name=checkpoint_name(checkpoint),
        job_id=job_id,
        display_name=display_name,
        request_id=str(uuid.uuid4()),
    )
    if dataset is not None:
        credentials = read_credentials(credentials_file) if credentials_file else None
        request.dataset.CopyFrom(
            DatasetSource(uri=dataset_uri(dataset), endpoint_url=endpoint_url, region=region, credentials=credentials)
        )
    answer = await session.client.run(ask, JOBS.EvaluateCheckpoint, request)
    await _tell_new_job(session, answer, answer.job, follow)


app.command("delete")(delete)
app.command("watch")(watch)
app.command("wait")(wait)
app.command("conversions")(show_conversions)
app.command("samples")(draw_samples)


@app.command("defaults")
def show_defaults(
    as_json: Annotated[bool, typer.Option("--json", help="JSON for programs: one object a line.")] = False,
) -> None:
    """Show every field of a specification with its meaning and default.

    Example: sihlai job defaults
    """
    output = Output(as_json=as_json)
    table = Listing(Column(name="field"), Column(name="default", breaks=True), Column(name="meaning", breaks=True))
    for found in field_defaults():
        if as_json:
            output.json({"path": found.path, "default": found.default, "meaning": found.meaning})
        table.add_row(escape(found.path), escape(found.default), escape(found.meaning))
    if not as_json:
        output.show(table)


async def _tell_new_job(
    session: Session,
    answer: pb.SubmitJobResponse | pb.ResumeJobResponse | pb.EvaluateCheckpointResponse,
    job: Job,
    follow: bool,
) -> None:
    for warning in () if isinstance(answer, pb.ResumeJobResponse) else answer.warnings:
        session.output.note(f"warning: {warning}")
    if session.output.as_json:
        session.output.json(answer)
    elif follow:
        session.output.note(f"submitted {short(job.name)}")
    else:
        session.output.line(short(job.name))
        session.output.note(f"follow it: sihlai logs -f {short(job.name)}; sihlai metrics watch {short(job.name)}")
    if follow:
        await _follow_to_the_end(session, job.name)


async def _follow_to_the_end(session: Session, name: str, *, since: datetime | None = None) -> None:
    """Show log and states; a failed job is a failed command."""
    job = await follow_job(session, name, since=since)
    if job.state == job_pb2.JOB_STATE_FAILED:
        raise CommandError(
            f"{short(name)} failed: {job.reason_message or 'no reason was given'}", exit_code=EXIT_JOB_FAILED
        )


def _parent_and_id(text: str) -> tuple[str, str]:
    if "/" in text.removeprefix("projects/"):
        parent, _, job_id = job_name(text).rpartition("/jobs/")
        return parent, job_id
    return project_name(text), ""


def _set_optimizer(spec: JobSpec, optimizer: Optimizer | None, learning_rate: float | None) -> None:
    """The rate belongs to an optimizer: the one that is given, else the file's, else the default one."""
    name = optimizer or spec.trainer.WhichOneof("optimizer") or Optimizer.ADAMW
    getattr(spec.trainer, name).SetInParent()
    if learning_rate is not None:
        assign(spec, f"trainer.{name}.learning_rate={learning_rate}")


def _column(text: str) -> str:
    """The column of this name. Raises SpecificationError with those that there are."""
    if text not in JOB_COLUMNS:
        raise SpecificationError(f"{text!r} is no column: there are {', '.join(JOB_COLUMNS)}")
    return text
