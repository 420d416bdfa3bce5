"""`sihlai status` and `sihlai top`: what runs, what waits, and who trains, on one screen."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from google.protobuf.message import Message
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from sihlai.runner.v1 import runner_admin_service_pb2 as runners_pb
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Job

from services.chassis.errors import DeadlineExceeded
from services.cli.error import CommandError
from services.cli.session import Session, command, first_of
from services.cli.view.output import message_to_json
from services.cli.view.runner_table import runners_table
from services.cli.view.table import jobs_table
from services.cli.view.text import shown
from services.client.call import PASSING, RUNNERS, whole
from services.client.job import ENDED, listed, state_name
from services.client.number import SECONDS_MAX, number

STATES = tuple(state_name(state) for state in job_pb2.JobState.values() if state and state not in ENDED)
JOBS_MAX = 1_000
QUEUED_SHOWN = 10
ENDED_SHOWN = 5
TOP_SECONDS = 2.0
TOP_SECONDS_MIN = 0.2


@command
async def show_status(session: Session) -> None:
    """Show what runs, what waits, and who trains, on one screen.

    Example: sihlai status
    """
    jobs, ended, runners = await _asked(session)
    if session.output.as_json:
        parts: dict[str, Sequence[Message]] = {"jobs": jobs, "ended": ended, "runners": runners}
        session.output.json({name: [message_to_json(each) for each in found] for name, found in parts.items()})
        return
    session.output.show(_drawing(jobs, ended, runners))


@command
async def show_top(
    session: Session,
    seconds: Annotated[float, typer.Option(help="How often it is drawn over.")] = TOP_SECONDS,
) -> None:
    """Show the same as `status`, drawn over again and again, until Ctrl-C.

    While nobody answers it stays, and says since when.

    Example: sihlai top --seconds 5
    """
    number(seconds, "--seconds", at_least=TOP_SECONDS_MIN, at_most=SECONDS_MAX)
    if not session.output.live:
        raise CommandError("top draws on a terminal: `sihlai status` is for everything else")
    drawing = _drawing(*await _asked(session))
    answered, problem = datetime.now(), ""  # noqa: DTZ005  # the clock of whoever reads it
    with Live(console=session.output.console, auto_refresh=False, screen=True) as screen:
        while True:
            silence = Text(f"no answer since {answered:%H:%M:%S}: {shown(problem)}\n", style="red")
            screen.update(Group(silence, drawing) if problem else drawing, refresh=True)
            await asyncio.sleep(seconds)
            try:
                drawing = _drawing(*await _asked(session))
            except* (*PASSING, DeadlineExceeded) as errors:
                problem = str(first_of(errors))
            else:
                answered, problem = datetime.now(), ""  # noqa: DTZ005  # as above


async def _asked(session: Session) -> tuple[list[Job], list[Job], list[runners_pb.Runner]]:
    async with asyncio.TaskGroup() as tasks:
        jobs = tasks.create_task(session.client.run(listed, states=STATES, limit=JOBS_MAX))
        ended = tasks.create_task(
            session.client.run(listed, states=[state_name(state) for state in ENDED], limit=ENDED_SHOWN)
        )
        found = tasks.create_task(
            session.client.run(whole, RUNNERS.ListRunners, runners_pb.ListRunnersRequest(), limit=JOBS_MAX)
        )
    return jobs.result(), ended.result(), list(found.result().runners)


def _drawing(jobs: list[Job], ended: list[Job], runners: list[runners_pb.Runner]) -> RenderableType:
    """The newest ended jobs last, and of the queue the jobs that go first."""
    queued = [job for job in jobs if job.state == job_pb2.JOB_STATE_QUEUED]
    active = [job for job in jobs if job.state != job_pb2.JOB_STATE_QUEUED]
    counts = Counter(runners_pb.RunnerState.Name(each.state).removeprefix("RUNNER_STATE_").lower() for each in runners)
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"
    parts: list[RenderableType] = [Text(f"runners: {said}; active: {len(active)}; queued: {len(queued)}", style="bold")]
    oldest = queued[::-1]
    for title, found in (("active", active), ("queued", oldest[:QUEUED_SHOWN]), ("ended", ended)):
        if found:
            parts += [Text(f"\n{title}", style="dim"), jobs_table(found)]
    if len(queued) > QUEUED_SHOWN:
        parts.append(Text(f"and {len(queued) - QUEUED_SHOWN} more", style="dim"))
    return Group(*parts, Text("\nrunners", style="dim"), runners_table(runners, now=datetime.now(UTC)))
