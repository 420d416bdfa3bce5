"""Operations on jobs: submitted, read, followed, waited for, stopped, resumed."""

from __future__ import annotations

import contextlib
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from sihlai.logs.v1.log_line_pb2 import LogLevel, LogLine
from sihlai.logs.v1.log_service_pb2 import LogFilter, TailLogsRequest, TailLogsResponse
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Job, JobState
from sihlai.scheduler.v1.job_service_pb2 import (
    DeleteJobRequest,
    GetJobRequest,
    JobFilter,
    ListJobsRequest,
    ResumeJobRequest,
    StopJobRequest,
    SubmitJobRequest,
    SubmitJobResponse,
    WatchJobsRequest,
    WatchJobsResponse,
)
from sihlai.scheduler.v1.job_spec_pb2 import Data, JobSpec, Model, Resources, Trainer

from services.chassis.errors import NotFound, Reason, SihlaiError
from services.client.call import JOBS, LOGS, Break, Operation, Reading, ask, consumed, follow, mapped, pages
from services.client.name import checkpoint_name, job_name, project_name, short
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


def submitted(
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
) -> Operation[SubmitJobResponse]:
    """Submit to `digits`, or as `digits/first`. The specification is whole, or in parts, which win over it."""
    whole = message_from(spec or {}, JobSpec)
    parts = {"model": (model, Model), "data": (data, Data), "trainer": (trainer, Trainer)}
    for name, (part, kind) in {**parts, "resources": (resources, Resources)}.items():
        if part is not None:
            getattr(whole, name).CopyFrom(message_from(part, kind, name))
    whole.labels.update(labels or {})
    whole.display_name = display_name or whole.display_name
    if priority is not None:
        whole.priority = priority
    if "/" in place.removeprefix("projects/"):
        parent, _, job_id = job_name(place).rpartition("/jobs/")
    else:
        parent, job_id = project_name(place), ""
    request = SubmitJobRequest(parent=parent, job_id=job_id, spec=whole, request_id=str(uuid.uuid4()))
    return (yield from ask(JOBS.SubmitJob, request))


def got(name: str) -> Operation[Job]:
    """The job as it is now."""
    return (yield from ask(JOBS.GetJob, GetJobRequest(name=job_name(name)))).job


