"""`sihlai job watch` and `sihlai job wait`: jobs as they change, and their ends."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated

import typer
from google.protobuf import json_format
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Job

from services.cli import completion
from services.cli.command.arguments import JobsArgument
from services.cli.command.log import on_break
from services.cli.error import EXIT_FAILED, EXIT_JOB_FAILED, CommandError
from services.cli.session import Session, command
from services.cli.view.table import jobs_table
from services.cli.view.text import shown
from services.client.job import ENDED, changes, watched
from services.client.name import job_name, short
from services.client.number import SECONDS_MAX, number

STATES = {state: job_pb2.JobState.Name(state).removeprefix("JOB_STATE_").lower() for state in job_pb2.JobState.values()}


@command
async def watch(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(
            metavar="[PROJECT|JOB]", autocompletion=completion.jobs, help="Such as `digits` or `digits/first`."
        ),
    ] = "-",
) -> None:
    """Show jobs as they change: a line for each new state, phase or problem. A job is watched to its end.

    With --json every change, progress included. Ctrl-C ends it.

    Examples: sihlai job watch; sihlai job watch digits; sihlai job watch digits/first
    """
    lines = ChangeLines()

    def tell(job: Job) -> None:
        if session.output.as_json:
            session.output.json({"job": json_format.MessageToDict(job, preserving_proto_field_name=True)})
        elif line := lines.changed(job, datetime.now()):  # noqa: DTZ005  # the clock of whoever reads it
            session.output.line(line)

    if "/" in what.removeprefix("projects/"):
        async for job in session.client.iterate(watched, what, on_break=on_break(session.output)):
            tell(job)
        return
    async for answer in session.client.iterate(changes, what, on_break=on_break(session.output)):
        if answer.WhichOneof("message") == "job":
            tell(answer.job)
        elif answer.WhichOneof("message") == "removed" and session.output.as_json:
            session.output.json({"removed": answer.removed.name})
        elif answer.WhichOneof("message") == "removed":
            session.output.line(f"{datetime.now():%H:%M:%S}  {short(answer.removed.name)}  deleted")  # noqa: DTZ005  # as above


@command
async def wait(
    session: Session,
    jobs: JobsArgument,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Give up after so long.")] = None,
) -> None:
    """Wait until jobs have ended. A failed job, or one that is not done in time, is a failed command.

    Example: sihlai job wait digits/first digits/second --timeout 3600
    """
    names = [job_name(text) for text in jobs]
    if timeout is not None:
        number(timeout, "--timeout", at_most=SECONDS_MAX)

    async def ended(name: str) -> Job:
        last = Job(name=name)
        async for job in session.client.iterate(watched, name, on_break=on_break(session.output)):
            last = job
        return last

    try:
        async with asyncio.timeout(timeout):
            found = await asyncio.gather(*(ended(name) for name in names))
    except TimeoutError:
        which = ", ".join(short(name) for name in names)
        raise CommandError(f"not all of {which} ended within {timeout:g} s", exit_code=EXIT_FAILED) from None
    if session.output.as_json:
        for job in found:
            session.output.json({"job": json_format.MessageToDict(job, preserving_proto_field_name=True)})
    else:
        session.output.show(jobs_table(found))
    failed = [job for job in found if job.state == job_pb2.JOB_STATE_FAILED]
    if failed:
        reasons = [f"{short(job.name)} failed: {job.reason_message or 'no reason was given'}" for job in failed]
        raise CommandError("; ".join(reasons), exit_code=EXIT_JOB_FAILED)


class ChangeLines:
    """Lines for what is new of each job: its state, what its runner does, what holds it up, its last checkpoint."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[object, ...]] = {}

    def changed(self, job: Job, now: datetime) -> str:
        """The line; empty where nothing of it is new."""
        live = job.state not in ENDED
        progress = job.progress
        seen = (
            job.state,
            progress.phase if live else "",
            progress.problem if live else "",
            len(job.attempts),
            job.last_checkpoint.name,
        )
        if self._told.get(job.uid) == seen:
            return ""
        self._told[job.uid] = seen
        parts = [STATES[job.state]]
        if live and progress.phase:
            parts.append(progress.phase)
        if progress.iteration:
            parts.append(f"step {progress.iteration} of {progress.iterations_max}")
        if job.last_checkpoint.name:
            parts.append(f"checkpoint {job.last_checkpoint.iteration}")
        reason = progress.problem if live else job.reason_message
        if reason:
            parts.append(reason.split("\n", 1)[0])
        return shown(f"{now:%H:%M:%S}  {short(job.name)}  {', '.join(parts)}")
