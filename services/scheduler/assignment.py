"""What a runner is given to work on an attempt: specification, sources with their credentials, where to go on from."""

from __future__ import annotations

from sihlai.runner.v1 import runner_service_pb2
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.chassis.errors import NotFound, RetryableError, SihlaiError
from services.chassis.log import get_logger
from services.scheduler.domain.job import Job, JobReason
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.seal import Seal
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.store.projects import ProjectStore
from services.scheduler.store.runners import Standing
from services.scheduler.wire.checkpoint import checkpoint_name, checkpoint_to_proto
from services.scheduler.wire.names import checkpoint_ids_of
from services.scheduler.wire.project import source_with_credentials

log = get_logger(__name__)


class UnassignableError(Exception):
    """An attempt that no runner can be told of; says why, for the job's owner. `reason` is the job's."""

    def __init__(self, message: str, reason: JobReason) -> None:
        super().__init__(message)
        self.reason = reason


class Assignments:
    """Makes them from the rows, at the moment when they are sent: credentials are never kept in the clear."""

    def __init__(
        self, projects: ProjectStore, rows: CheckpointRows, *, checkpoints: CheckpointStore, seal: Seal
    ) -> None:
        self._projects = projects
        self._rows = rows
        self._checkpoints = checkpoints
        self._seal = seal

    async def build(self, standing: Standing) -> runner_service_pb2.Assignment:
        """The assignment of the runner's attempt. UnassignableError where no try would make it."""
        try:
            return await self._build(standing)
        except (RetryableError, UnassignableError):
            raise
        except Exception as error:  # it would come again with each call, and hold the runner with it
            log.exception("assignment_failed", job=standing.job.name if standing.job is not None else "")
            raise _unassignable(error) from error

    async def _build(self, standing: Standing) -> runner_service_pb2.Assignment:
        job, attempt, resume = standing.job, standing.attempt, standing.resume
        assert job is not None, "who should run has a job"
        assert attempt is not None, "who should run has an attempt"
        begins_at = attempt.resume
        origin = job.source.job_name if job.source and begins_at and begins_at.job_uid != job.uid else job.name
        if begins_at is not None and resume is None:
            purpose = "which it evaluates" if job.evaluates else "which it goes on from"
            raise _deleted(checkpoint_name(origin, begins_at), purpose)
        validation = job.validation_dataset
        sealed = await self._projects.sealed_credentials([job.training_dataset, validation])
        spec = JobSpec.FromString(job.spec)
        return runner_service_pb2.Assignment(
            job=job.name,
            job_uid=job.uid,
            attempt=attempt.number,
            epoch=attempt.epoch,
            spec=spec,
            training_dataset=source_with_credentials(job.training_dataset, sealed, self._seal),
            validation_dataset=source_with_credentials(validation, sealed, self._seal) if validation else None,
            dataset_fingerprint=job.dataset_fingerprint,
            resume_from=checkpoint_to_proto(resume, origin) if resume is not None else None,
            checkpoint_uri=self._checkpoints.prefix(job.uid, attempt.epoch),
            initialization=await self._initialization(job, spec) if resume is None else None,
            evaluation=job.evaluates,
        )

    async def _initialization(self, job: Job, spec: JobSpec) -> job_pb2.Checkpoint | None:
        """The checkpoint that a fresh start takes its weights from. UnassignableError where it was deleted since."""
        if spec.model.initialization.WhichOneof("source") != "checkpoint":
            return None
        name = spec.model.initialization.checkpoint.checkpoint
        project_id, job_id, checkpoint_id = checkpoint_ids_of(name)
        try:
            checkpoint = await self._rows.pinned(project_id, job_id, checkpoint_id, by=job)
        except NotFound as error:
            raise _deleted(name, "whose weights the model begins with") from error
        return checkpoint_to_proto(checkpoint, f"projects/{project_id}/jobs/{job_id}")


def _deleted(checkpoint: str, purpose: str) -> UnassignableError:
    """No other may take its place, also where a job of the same name has one of the same number."""
    message = f"{checkpoint}, {purpose}, was deleted: submit the job again with a checkpoint that is there"
    return UnassignableError(message, JobReason.TRAINER_ERROR)


def _unassignable(error: Exception) -> UnassignableError:
    if isinstance(error, SihlaiError):
        message = f"{error.message}: give the project's credentials again, and submit the job again"
        return UnassignableError(message, JobReason.DATASET_ERROR)
    problem = f"{type(error).__name__}: {error}"
    return UnassignableError(f"what the job needs cannot be read from the database: {problem}", JobReason.DATASET_ERROR)
