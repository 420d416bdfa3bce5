"""Long reads that go on where they were when the connection breaks: a job's log, its points, its states.

Every answer of such a stream carries a cursor. A broken connection can never look like an end: only the answer that the
caller knows as the last one ends the read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
from sihlai.logs.v1.log_service_pb2 import TailLogsRequest, TailLogsResponse
from sihlai.metrics.v1.metrics_service_pb2 import WatchMetricsRequest, WatchMetricsResponse
from sihlai.scheduler.v1.job_pb2 import Job
from sihlai.scheduler.v1.job_service_pb2 import WatchJobsRequest, WatchJobsResponse

from services.chassis.errors import (
    Aborted,
    DeadlineExceeded,
    Internal,
    NotFound,
    Reason,
    ResourceExhausted,
    SihlaiError,
    Unavailable,
)
from services.chassis.rpc import error_from_rpc
from services.cli.endpoints import Services
from services.cli.table import ENDED

RECONNECT_SECONDS_FIRST = 0.2
RECONNECT_SECONDS_LONGEST = 5.0
OUTAGE_SECONDS_MAX = 600.0
"""After so long without an answer the read gives up."""
PASSING = (Unavailable, ResourceExhausted, DeadlineExceeded, Aborted, Internal)
"""What may be gone when the call is sent again. Internal: gRPC's word for connections that break in an odd place."""


Break: TypeAlias = Callable[[SihlaiError | None], None]
"""Is told that a connection broke, with the reason where there is one; the read goes on by itself."""


class HasCursor(Protocol):
    """An answer of a long read."""

    @property
    def cursor(self) -> str:
        """Where to go on after it; empty where it does not say."""
        ...


Answer = TypeVar("Answer", bound=HasCursor)


def tail_logs(
    services: Services, request: TailLogsRequest, *, on_break: Break, cursor: str = ""
) -> AsyncIterator[TailLogsResponse]:
    """The answers of TailLogs up to `ended`, or without `follow` up to `caught_up`. The request is changed."""

    def open_stream(at: str) -> grpc.aio.UnaryStreamCall[TailLogsRequest, TailLogsResponse]:
        if at:
            request.cursor = at
        return services.logs.TailLogs(request)

    last = "ended" if request.follow else "caught_up"
    return resumed(
        open_stream, is_last=lambda answer: answer.WhichOneof("message") == last, on_break=on_break, cursor=cursor
    )


def watch_metrics(
    services: Services, request: WatchMetricsRequest, *, on_break: Break
) -> AsyncIterator[WatchMetricsResponse]:
    """The answers of WatchMetrics up to `ended`. The request is changed."""

    def open_stream(at: str) -> grpc.aio.UnaryStreamCall[WatchMetricsRequest, WatchMetricsResponse]:
        request.cursor = at or request.cursor
        return services.metrics.WatchMetrics(request)

    return resumed(open_stream, is_last=lambda answer: answer.WhichOneof("message") == "ended", on_break=on_break)


async def watch_job(services: Services, name: str, *, on_break: Break) -> AsyncIterator[Job]:
    """A job as it is now and after each change, until it has ended. Raises NotFound where it is deleted."""
    parent = name.partition("/jobs/")[0]

    def open_stream(at: str) -> grpc.aio.UnaryStreamCall[WatchJobsRequest, WatchJobsResponse]:
        return services.jobs.WatchJobs(WatchJobsRequest(parent=parent, cursor=at))

    def is_last(answer: WatchJobsResponse) -> bool:
        return answer.job.name == name and answer.job.state in ENDED

    found = False
    async for answer in resumed(open_stream, is_last=is_last, on_break=on_break):
        if answer.WhichOneof("message") == "job" and answer.job.name == name:
            found = True
            yield answer.job
        missing = answer.WhichOneof("message") == "caught_up" and not found
        if missing or (answer.WhichOneof("message") == "removed" and answer.removed.name == name):
            raise NotFound(Reason.JOB_NOT_FOUND, f"there is no job {name}", {"name": name})


async def resumed(
    open_stream: Callable[[str], grpc.aio.UnaryStreamCall[Any, Answer]],
    *,
    is_last: Callable[[Answer], bool],
    on_break: Break,
    cursor: str = "",
    outage_seconds_max: float = OUTAGE_SECONDS_MAX,
) -> AsyncIterator[Answer]:
    """The answers of a stream up to and with the last one, over any number of connections.

    `open_stream` gets the cursor to go on from, empty at the start. The first connection must succeed: what a service
    refuses, or that none is there, is raised. Later breaks are told to `on_break`, and tried again until
    `outage_seconds_max` have passed without an answer; then the last error is raised.
    """
    answered, answered_at = False, time.monotonic()
    pause = RECONNECT_SECONDS_FIRST
    while True:
        broke: SihlaiError | None = None
        call = open_stream(cursor)
        try:
            async for answer in call:
                cursor = answer.cursor or cursor
                answered, answered_at, pause = True, time.monotonic(), RECONNECT_SECONDS_FIRST
                yield answer
                if is_last(answer):
                    return
        except grpc.RpcError as error:
            broke = error_from_rpc(error)
            out_of_time = time.monotonic() - answered_at > outage_seconds_max
            if not answered or out_of_time or not isinstance(broke, PASSING):
                raise
        finally:
            call.cancel()  # who stops reading early leaves no call behind
        on_break(broke)
        await asyncio.sleep(pause)
        pause = min(pause * 2, RECONNECT_SECONDS_LONGEST)
