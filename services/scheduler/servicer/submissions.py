"""What SubmitJob, ResumeJob and EvaluateCheckpoint make a new job of: checked, complete, not yet stored."""

from __future__ import annotations

from dataclasses import dataclass

from sihlai.conversion.v1 import dataset_pb2
from sihlai.scheduler.v1 import job_service_pb2 as messages
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.chassis.auth.principal import current_principal
from services.chassis.errors import InvalidArgument, Violation
from services.scheduler import specification
from services.scheduler.domain.job import Checkpoint, Job, ResumeSource
from services.scheduler.domain.project import DatasetSource
from services.scheduler.domain.view import Submission
from services.scheduler.reachability import Reachability
from services.scheduler.seal import Seal
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.store.jobs import JobStore
from services.scheduler.store.projects import ProjectStore, with_known_credentials
from services.scheduler.wire.checkpoint import checkpoint_name
from services.scheduler.wire.job import prefixed, submission_from_spec
from services.scheduler.wire.names import (
    NAME_SHOWN_MAX,
    checkpoint_ids_of,
    id_violations,
    job_ids_of,
    project_id_of,
    refuse,
    request_id_violations,
)
from services.scheduler.wire.project import (
    SourceBounds,
    display_name_violations,
    sealed_credentials,
    source_from_proto,
    source_violations,
    source_with_credentials,
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A new job, and what is probably not meant, in sentences."""

    submission: Submission
    warnings: tuple[str, ...] = ()


class Submissions:
    """Makes them. Everything raises InvalidArgument with all that is wrong, and what store and conversion refuse."""

    def __init__(
        self,
        jobs: JobStore,
        projects: ProjectStore,
        checkpoints: CheckpointRows,
        reachability: Reachability,
        *,
        seal: Seal,
        bounds: SourceBounds,
    ) -> None:
        self._jobs = jobs
        self._projects = projects
        self._checkpoints = checkpoints
        self._reachability = reachability
        self._seal = seal
        self._bounds = bounds

    async def submitted(self, request: messages.SubmitJobRequest) -> Made:
        """A job of its own."""
        project_id = project_id_of(request.parent, "parent")
        spec = specification.complete(request.spec)
        refuse(
            request_id_violations(request.request_id)
            + id_violations(request.job_id, "job_id")
            + prefixed(specification.violations_in(spec), "spec.")
        )
        project = await self._projects.get(project_id)
        warnings = await self._check_reachable(spec, project.training_dataset, project.validation_dataset)
        initialization = await self._pin_initialization(spec)
        return Made(
            submission=submission_from_spec(
                spec,
                project_id=project_id,
                job_id=request.job_id,
                creator=current_principal().subject,
                initialization=initialization,
            ),
            warnings=warnings,
        )

    async def resumed(self, request: messages.ResumeJobRequest) -> Made:
        """The ended job's specification with the changes, and where it goes on."""
        project_id, job_id = job_ids_of(request.name)
        old, checkpoint = await self._jobs.resumable(project_id, job_id, _checkpoint_id_of(request))
        spec = JobSpec.FromString(old.spec)
        spec.trainer.CopyFrom(specification.merge_trainer(spec.trainer, request.trainer))
        spec.display_name = request.display_name or spec.display_name
        completed = specification.complete(spec)
        refuse(
            request_id_violations(request.request_id)
            + id_violations(request.job_id, "job_id")
            + specification.violations_in(completed)
            + _limit_violations(completed, old, checkpoint)
        )
        return Made(
            submission=submission_from_spec(
                completed,
                project_id=project_id,
                job_id=request.job_id,
                creator=current_principal().subject,
                source=_source_of(old, checkpoint),
            )
        )

    async def evaluating(self, request: messages.EvaluateCheckpointRequest) -> Made:
        """The specification of the checkpoint's job as it is, and what its model is validated on."""
        project_id, job_id, checkpoint_id = checkpoint_ids_of(request.name)
        given = request.dataset if request.HasField("dataset") else None
        refuse(
            request_id_violations(request.request_id)
            + id_violations(request.job_id, "job_id")
            + display_name_violations(request.display_name, "display_name")
            + (source_violations(given, "dataset", self._bounds) if given is not None else [])
        )
        old, checkpoint = await self._jobs.checkpoint(project_id, job_id, checkpoint_id)
        spec = JobSpec.FromString(old.spec)
        spec.display_name = request.display_name or spec.display_name
        own = source_from_proto(given) if given is not None else None
        sealed = sealed_credentials(given, self._seal) if given is not None else None
        on = own or old.validation_dataset or old.training_dataset
        project = await self._projects.get(project_id)
        opened = given if sealed is not None else await self._opened(with_known_credentials(project, on))
        assert opened is not None, "who has credentials was given"
        await self._reachability.check(spec, opened)
        is_split = own is None and old.validation_dataset is None
        return Made(
            submission=submission_from_spec(
                spec,
                project_id=project_id,
                job_id=request.job_id,
                creator=current_principal().subject,
                source=_source_of(old, checkpoint, evaluates=True),
                dataset=own,
                sealed=sealed,
            ),
            warnings=tuple(await self._reachability.warnings(spec, opened, None if is_split else opened)),
        )

    async def _check_reachable(
        self, spec: JobSpec, training: DatasetSource, validation: DatasetSource | None
    ) -> tuple[str, ...]:
        """Refuse what conversion cannot make; what else is probably not meant."""
        first = await self._opened(training)
        second = await self._opened(validation) if validation is not None else None
        await self._reachability.check(spec, first, second)
        return tuple(await self._reachability.warnings(spec, first, second))

    async def _opened(self, source: DatasetSource) -> dataset_pb2.DatasetSource:
        return source_with_credentials(source, await self._projects.sealed_credentials([source]), self._seal)

    async def _pin_initialization(self, spec: JobSpec) -> ResumeSource | None:
        """Write which checkpoint `last`, `best` or `final` is into the specification, and return it. NotFound where
        there is none.
        """
        if spec.model.initialization.WhichOneof("source") != "checkpoint":
            return None
        named = spec.model.initialization.checkpoint
        project_id, job_id, checkpoint_id = checkpoint_ids_of(named.checkpoint)
        checkpoint = await self._checkpoints.get(project_id, job_id, checkpoint_id)
        job_name = f"projects/{project_id}/jobs/{job_id}"
        named.checkpoint = checkpoint_name(job_name, checkpoint.key)
        return ResumeSource(job_name=job_name, checkpoint_name=named.checkpoint, key=checkpoint.key)


def _source_of(job: Job, checkpoint: Checkpoint, *, evaluates: bool = False) -> ResumeSource:
    return ResumeSource(
        job_name=job.name,
        checkpoint_name=checkpoint_name(job.name, checkpoint.key),
        key=checkpoint.key,
        evaluates=evaluates,
    )


def _checkpoint_id_of(request: messages.ResumeJobRequest) -> str:
    """The id of the checkpoint that is meant, which may be given alone or as a full name of the same job."""
    given = request.checkpoint or "last"
    name = given if "/" in given else f"{request.name}/checkpoints/{given}"
    if not name.startswith(f"{request.name}/"):
        description = f"is {given[:NAME_SHOWN_MAX]!r}, but must be a checkpoint of {request.name}"
        raise InvalidArgument([Violation(field="checkpoint", description=description)])
    return checkpoint_ids_of(name, "checkpoint")[2]


def _limit_violations(spec: JobSpec, old: Job, checkpoint: Checkpoint) -> list[Violation]:
    """A job that goes on from a checkpoint must have something left to do."""
    done = checkpoint.key.iteration
    if spec.trainer.iterations_max > done:
        return []
    name = checkpoint_name(old.name, checkpoint.key)
    description = f"is {spec.trainer.iterations_max}, but {name} has {done} iterations already: give a higher number"
    return [Violation(field="trainer.iterations_max", description=description)]
