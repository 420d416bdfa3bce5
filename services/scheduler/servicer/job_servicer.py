"""JobService, but for the stream of WatchJobs, which stands in `watch`."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sihlai.scheduler.v1 import job_service_pb2 as messages
from sihlai.scheduler.v1 import job_service_pb2_grpc

from services.chassis.aside import aside
from services.chassis.auth.principal import current_principal
from services.chassis.errors import InvalidArgument, Reason, SihlaiError, Violation
from services.chassis.log import get_logger
from services.scheduler.deletion import Deletion
from services.scheduler.domain.job import Job
from services.scheduler.domain.view import Damaged, JobView
from services.scheduler.servicer.submissions import Made, Submissions
from services.scheduler.servicer.watch import JobWatch
from services.scheduler.store.jobs import JobStore
from services.scheduler.wire.job import (
    is_deleted,
    job_filter_from_proto,
    job_to_proto,
    listed_job_to_proto,
    queued_job_to_proto,
    seconds_of,
    stop_mode_from_proto,
    stop_violations,
)
from services.scheduler.wire.names import (
    is_uid,
    job_ids_of,
    page_size_of,
    page_token_after,
    refuse,
    request_id_violations,
    request_of,
)
from services.scheduler.wire.page import Serialized, page_of, whole

log = get_logger(__name__)

NewJob = TypeVar("NewJob", messages.SubmitJobResponse, messages.ResumeJobResponse, messages.EvaluateCheckpointResponse)

BATCH_MAX = 1_000
BATCH_BYTES_MAX = 12 * 2**20
"""Of an answer to BatchGetJobs, which has no pages; below `message_bytes_max`, which is 16 MiB by default."""


@dataclass(frozen=True, kw_only=True)
class StopLimits:
    """How long stops take."""

    grace_seconds: float
    grace_seconds_max: float
    margin_seconds: float


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    """Jobs. `deletion_seconds`: how long a deletion waits until `deletion` has taken everything out."""

    def __init__(
        self,
        jobs: JobStore,
        submissions: Submissions,
        watch: JobWatch,
        deletion: Deletion,
        *,
        deletion_seconds: float,
        stop_limits: StopLimits,
    ) -> None:
        self._jobs = jobs
        self._submissions = submissions
        self._watch = watch
        self._deletion = deletion
        self._deletion_seconds = deletion_seconds
        self._stop_limits = stop_limits

    async def SubmitJob(self, request: messages.SubmitJobRequest, context: Any) -> messages.SubmitJobResponse:
        made = self._submissions.submitted(request)
        answer = await self._submit("SubmitJob", request, made, messages.SubmitJobResponse)
        log.info("job_submitted", job=answer.job.name, job_uid=answer.job.uid)
        return answer

    async def GetJob(self, request: messages.GetJobRequest, context: Any) -> messages.GetJobResponse:
        view, standing = await self._jobs.get(*job_ids_of(request.name))
        return messages.GetJobResponse(job=queued_job_to_proto(view, standing))

    async def BatchGetJobs(self, request: messages.BatchGetJobsRequest, context: Any) -> messages.BatchGetJobsResponse:
        wanted = len(request.names) + len(request.uids)
        description = f"hold {wanted} names and uids, but at most {BATCH_MAX} may be asked for at once"
        refuse([Violation(field="names", description=description)] if wanted > BATCH_MAX else [])
        names = [job_ids_of(name, f"names[{index}]") for index, name in enumerate(request.names)]
        found = await self._jobs.batch(names, [uid for uid in request.uids if is_uid(uid)])
        # A uid says no project: what the caller may not see is not there.
        sees = current_principal().sees
        found = [item for item in found if isinstance(item, Damaged) or _is_there(item.job, sees)]
        response = await _batch(request, found)
        if response.ByteSize() > BATCH_BYTES_MAX:
            raise _too_large(wanted)
        return response

    async def ListJobs(self, request: messages.ListJobsRequest, context: Any) -> Serialized:
        limit = page_size_of(request.page_size)
        job_filter = job_filter_from_proto(request.parent, request.filter)
        scope = f"{request.parent} {request.filter.SerializeToString(deterministic=True).hex()}"
        after = page_token_after(request.page_token, scope, form="[0-9]{1,18}")
        found = await self._jobs.page(job_filter, before=int(after) if after else None, limit=limit + 1)
        return await page_of(
            found,
            listed_job_to_proto,
            limit=limit,
            place=lambda view: str(view.job.sequence),
            scope=scope,
            answer=lambda jobs, token: messages.ListJobsResponse(jobs=jobs, next_page_token=token),
        )

    async def DeleteJob(self, request: messages.DeleteJobRequest, context: Any) -> messages.DeleteJobResponse:
        project_id, job_id = job_ids_of(request.name)
        refuse(request_id_violations(request.request_id))
        answer = await self._jobs.delete(
            request_of("DeleteJob", request), _encode_deleted, project_id=project_id, job_id=job_id
        )
        response = messages.DeleteJobResponse.FromString(answer)
        log.info("job_deleted", job=request.name, job_uid=response.uid)
        response.done = await self._deletion.is_done(response.uid, seconds=self._deletion_seconds)
        return response

    async def StopJob(self, request: messages.StopJobRequest, context: Any) -> messages.StopJobResponse:
        project_id, job_id = job_ids_of(request.name)
        limits = self._stop_limits
        refuse(request_id_violations(request.request_id) + stop_violations(request, limits.grace_seconds_max))
        answer = await self._jobs.stop(
            request_of("StopJob", request),
            _encode_stopped,
            project_id=project_id,
            job_id=job_id,
            mode=stop_mode_from_proto(request),
            grace_seconds=seconds_of(request.grace) if request.HasField("grace") else limits.grace_seconds,
            margin_seconds=limits.margin_seconds,
            reason=request.reason,
            stopper=current_principal().subject,
        )
        log.info("job_stop_asked", job=request.name, mode=stop_mode_from_proto(request).name)
        return messages.StopJobResponse.FromString(answer)

    async def ResumeJob(self, request: messages.ResumeJobRequest, context: Any) -> messages.ResumeJobResponse:
        made = self._submissions.resumed(request)
        answer = await self._submit("ResumeJob", request, made, messages.ResumeJobResponse)
        log.info("job_resumed", job=answer.job.name, job_uid=answer.job.uid, source=request.name)
        return answer

    async def EvaluateCheckpoint(
        self, request: messages.EvaluateCheckpointRequest, context: Any
    ) -> messages.EvaluateCheckpointResponse:
        made = self._submissions.evaluating(request)
        answer = await self._submit("EvaluateCheckpoint", request, made, messages.EvaluateCheckpointResponse)
        log.info("evaluation_submitted", job=answer.job.name, job_uid=answer.job.uid, source=request.name)
        return answer

    async def WatchJobs(  # type: ignore[override]  # it writes bytes, and returns nothing
        self, request: messages.WatchJobsRequest, context: Any
    ) -> None:
        await self._watch.follow(request, context)

    async def _submit(
        self, method: str, request: Any, making: Coroutine[Any, Any, Made], response: type[NewJob]
    ) -> NewJob:
        """Queue the new job that is made of a request; a repeated one gets its first answer."""
        try:
            made = await making
        except SihlaiError:
            # The same request may have been accepted before the dataset changed, or before the project was deleted.
            if request_id_violations(request.request_id):
                raise
            answer = await self._jobs.first_answer(request_of(method, request))
            if answer is None:
                raise
            return response.FromString(answer)

        def encode(view: JobView) -> bytes:
            warnings = {"warnings": made.warnings} if made.warnings else {}
            return response(job=job_to_proto(view), **warnings).SerializeToString()

        return response.FromString(await self._jobs.submit(request_of(method, request), encode, made.submission))


def _is_there(job: Job, sees: Callable[[str], bool]) -> bool:
    return sees(f"projects/{job.project_id}") and not is_deleted(job.project_uid, job.uid)


async def _batch(
    request: messages.BatchGetJobsRequest, found: Sequence[JobView | Damaged]
) -> messages.BatchGetJobsResponse:
    """Those of the jobs that were asked for, in that order, and the names and uids of which there is none."""
    views = [item for item in found if not isinstance(item, Damaged)]
    by_name, by_uid = {view.job.name: view for view in views}, {view.job.uid: view for view in views}
    damaged = {word for item in found if isinstance(item, Damaged) for word in item.place.split()}
    asked = [(name, by_name.get(name)) for name in request.names] + [(uid, by_uid.get(uid)) for uid in request.uids]
    response = messages.BatchGetJobsResponse()

    def add(some: Sequence[tuple[str, JobView | None]]) -> None:
        for key, view in some:
            proto = whole(view, job_to_proto, lambda view: view.job.name) if view is not None else None
            if proto is not None:
                response.jobs.append(proto)
            elif view is None and key not in damaged:
                response.missing.append(key)

    await aside(asked, add)
    return response


def _too_large(wanted: int) -> InvalidArgument:
    description = f"name {wanted} jobs, which have more than {BATCH_BYTES_MAX} bytes together: ask for fewer at once"
    violation = Violation(field="names", description=description, reason=Reason.MESSAGE_TOO_LARGE)
    return InvalidArgument([violation], reason=Reason.MESSAGE_TOO_LARGE, metadata={"bytes_max": str(BATCH_BYTES_MAX)})


def _encode_deleted(job: Job) -> bytes:
    return messages.DeleteJobResponse(uid=job.uid).SerializeToString()


def _encode_stopped(view: JobView) -> bytes:
    return messages.StopJobResponse(job=job_to_proto(view)).SerializeToString()
