"""What metrics knows of jobs: what the scheduler says, and for a while what it said before.

Jobs belong to the scheduler; points and lines belong to a job's uid. Names are looked up there. With the scheduler away
a name that was looked up before still works, bounded in number and time, and nobody who follows a job hears that it has
ended. One WatchJobs over all projects tells of ends at once; looks at the followed jobs make up for what it misses.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

import grpc
from sihlai.scheduler.v1 import job_service_pb2, job_service_pb2_grpc

from services.chassis.backoff import Backoff
from services.chassis.errors import DeadlineExceeded, NotFound, OutOfRange, Reason, SihlaiError, Unavailable
from services.chassis.log import get_logger
from services.chassis.rpc import error_from_rpc
from services.metrics import job_wire
from services.metrics.job import ConfiguredJob, JobFacts

log = get_logger(__name__)

JOBS_PER_CALL = 1_000


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """How long what is known holds, and how often the scheduler is asked."""

    call_seconds: float
    fresh_seconds: float
    stale_seconds: float
    cached_max: int
    poll_seconds: float
    reconnect_seconds: float
    reconnect_seconds_max: float


@dataclass(frozen=True, kw_only=True)
class Known:
    """A job as it was told at the time `at`. `doubted`: it has changed since, nobody knows how."""

    job: JobFacts
    at: float
    doubted: bool = False


class Interest:
    """One who follows a job: `job` is the newest that is known, `deleted` that it is gone."""

    def __init__(self, job: JobFacts, on_change: Callable[[], None]) -> None:
        self.job = job
        self.deleted = False
        self.on_change = on_change


class Jobs:
    """The scheduler's jobs. `run` must run beside it for follows to hear of changes."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        limits: JobLimits,
        monotonic: Callable[[], float] = time.monotonic,
        randomness: random.Random | None = None,
    ) -> None:
        self._stub = job_service_pb2_grpc.JobServiceStub(channel)
        self._limits = limits
        self._monotonic = monotonic
        self._backoff = Backoff(
            seconds_first=limits.reconnect_seconds,
            seconds_max=limits.reconnect_seconds_max,
            randomness=randomness or random.Random(),  # noqa: S311  # spreads retries, guards nothing
        )
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._asking: dict[tuple[str, ...], asyncio.Task[job_service_pb2.BatchGetJobsResponse]] = {}
        """Calls for jobs of these names that have not been answered: thousands may come back to a job at once."""
        self._interests: dict[str, set[Interest]] = {}
        self._look = asyncio.Event()
        self._to_look_at: set[str] | None = set()
        """Of these jobs the scheduler is asked next; None stands for all that are followed."""
        self._listening_since: float | None = None
        """Since then every change of an active job has been heard; None while the watch is broken."""

    async def named(self, names: Sequence[str]) -> list[JobFacts]:
        """The jobs of these names. NotFound, or Unavailable where the scheduler is needed and away."""
        found = {name: self._known[name].job for name in names if self._is_fresh(name)}
        asked = [name for name in names if name not in found]
        if asked:
            try:
                response = await self._get_named(tuple(asked))
            except (Unavailable, DeadlineExceeded) as error:
                found |= self._stale(asked, error)
            else:
                for name in response.missing:
                    self._known.pop(name, None)
                    raise NotFound(Reason.JOB_NOT_FOUND, f"there is no job {name}", {"name": name})
                for proto in response.jobs:
                    found[proto.name] = job_wire.job_facts_from_proto(proto)
                    self._learn(found[proto.name])
        return [found[name] for name in names]

    async def configured(self, uids: Sequence[str]) -> dict[str, ConfiguredJob]:
        """Jobs with their configurations, by uid; Unavailable with the scheduler away."""
        try:
            response = await self._batch_get(job_service_pb2.BatchGetJobsRequest(uids=uids))
        except (Unavailable, DeadlineExceeded) as error:
            _raise_away(error)
        return {
            proto.uid: ConfiguredJob(
                facts=job_wire.job_facts_from_proto(proto), configuration=job_wire.configuration_from_proto(proto)
            )
            for proto in response.jobs
        }

    @contextmanager
    def follow(self, job: JobFacts, on_change: Callable[[], None]) -> Iterator[Interest]:
        """Hear of the job's changes. It is looked at again at once: it may have changed since it was read."""
        interest = Interest(job, on_change)
        followers = self._interests.setdefault(job.uid, set())
        followers.add(interest)
        self._ask_for(job.uid)
        try:
            yield interest
        finally:
            followers.discard(interest)
            if not followers and self._interests.get(job.uid) is followers:
                del self._interests[job.uid]

    async def run(self) -> None:
        """Keep follows informed, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._look_at_followed())

    async def _watch(self) -> None:
        cursor = ""
        while True:
            request = job_service_pb2.WatchJobsRequest(parent="projects/-", filter=job_wire.ACTIVE_JOBS, cursor=cursor)
            try:
                async for response in self._stub.WatchJobs(request):
                    cursor = response.cursor
                    self._backoff.reset()
                    self._hear(response)
            except grpc.aio.AioRpcError as rpc_error:
                error = error_from_rpc(rpc_error)
                if isinstance(error, OutOfRange):
                    cursor = ""
                log.info("job_watch_broken", reason=error.reason.value, message=error.message)
            self._listening_since = None
            await asyncio.sleep(self._backoff.next_seconds())

    def _hear(self, response: job_service_pb2.WatchJobsResponse) -> None:
        match response.WhichOneof("message"):
            case "job":
                self._learn(job_wire.job_facts_from_proto(response.job), cached_only=True)
            case "removed":
                # Ended, or deleted: it is not active any more. Ask which of the two.
                self._doubt(response.removed.name)
                if response.removed.uid in self._interests:
                    self._ask_for(response.removed.uid)
            case "caught_up":
                self._listening_since = self._monotonic()
                # What ended while nobody listened is not in a snapshot of active jobs.
                self._ask_for(None)

    async def _look_at_followed(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._limits.poll_seconds):
                    await self._look.wait()
            except TimeoutError:
                self._to_look_at = None
            self._look.clear()
            asked, self._to_look_at = self._to_look_at, set()
            uids = [
                uid
                for uid in (self._interests if asked is None else asked & self._interests.keys())
                if any(not interest.job.ended for interest in self._interests[uid])
            ]
            for start in range(0, len(uids), JOBS_PER_CALL):
                request = job_service_pb2.BatchGetJobsRequest(uids=uids[start : start + JOBS_PER_CALL])
                try:
                    response = await self._batch_get(request)
                except SihlaiError as error:
                    log.info("jobs_not_read", reason=error.reason.value)
                    break
                for proto in response.jobs:
                    self._learn(job_wire.job_facts_from_proto(proto), cached_only=True)
                for uid in response.missing:
                    for interest in self._interests.get(uid, ()):
                        interest.deleted = True
                        interest.on_change()

    async def _get_named(self, names: tuple[str, ...]) -> job_service_pb2.BatchGetJobsResponse:
        """Who asks for the same at the same time shares the answer."""
        call = self._asking.get(names)
        if call is None:
            call = asyncio.create_task(self._batch_get(job_service_pb2.BatchGetJobsRequest(names=names)))
            self._asking[names] = call
            call.add_done_callback(lambda call: self._answered(names, call))
        return await asyncio.shield(call)

    def _answered(self, names: tuple[str, ...], call: asyncio.Task[job_service_pb2.BatchGetJobsResponse]) -> None:
        del self._asking[names]
        if not call.cancelled():
            # Where nobody waits any more, nobody needs the error.
            call.exception()

    def _ask_for(self, uid: str | None) -> None:
        """Look at a followed job soon, or at all of them: a new follower costs no look at the others'."""
        if uid is None:
            self._to_look_at = None
        elif self._to_look_at is not None:
            self._to_look_at.add(uid)
        self._look.set()

    async def _batch_get(self, request: job_service_pb2.BatchGetJobsRequest) -> job_service_pb2.BatchGetJobsResponse:
        try:
            return await self._stub.BatchGetJobs(request, timeout=self._limits.call_seconds)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    def _learn(self, job: JobFacts, *, cached_only: bool = False) -> None:
        if not cached_only or job.name in self._known:
            self._known[job.name] = Known(job=job, at=self._monotonic())
            self._known.move_to_end(job.name)
            while len(self._known) > self._limits.cached_max:
                self._known.popitem(last=False)
        for interest in self._interests.get(job.uid, ()):
            # A job that says nothing new wakes nobody: thousands may follow it.
            if interest.job != job:
                interest.job = job
                interest.on_change()

    def _doubt(self, name: str) -> None:
        """Ask for the job the next time; with the scheduler away what is known still holds."""
        if name in self._known:
            self._known[name] = replace(self._known[name], doubted=True)

    def _is_fresh(self, name: str) -> bool:
        """Whether what is known of the job needs no question: it is new, or a change would have been heard."""
        known = self._known.get(name)
        if known is None or known.doubted:
            return False
        heard = self._listening_since is not None and known.at >= self._listening_since and not known.job.ended
        return heard or known.at >= self._monotonic() - self._limits.fresh_seconds

    def _stale(self, names: Sequence[str], error: SihlaiError) -> dict[str, JobFacts]:
        """What was known of these jobs not too long ago; Unavailable where one of them was not."""
        oldest = self._monotonic() - self._limits.stale_seconds
        if any(name not in self._known or self._known[name].at < oldest for name in names):
            _raise_away(error)
        return {name: self._known[name].job for name in names}


def _raise_away(error: SihlaiError) -> NoReturn:
    message = "the scheduler does not answer, and only it knows the job"
    raise Unavailable(Reason.SERVICE_UNAVAILABLE, message, {"service": "scheduler"}) from error
