"""Operations on jobs: submitted, read, followed, waited for, stopped, resumed."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sihlai.logs.v1.log_line_pb2 import LogLevel, LogLine
from sihlai.logs.v1.log_service_pb2 import LogFilter, TailLogsRequest, TailLogsResponse
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1 import job_service_pb2 as pb
from sihlai.scheduler.v1.job_pb2 import Job, JobState
from sihlai.scheduler.v1.job_spec_pb2 import Data, JobSpec, Model, Resources, Trainer

from services.chassis.errors import NotFound, Reason, SihlaiError
from services.client.call import JOBS, LOGS, Break, Reading, Transport, ask, follow, whole
from services.client.name import checkpoint_name, job_name, project_name, short
from services.client.number import INT32_MAX, SECONDS_MAX, moment, number, whole_number
from services.client.specification import enum_value, message_from

ENDED = frozenset({job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_STOPPED, job_pb2.JOB_STATE_FAILED})
LAST_LINES = 20
LAST_LINES_SECONDS = 10.0
"""How many lines of its log a failed job is told with."""


class JobFailed(Exception):  # noqa: N818  # it is the job that failed
    """A job that was waited for has failed."""

    def __init__(self, job: Job, last_lines: Sequence[str]) -> None:
        self.job, self.last_lines = job, tuple(last_lines)
        lines = "".join(f"\n  {line}" for line in last_lines)
        reason = job.reason_message.partition("\n")[0] or "no reason was given"  # its end is that of the log
        super().__init__(f"{short(job.name)} failed: {reason}{lines}")


def state_name(state: JobState.ValueType) -> str:
    """`running` and so on."""
    return JobState.Name(state).removeprefix("JOB_STATE_").lower()


class JobFacts:
    """A job as it was when it was last read; `proto` has everything."""

    proto: Job

    @property
    def name(self) -> str:
        """`projects/digits/jobs/first`."""
        return self.proto.name

    @property
    def state(self) -> str:
        """`queued`, `starting`, `running`, `stopping`, `completed`, `stopped` or `failed`."""
        return state_name(self.proto.state)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.proto.state in ENDED

    @property
    def spec(self) -> JobSpec:
        """Its specification with every default filled in."""
        return self.proto.spec

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short(self.name)!r}, {self.state})"


async def submitted(
    transport: Transport,
    place: str,
    spec: JobSpec | Mapping[str, Any] | None = None,
    *,
    model: Model | Mapping[str, Any] | None = None,
    data: Data | Mapping[str, Any] | None = None,
    trainer: Trainer | Mapping[str, Any] | None = None,
    resources: Resources | Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    display_name: str = "",
    priority: int | None = None,
) -> pb.SubmitJobResponse:
    """Submit to `digits`, or as `digits/first`. The specification is whole, or in parts, which win over it."""
    wanted = message_from(spec or {}, JobSpec)
    parts = {"model": (model, Model), "data": (data, Data), "trainer": (trainer, Trainer)}
    for name, (part, kind) in {**parts, "resources": (resources, Resources)}.items():
        if part is not None:
            getattr(wanted, name).CopyFrom(message_from(part, kind, name))
    wanted.labels.update(labels or {})
    wanted.display_name = display_name or wanted.display_name
    if priority is not None:
        wanted.priority = whole_number(priority, "priority", at_least=-INT32_MAX)
    if "/" in place.removeprefix("projects/"):
        parent, _, job_id = job_name(place).rpartition("/jobs/")
    else:
        parent, job_id = project_name(place), ""
    request = pb.SubmitJobRequest(parent=parent, job_id=job_id, spec=wanted, request_id=str(uuid.uuid4()))
    return await ask(transport, JOBS.SubmitJob, request)


async def got(transport: Transport, name: str) -> Job:
    """The job as it is now."""
    return (await ask(transport, JOBS.GetJob, pb.GetJobRequest(name=job_name(name)))).job


async def listed(
    transport: Transport,
    project: str = "-",
    *,
    states: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> list[Job]:
    """Jobs, newest first; of all projects where none is named."""
    wanted = pb.JobFilter(states=[parsed_state(state) for state in states], labels=labels or {})
    if since is not None:
        wanted.created_after.CopyFrom(moment(since, "since"))
    request = pb.ListJobsRequest(parent=project_name(project), filter=wanted)
    return list((await whole(transport, JOBS.ListJobs, request, limit=limit)).jobs)


async def stopped(
    transport: Transport, name: str, *, now: bool = False, grace: float | None = None, reason: str = ""
) -> Job:
    """Ask for a stop: with a checkpoint, or `now` without. `grace` are the seconds for writing it."""
    request = pb.StopJobRequest(
        name=job_name(name),
        mode=job_pb2.STOP_MODE_IMMEDIATE if now else job_pb2.STOP_MODE_CHECKPOINT,
        reason=reason,
        request_id=str(uuid.uuid4()),
    )
    if grace is not None:
        request.grace.FromMicroseconds(round(number(grace, "grace", at_most=SECONDS_MAX) * 1e6))
    return (await ask(transport, JOBS.StopJob, request)).job


async def resumed(
    transport: Transport,
    name: str,
    *,
    trainer: Trainer | Mapping[str, Any] | None = None,
    checkpoint: str = "",
    job_id: str = "",
    display_name: str = "",
) -> Job:
    """A new job that goes on from an ended one, with other settings of the trainer where they are given."""
    request = pb.ResumeJobRequest(
        name=job_name(name),
        job_id=job_id,
        checkpoint=checkpoint_name(checkpoint) if checkpoint else "",
        display_name=display_name,
        request_id=str(uuid.uuid4()),
    )
    if trainer is not None:
        request.trainer.CopyFrom(message_from(trainer, Trainer, "trainer"))
    return (await ask(transport, JOBS.ResumeJob, request)).job


async def deleted(transport: Transport, name: str) -> None:
    """Delete an ended job with its points, lines and checkpoints."""
    await ask(transport, JOBS.DeleteJob, pb.DeleteJobRequest(name=job_name(name), request_id=str(uuid.uuid4())))


async def watched(
    transport: Transport, name: str, *, on_break: Break = lambda error: None, seconds: float | None = None
) -> Reading[Job]:
    """A job as it is now and after each change, until it has ended; over broken connections. NotFound where it goes."""
    if seconds is not None:
        number(seconds, "timeout", at_least=-math.inf, at_most=math.inf)
    job = await got(transport, name)
    only = pb.JobFilter(uids=[job.uid])  # the name may be given again
    request = pb.WatchJobsRequest(parent=job.name.partition("/jobs/")[0], filter=only)
    answers = follow(
        transport,
        JOBS.WatchJobs,
        request,
        is_last=lambda answer: answer.job.state in ENDED,
        on_break=on_break,
        seconds=seconds,
        is_known=True,
    )
    seen = False
    async with contextlib.aclosing(answers):
        async for answer in answers:
            kind = answer.WhichOneof("message")
            if kind == "job":
                seen = True
                yield answer.job
            elif kind == "removed" or (kind == "caught_up" and not seen):
                raise NotFound(Reason.JOB_NOT_FOUND, f"there is no job {job.name} any more", {"name": job.name})


def changes(
    transport: Transport, project: str = "-", *, on_break: Break = lambda error: None
) -> Reading[pb.WatchJobsResponse]:
    """What happens to jobs, without end: first all that there are, then each change."""
    request = pb.WatchJobsRequest(parent=project_name(project))
    return follow(transport, JOBS.WatchJobs, request, is_last=lambda answer: False, on_break=on_break)


async def waited(transport: Transport, name: str, *, timeout: float | None = None) -> Job:
    """The job when it has ended. Raises JobFailed where it failed, TimeoutError after `timeout` seconds."""
    async for job in watched(transport, name, seconds=timeout):
        newest = job
    if newest.state == job_pb2.JOB_STATE_FAILED:
        raise JobFailed(newest, await last_lines(transport, newest.name))
    return newest


def tailed(
    transport: Transport,
    request: TailLogsRequest,
    *,
    on_break: Break = lambda error: None,
    seconds: float | None = None,
    is_known: bool = False,
) -> Reading[TailLogsResponse]:
    """The answers of TailLogs up to `ended`, or without `follow` up to `caught_up`. The request is changed.

    Where metrics `is_known` to be there, the first connection may break like any other.
    """
    last = "ended" if request.follow else "caught_up"
    return follow(
        transport,
        LOGS.TailLogs,
        request,
        is_last=lambda answer: answer.WhichOneof("message") == last,
        on_break=on_break,
        seconds=seconds,
        is_known=is_known,
    )


def log_lines(
    transport: Transport,
    name: str,
    *,
    follow: bool = False,
    tail: int | None = None,
    since: datetime | None = None,
    level: str = "",
    contains: str = "",
    regex: str = "",
    sources: Iterable[str] = (),
    on_break: Break = lambda error: None,
    timeout: float | None = None,
) -> Reading[LogLine]:
    """The lines of a job's log, with `follow` on to its end, over broken connections too: each once, in order."""
    wanted = LogFilter(contains=contains, regex=regex, sources=sources)
    if level:
        wanted.level_min = LogLevel.ValueType(enum_value(LogLevel.DESCRIPTOR, level, "level"))
    request = TailLogsRequest(job=job_name(name), follow=follow, filter=wanted)
    if tail is not None:
        request.tail_last = whole_number(tail, "tail", at_least=1)
    if since is not None:
        request.since.CopyFrom(moment(since, "since"))
    return _lines(tailed(transport, request, on_break=on_break, seconds=timeout))


async def _lines(answers: Reading[TailLogsResponse]) -> Reading[LogLine]:
    async with contextlib.aclosing(answers):
        async for answer in answers:
            for line in answer.batch.lines:
                yield line


def parsed_state(text: str) -> JobState.ValueType:
    """The state of a name such as `running`."""
    return JobState.ValueType(enum_value(JobState.DESCRIPTOR, text, "state"))


async def last_lines(transport: Transport, name: str) -> list[str]:
    """The end of an ended job's log, as far as it is to be had: its last lines may still be on their way."""
    lines: list[str] = []
    with contextlib.suppress(SihlaiError, TimeoutError):
        async for line in log_lines(transport, name, follow=True, tail=LAST_LINES, timeout=LAST_LINES_SECONDS):
            lines.append(line.line)  # noqa: PERF401  # what came before an error counts
    return lines[-LAST_LINES:]
