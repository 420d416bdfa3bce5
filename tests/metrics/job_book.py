"""A double of the scheduler at the wire, and jobs in it, for tests of metrics.

The double implements the generated base class of JobService, so that the real scheduler can stand in its place.
"""

from __future__ import annotations

import itertools
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from sihlai.scheduler.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

from tests.object_server import free_ports


class JobBook(job_service_pb2_grpc.JobServiceServicer):
    """Jobs as a scheduler tells them. Each change goes to every WatchJobs."""

    def __init__(self) -> None:
        self._jobs: dict[str, job_pb2.Job] = {}
        self._revision = itertools.count(1)
        self._watchers: list[queue.SimpleQueue[job_service_pb2.WatchJobsResponse]] = []
        self._lock = threading.Lock()
        self.watches = 0

    def submit(self, job: job_pb2.Job) -> job_pb2.Job:
        with self._lock:
            self._jobs[job.uid] = job
            self._tell(job_service_pb2.WatchJobsResponse(job=job))
        return job

    def end(
        self,
        uid: str,
        state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_COMPLETED,
        *,
        ago: timedelta = timedelta(),
    ) -> None:
        """End a job. `ago`: what the scheduler's clock says, which may go wrong."""
        with self._lock:
            job = self._jobs[uid]
            job.state = state
            job.end_time.FromDatetime(datetime.now(UTC) - ago)
            self._tell(job_service_pb2.WatchJobsResponse(removed=job_service_pb2.RemovedJob(name=job.name, uid=uid)))

    def add_attempt(self, uid: str, number: int, from_step: int) -> None:
        with self._lock:
            self._jobs[uid].attempts.add(number=number, epoch=number, from_step=from_step)
            self._tell(job_service_pb2.WatchJobsResponse(job=self._jobs[uid]))

    def close_attempt(
        self, uid: str, number: int, outcome: job_pb2.AttemptOutcome.ValueType, *, ago: timedelta = timedelta()
    ) -> None:
        """Close an attempt. `ago`: as the scheduler's clock has it."""
        with self._lock:
            (attempt,) = (each for each in self._jobs[uid].attempts if each.number == number)
            attempt.outcome = outcome
            attempt.end_time.FromDatetime(datetime.now(UTC) - ago)
            self._tell(job_service_pb2.WatchJobsResponse(job=self._jobs[uid]))

    def delete(self, uid: str) -> None:
        with self._lock:
            job = self._jobs.pop(uid)
            self._tell(job_service_pb2.WatchJobsResponse(removed=job_service_pb2.RemovedJob(name=job.name, uid=uid)))

    def BatchGetJobs(self, request: Any, context: Any) -> job_service_pb2.BatchGetJobsResponse:  # noqa: N802
        with self._lock:
            by_name = {job.name: job for job in self._jobs.values()}
            found = [by_name.get(name) for name in request.names] + [self._jobs.get(uid) for uid in request.uids]
            wanted = [*request.names, *request.uids]
            return job_service_pb2.BatchGetJobsResponse(
                jobs=[job for job in found if job is not None],
                missing=[name for name, job in zip(wanted, found, strict=True) if job is None],
            )

    def WatchJobs(self, request: Any, context: Any) -> Iterator[job_service_pb2.WatchJobsResponse]:  # noqa: N802
        told: queue.SimpleQueue[job_service_pb2.WatchJobsResponse] = queue.SimpleQueue()
        with self._lock:
            self.watches += 1
            snapshot = [job for job in self._jobs.values() if job.state in request.filter.states]
            self._watchers.append(told)
        for job in snapshot:
            yield job_service_pb2.WatchJobsResponse(cursor="0", job=job)
        yield job_service_pb2.WatchJobsResponse(cursor="0", caught_up=job_service_pb2.WatchCaughtUp())
        while context.is_active():
            try:
                yield told.get(timeout=0.1)
            except queue.Empty:
                continue

    def _tell(self, response: job_service_pb2.WatchJobsResponse) -> None:
        response.cursor = str(next(self._revision))
        for told in self._watchers:
            copy = job_service_pb2.WatchJobsResponse()
            copy.CopyFrom(response)
            told.put(copy)


class Scheduler:
    """The job book behind an address. It can go away and come back there."""

    def __init__(self) -> None:
        self.book = JobBook()  # type: ignore[abstract]  # what metrics does not call is left to the base class
        (self._port,) = free_ports(1)
        self._server: grpc.Server | None = None

    def start(self) -> str:
        options = [("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(max_workers=16), options=options)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self.book, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()
        return self.address

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop(0).wait()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job in the book, which tests write points and lines of."""

    name: str
    uid: str


def submit(
    book: JobBook,
    *,
    attempts: Sequence[int] = (1,),
    state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_RUNNING,
    configure: Callable[[job_pb2.Job], None] = lambda job: None,
) -> Job:
    """A job of its own, with a uid that no other test has."""
    uid = uuid.uuid4().hex
    job = job_pb2.Job(name=f"projects/digits/jobs/job-{uid[:12]}", uid=uid, state=state)
    for number in attempts:
        job.attempts.add(number=number, epoch=number)
    configure(job)
    book.submit(job)
    return Job(name=job.name, uid=uid)
