"""`sihlai job delete`: an ended job, with all that is its."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer
from sihlai.scheduler.v1.job_service_pb2 import DeleteJobRequest

from services.cli.command.arguments import JobArgument
from services.cli.question import confirm
from services.cli.session import Session, command
from services.client.call import JOBS, ask
from services.client.name import job_name, short


@command
async def delete(
    session: Session,
    job: JobArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an ended job with its checkpoints, points and lines. Nothing brings them back.

    Example: sihlai job delete digits/first --yes
    """
    name = job_name(job)
    if not yes:
        confirm(
            f"delete {short(name)} with its checkpoints, for good?", otherwise=f"{short(name)} would be gone for good"
        )
    request = DeleteJobRequest(name=name, request_id=str(uuid.uuid4()))
    answer = await session.client.run(ask, JOBS.DeleteJob, request)
    if session.output.as_json:
        session.output.json(answer)
    elif answer.done:
        session.output.line(f"deleted {short(name)}")
    else:
        session.output.line(f"deleted {short(name)}; its checkpoints are still being removed")
