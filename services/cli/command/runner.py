"""`sihlai runner`: list, drain, undrain."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated

import typer
from sihlai.runner.v1 import runner_admin_service_pb2 as pb

from services.cli import completion
from services.cli.session import Session, command
from services.cli.view.runner_table import runners_table
from services.client.call import RUNNERS, ask, whole
from services.client.name import runner_name

app = typer.Typer(no_args_is_help=True, help="The machines that train, and parts of them.")

RunnerArgument = Annotated[
    str, typer.Argument(metavar="RUNNER", autocompletion=completion.runners, help="Such as `gpu-1`.")
]


@app.command("list")
@command
async def list_runners(session: Session) -> None:
    """List all runners: what they do, what they have, and why one of them takes no job.

    Example: sihlai runner list
    """
    found = await session.client.run(whole, RUNNERS.ListRunners, pb.ListRunnersRequest())
    _tell(session, found, list(found.runners))


@app.command("drain")
@command
async def drain_runner(session: Session, runner: RunnerArgument) -> None:
    """Let a runner take no new job; what it works on writes a checkpoint and goes back to the queue.

    Example: sihlai runner drain gpu-1
    """
    request = pb.DrainRunnerRequest(name=runner_name(runner), request_id=str(uuid.uuid4()))
    answer = await session.client.run(ask, RUNNERS.DrainRunner, request)
    _tell(session, answer, [answer.runner])


@app.command("undrain")
@command
async def undrain_runner(session: Session, runner: RunnerArgument) -> None:
    """Let a runner take jobs again that was drained, or put aside because attempts failed on it.

    Example: sihlai runner undrain gpu-1
    """
    request = pb.UndrainRunnerRequest(name=runner_name(runner), request_id=str(uuid.uuid4()))
    answer = await session.client.run(ask, RUNNERS.UndrainRunner, request)
    _tell(session, answer, [answer.runner])


def _tell(
    session: Session,
    answer: pb.ListRunnersResponse | pb.DrainRunnerResponse | pb.UndrainRunnerResponse,
    runners: list[pb.Runner],
) -> None:
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.show(runners_table(runners, datetime.now(UTC)))
