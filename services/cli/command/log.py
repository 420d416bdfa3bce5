"""`sihlai logs`, and following a job: its log lines and its states until it has ended."""

from __future__ import annotations

import asyncio
import enum
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.text import Text
from sihlai.logs.v1 import log_line_pb2
from sihlai.logs.v1.log_line_pb2 import LogLine
from sihlai.logs.v1.log_service_pb2 import LogFilter, TailLogsRequest, TailLogsResponse
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Job

from services.cli.command.arguments import JobArgument
from services.cli.session import Session, command
from services.cli.view.output import Output
from services.cli.view.table import progress_text, state_text
from services.cli.view.text import shown
from services.client.call import Break
from services.client.job import tailed, watched
from services.client.name import job_name, short
from services.client.number import INT32_MAX, INT64_MAX
from services.client.specification import SpecificationError

LEVEL_STYLES = {
    log_line_pb2.LOG_LEVEL_DEBUG: "dim",
    log_line_pb2.LOG_LEVEL_WARNING: "yellow",
    log_line_pb2.LOG_LEVEL_ERROR: "bold red",
}
UNITS_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Level(enum.StrEnum):
    """How grave a line is at least."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Stream(enum.StrEnum):
    """Where a line was written to."""

    LOG = "log"
    STDOUT = "stdout"
    STDERR = "stderr"


@command
async def show_logs(
    session: Session,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=1, max=INT32_MAX, help="The newest lines, this many.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="From a time on (ISO 8601), or 90s, 15m, 2h, 1d ago.")] = None,
    level: Annotated[Level | None, typer.Option(help="At least this level.")] = None,
    contains: Annotated[str, typer.Option(help="With this text.")] = "",
    regex: Annotated[str, typer.Option(help="That this RE2 expression matches.")] = "",
    source: Annotated[list[str] | None, typer.Option(help="From this source, such as trainer.")] = None,
    stream: Annotated[list[Stream] | None, typer.Option(help="From this stream.")] = None,
    rank: Annotated[
        list[int] | None, typer.Option(min=0, max=INT32_MAX, help="From this process of the trainer.")
    ] = None,
    attempt: Annotated[list[int] | None, typer.Option(min=1, max=INT64_MAX, help="Of this attempt.")] = None,
    cursor: Annotated[str | None, typer.Option(help="After an earlier answer's cursor (--json shows it).")] = None,
) -> None:
    """Show a job's log. With -f it goes on live, over broken connections too, until the job has ended.

    Example: sihlai logs @last -f --level warning
    """
    if sum(start is not None for start in (tail, since, cursor)) > 1:
        raise SpecificationError("only one of --tail, --since and --cursor says where to start")
    level_name = f"LOG_LEVEL_{level.name if level else 'UNSPECIFIED'}"
    request = TailLogsRequest(
        job=job_name(job),
        follow=follow,
        filter=LogFilter(
            level_min=log_line_pb2.LogLevel.Value(level_name),
            sources=source,
            ranks=rank,
            streams=[log_line_pb2.LogStream.Value(f"LOG_STREAM_{each.name}") for each in stream or ()],
            contains=contains,
            regex=regex,
            attempts=attempt,
        ),
    )
    if tail is not None:
        request.tail_last = tail
    if since is not None:
        request.since.FromDatetime(parsed_since(since, now=datetime.now(UTC)))
    if cursor:
        request.cursor = cursor
    async for answer in session.client.iterate(tailed, request, on_break=on_break(session.output)):
        _show_answer(session.output, answer)


async def follow_job(session: Session, name: str, *, since: datetime | None = None) -> Job:
    """Show the job's lines, or those from a time on, and its states until it has ended; return it as it then is."""
    states = asyncio.create_task(_show_states(session, name))
    try:
        request = TailLogsRequest(job=name, follow=True)
        if since is not None:
            request.since.FromDatetime(since)
        # The job was answered for just now: what runs it is there, or will be again.
        lines = session.client.iterate(tailed, request, on_break=on_break(session.output), is_known=True)
        async for answer in lines:
            _show_answer(session.output, answer)
        return await states
    finally:
        states.cancel()


def on_break(output: Output) -> Break:
    """Tell the person who watches that a connection broke."""
    return lambda error: output.note(f"the connection broke ({error or 'it ended early'}): trying again")


def _show_answer(output: Output, answer: TailLogsResponse) -> None:
    if output.as_json:
        output.json(answer)
    elif answer.WhichOneof("message") == "batch":
        for line in answer.batch.lines:
            output.console.print(line_text(line), soft_wrap=True)
    elif answer.WhichOneof("message") == "ended" and not answer.ended.logs_complete:
        output.note("the log may lack its end: not every line had arrived when the wait for them was over")


def line_text(line: LogLine) -> Text:
    """A line with its time, its level as a colour, and who wrote it."""
    text = Text()
    text.append(line.time.ToDatetime(tzinfo=UTC).astimezone().strftime("%H:%M:%S.%f")[:-3], style="dim")
    text.append(f" {line.source:<10} ", style="cyan" if line.source == "agent" else "blue")
    text.append(shown(line.line.expandtabs(8)), style=LEVEL_STYLES.get(line.level, ""))
    return text


def parsed_since(text: str, *, now: datetime) -> datetime:
    """A moment in UTC from `90s`, `15m`, `2h`, `1d` before now, or from ISO 8601; without a zone the machine's."""
    try:
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
            return now - timedelta(seconds=float(match[1]) * UNITS_SECONDS[match[2]])
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise SpecificationError(
            f"--since is {text!r}, but must be a time such as 2026-01-31T12:00 or a while such as 15m, "
            "and lie in the years 1 to 9999 of UTC"
        ) from error


async def _show_states(session: Session, name: str) -> Job:
    """Say each new state, and each new phase, on standard error; return the ended job."""
    last_state, last_phase = job_pb2.JOB_STATE_UNSPECIFIED, ""
    job = Job()
    async for job in session.client.iterate(watched, name, on_break=on_break(session.output)):
        if job.state != last_state and not session.output.as_json:
            how_far = ", ".join(part for part in (state_text(job), progress_text(job)) if part)
            session.output.errors.print(f"[bold]{short(name)}[/bold] is {how_far}")
        elif job.progress.phase not in ("", last_phase) and not session.output.as_json:
            session.output.note(f"{short(name)}: {progress_text(job)}")  # such as the upload of a stop's checkpoint
        last_state, last_phase = job.state, job.progress.phase
    return job
