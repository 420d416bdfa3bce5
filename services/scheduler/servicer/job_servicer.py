"""JobService, but for the stream of WatchJobs, which stands in `watch`."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sihlai.scheduler.v1 import job_service_pb2 as messages
from sihlai.scheduler.v1 import job_service_pb2_grpc
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.chassis.auth import current_principal
from services.chassis.errors import InvalidArgument, Reason, SihlaiError, Unimplemented, Violation
from services.chassis.log import get_logger
from services.scheduler import specification
from services.scheduler.job import Checkpoint, Job, ResumeSource
from services.scheduler.reachability import Reachability
from services.scheduler.seal import Seal
from services.scheduler.servicer.watch import JobWatch
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.store.jobs import JobStore, JobView, Submission
from services.scheduler.store.projects import ProjectStore
from services.scheduler.wire.checkpoint import checkpoint_name
from services.scheduler.wire.job import (
    job_filter_from_proto,
    job_to_proto,
    prefixed,
    queued_job_to_proto,
    seconds_of,
    stop_mode_from_proto,
    stop_violations,
    submission_from_spec,
)
from services.scheduler.wire.names import (
    checkpoint_ids_of,
    id_violations,
    job_ids_of,
    page_size_of,
    page_token,
    page_token_after,
    project_id_of,
    refuse,
    request_id_violations,
    request_of,
)
from services.scheduler.wire.project import source_with_credentials

log = get_logger(__name__)

BATCH_MAX = 1_000


@dataclass(frozen=True, kw_only=True)
class StopLimits:
    """How long stops take."""

    grace_seconds: float
    grace_seconds_max: float
    margin_seconds: float


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    """Jobs."""

    def __init__(
        self,
        jobs: JobStore,
        projects: ProjectStore,
        checkpoints: CheckpointRows,
        watch: JobWatch,
        reachability: Reachability,
        *,
        seal: Seal,
        stop_limits: StopLimits,
    ) -> None:
        self._jobs = jobs
        self._projects = projects
        self._checkpoints = checkpoints
        self._watch = watch
        self._reachability = reachability
        self._seal = seal
        self._stop_limits = stop_limits

    async def SubmitJob(self, request: messages.SubmitJobRequest, context: Any) -> messages.SubmitJobResponse:
        project_id = project_id_of(request.parent, "parent")
        spec = specification.complete(request.spec)
        refuse(
            request_id_violations(request.request_id)
            + id_violations(request.job_id, "job_id")
            + prefixed(specification.violations(request.spec), "spec.")
        )
        identity = request_of("SubmitJob", request)
        try:
            await self._check_reachable(spec, project_id)
            await self._pin_initialization(spec)
        except SihlaiError:
            # The same request may have been accepted before the dataset changed, or before the project was deleted.
            answer = await self._jobs.first_answer(identity)
            if answer is None:
                raise
            return messages.SubmitJobResponse.FromString(answer)
        submission = submission_from_spec(
            spec, project_id=project_id, job_id=request.job_id, creator=current_principal().creator
        )
        response = messages.SubmitJobResponse.FromString(
            await self._jobs.submit(identity, _encode_submitted, submission)
        )
        log.info("job_submitted", job=response.job.name, job_uid=response.job.uid)
        return response

    async def GetJob(self, request: messages.GetJobRequest, context: Any) -> messages.GetJobResponse:
        view, standing = await self._jobs.get(*job_ids_of(request.name))
        return messages.GetJobResponse(job=queued_job_to_proto(view, standing))

    async def BatchGetJobs(self, request: messages.BatchGetJobsRequest, context: Any) -> messages.BatchGetJobsResponse:
        wanted = len(request.names) + len(request.uids)
        description = f"hold {wanted} names and uids, but at most {BATCH_MAX} may be asked for at once"
        refuse([Violation(field="names", description=description)] if wanted > BATCH_MAX else [])
        names = [job_ids_of(name, f"names[{index}]") for index, name in enumerate(request.names)]
        found = await self._jobs.batch(names, request.uids)
        by_name = {view.job.name: view for view in found}
        by_uid = {view.job.uid: view for view in found}
        asked = [(name, by_name.get(name)) for name in request.names] + [(uid, by_uid.get(uid)) for uid in request.uids]
        return messages.BatchGetJobsResponse(
            jobs=[job_to_proto(view) for _, view in asked if view is not None],
            missing=[key for key, view in asked if view is None],
        )

    async def ListJobs(self, request: messages.ListJobsRequest, context: Any) -> messages.ListJobsResponse:
        limit = page_size_of(request.page_size)
        job_filter = job_filter_from_proto(request.parent, request.filter)
        scope = f"{request.parent} {request.filter.SerializeToString(deterministic=True).hex()}"
        after = page_token_after(request.page_token, scope, form="[0-9]{1,18}")
        found = await self._jobs.page(job_filter, before=int(after) if after else None, limit=limit + 1)
        more = len(found) > limit
        return messages.ListJobsResponse(
            jobs=[job_to_proto(view) for view in found[:limit]],
            next_page_token=page_token(str(found[limit - 1].job.sequence), scope) if more else "",
        )

    async def DeleteJob(self, request: messages.DeleteJobRequest, context: Any) -> messages.DeleteJobResponse:
        message = "this version cannot delete single jobs: delete the project, or leave the job"
        raise Unimplemented(Reason.NOT_IMPLEMENTED, message, {"method": "DeleteJob"})

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
        )
        log.info("job_stop_asked", job=request.name, mode=stop_mode_from_proto(request).name)
        return messages.StopJobResponse.FromString(answer)

    async def ResumeJob(self, request: messages.ResumeJobRequest, context: Any) -> messages.ResumeJobResponse:
        identity = request_of("ResumeJob", request)
        try:
            submission = await self._resumed(request)
        except SihlaiError:
            answer = await self._jobs.first_answer(identity)
            if answer is None:
                raise
            return messages.ResumeJobResponse.FromString(answer)
        response = messages.ResumeJobResponse.FromString(await self._jobs.submit(identity, _encode_resumed, submission))
        log.info("job_resumed", job=response.job.name, job_uid=response.job.uid, source=request.name)
        return response

    async def WatchJobs(
        self, request: messages.WatchJobsRequest, context: Any
    ) -> AsyncIterator[messages.WatchJobsResponse]:
        async for response in self._watch.follow(request):
            yield response

    async def _check_reachable(self, spec: JobSpec, project_id: str) -> None:
        project = await self._projects.get(project_id)
        sealed = await self._projects.sealed_credentials([project.training_dataset])
        await self._reachability.check(spec, source_with_credentials(project.training_dataset, sealed, self._seal))

    async def _pin_initialization(self, spec: JobSpec) -> None:
        """Write which checkpoint `last`, `best` or `final` is into the specification. NotFound where there is none."""
        if spec.model.initialization.WhichOneof("source") != "checkpoint":
            return
        named = spec.model.initialization.checkpoint
        project_id, job_id, checkpoint_id = checkpoint_ids_of(named.checkpoint)
        checkpoint = await self._checkpoints.get(project_id, job_id, checkpoint_id)
        named.checkpoint = checkpoint_name(f"projects/{project_id}/jobs/{job_id}", checkpoint.key)

    async def _resumed(self, request: messages.ResumeJobRequest) -> Submission:
        """The new job of a ResumeJob: the old one's specification with the changes, and where it goes on."""
        project_id, job_id = job_ids_of(request.name)
        old, checkpoint = await self._jobs.resumable(project_id, job_id, _checkpoint_id_of(request))
        spec = JobSpec.FromString(old.spec)
        spec.trainer.CopyFrom(specification.merge_trainer(spec.trainer, request.trainer))
        spec.display_name = request.display_name or spec.display_name
        completed = specification.complete(spec)
        refuse(
            id_violations(request.job_id, "job_id")
            + specification.violations(spec)
            + _limit_violations(completed, old, checkpoint)
        )
        source = ResumeSource(
            job_name=old.name, checkpoint_name=checkpoint_name(old.name, checkpoint.key), key=checkpoint.key
        )
        return submission_from_spec(
            completed,
            project_id=project_id,
            job_id=request.job_id,
            creator=current_principal().creator,
            source=source,
        )