def listed(
    project: str = "-",
    *,
    states: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> Operation[list[Job]]:
    """Jobs, newest first; of all projects where none is named."""
    wanted = JobFilter(states=[parsed_state(state) for state in states], labels=labels or {})
    if since is not None:
        wanted.created_after.FromDatetime(since)
    request = ListJobsRequest(parent=project_name(project), filter=wanted)
    found = yield from pages(JOBS.ListJobs, request, limit=limit)
    return [job for page in found for job in page.jobs]


def stopped(name: str, *, now: bool = False, grace: float | None = None, reason: str = "") -> Operation[Job]:
    """Ask for a stop: with a checkpoint, or `now` without. `grace` are the seconds for writing it."""
    request = StopJobRequest(
        name=job_name(name),
        mode=job_pb2.STOP_MODE_IMMEDIATE if now else job_pb2.STOP_MODE_CHECKPOINT,
        reason=reason,
        request_id=str(uuid.uuid4()),
    )
    if grace is not None:
        request.grace.CopyFrom(Duration(seconds=int(grace), nanos=round(grace % 1 * 1e9)))
    return (yield from ask(JOBS.StopJob, request)).job


def resumed(
    name: str,
    *,
    trainer: Trainer | Mapping[str, Any] | None = None,
    checkpoint: str = "",
    job_id: str = "",
    display_name: str = "",
) -> Operation[Job]:
    """A new job that goes on from an ended one, with other settings of the trainer where they are given."""
    request = ResumeJobRequest(
        name=job_name(name),
        job_id=job_id,
        checkpoint=checkpoint_name(checkpoint) if checkpoint else "",
        display_name=display_name,
        request_id=str(uuid.uuid4()),
    )
    if trainer is not None:
        request.trainer.CopyFrom(message_from(trainer, Trainer, "trainer"))
    return (yield from ask(JOBS.ResumeJob, request)).job


def deleted(name: str) -> Operation[None]:
    """Delete an ended job with its points, lines and checkpoints."""
    yield from ask(JOBS.DeleteJob, DeleteJobRequest(name=job_name(name), request_id=str(uuid.uuid4())))


def watched(name: str, *, on_break: Break = lambda error: None, seconds: float | None = None) -> Reading[Job]:
    """A job as it is now and after each change, until it has ended; over broken connections. NotFound where it goes."""
    job = yield from got(name)
    uid = job.uid  # the name may be given again
    only = JobFilter(uids=[uid])
    parent = job.name.partition("/jobs/")[0]
    seen = False

    def turn(answer: WatchJobsResponse) -> Iterable[Job]:
        nonlocal seen
        kind = answer.WhichOneof("message")
        seen = seen or kind == "job"
        if kind == "removed" or (kind == "caught_up" and not seen):
            raise NotFound(Reason.JOB_NOT_FOUND, f"there is no job {job.name} any more", {"name": job.name})
        return [answer.job] if kind == "job" else ()

    changes = follow(
        JOBS.WatchJobs,
        lambda cursor: WatchJobsRequest(parent=parent, filter=only, cursor=cursor),
        is_last=lambda answer: answer.job.state in ENDED,
        on_break=on_break,
        seconds=seconds,
    )
    yield from mapped(changes, turn)


def changes(project: str = "-", *, on_break: Break = lambda error: None) -> Reading[WatchJobsResponse]:
    """What happens to jobs, without end: first all that there are, then each change."""
    parent = project_name(project)
    return follow(
        JOBS.WatchJobs,
        lambda cursor: WatchJobsRequest(parent=parent, cursor=cursor),
        is_last=lambda answer: False,
        on_break=on_break,
    )


def waited(name: str, *, timeout: float | None = None) -> Operation[Job]:
    """The job when it has ended. Raises JobFailed where it failed, TimeoutError after `timeout` seconds."""
    newest = deque[Job](maxlen=1)
    yield from consumed(watched(name, seconds=timeout), newest.append)
    if newest[0].state == job_pb2.JOB_STATE_FAILED:
        raise JobFailed(newest[0], (yield from last_lines(newest[0].name)))
    return newest[0]


def tailed(
    request: TailLogsRequest,
    *,
    on_break: Break = lambda error: None,
    cursor: str = "",
    seconds: float | None = None,
) -> Reading[TailLogsResponse]:
    """The answers of TailLogs up to `ended`, or without `follow` up to `caught_up`. The request is changed."""

    def request_at(cursor: str) -> TailLogsRequest:
        if cursor:
            request.cursor = cursor
        return request

    last = "ended" if request.follow else "caught_up"
    return follow(
        LOGS.TailLogs,
        request_at,
        is_last=lambda answer: answer.WhichOneof("message") == last,
        on_break=on_break,
        cursor=cursor,
        seconds=seconds,
    )


def log_lines(
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
        request.tail_last = tail
    if since is not None:
        request.since.FromDatetime(since)
    return mapped(tailed(request, on_break=on_break, seconds=timeout), lambda answer: answer.batch.lines)


def parsed_state(text: str) -> JobState.ValueType:
    """The state of a name such as `running`."""
    return JobState.ValueType(enum_value(JobState.DESCRIPTOR, text, "state"))


def last_lines(name: str) -> Operation[list[str]]:
    """The end of an ended job's log, as far as it is to be had: its last lines may still be on their way."""
    lines: list[str] = []
    with contextlib.suppress(SihlaiError, TimeoutError):
        tail = log_lines(name, follow=True, tail=LAST_LINES, timeout=LAST_LINES_SECONDS)
        yield from consumed(tail, lambda line: lines.append(line.line))
    return lines[-LAST_LINES:]