def _checkpoint_id_of(request: messages.ResumeJobRequest) -> str:
    """The id of the checkpoint that is meant, which may be given alone or as a full name of the same job."""
    given = request.checkpoint
    if "/" not in given:
        return given
    if not given.startswith(f"{request.name}/"):
        description = f"is {given!r}, but must be a checkpoint of {request.name}"
        raise InvalidArgument([Violation(field="checkpoint", description=description)])
    return checkpoint_ids_of(given, "checkpoint")[2]


def _limit_violations(spec: JobSpec, old: Job, checkpoint: Checkpoint) -> list[Violation]:
    """A job that goes on from a checkpoint must have something left to do."""
    done = checkpoint.key.iteration
    if spec.trainer.iterations_max > done:
        return []
    name = checkpoint_name(old.name, checkpoint.key)
    description = f"is {spec.trainer.iterations_max}, but {name} has {done} iterations already: give a higher number"
    return [Violation(field="trainer.iterations_max", description=description)]


def _encode_submitted(view: JobView) -> bytes:
    return messages.SubmitJobResponse(job=job_to_proto(view)).SerializeToString()


def _encode_resumed(view: JobView) -> bytes:
    return messages.ResumeJobResponse(job=job_to_proto(view)).SerializeToString()


def _encode_stopped(view: JobView) -> bytes:
    return messages.StopJobResponse(job=job_to_proto(view)).SerializeToString()
