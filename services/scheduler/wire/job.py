"""Jobs ↔ protos."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_pb2, job_service_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.chassis.errors import Violation
from services.scheduler.job import Attempt, JobState, Progress, ResumeSource, StopMode
from services.scheduler.placement import Needs, lacking
from services.scheduler.store.jobs import JobFilter, JobView, Submission
from services.scheduler.store.queue import QueueStanding
from services.scheduler.wire.checkpoint import checkpoint_to_proto
from services.scheduler.wire.names import parent_of_jobs, refuse
from services.scheduler.wire.project import etag_of, source_to_proto
from services.scheduler.wire.times import duration, duration_us, time_us, timestamp

REASON_CHARACTERS_MAX = 1_000
LACKING_SHOWN_MAX = 3
"""Runners whose lack is told in `why_not_running`."""


def job_to_proto(view: JobView) -> job_pb2.Job:
    """The job as users see it."""
    job = view.job
    validation = job.validation_dataset
    last = view.last_checkpoint
    return job_pb2.Job(
        name=job.name,
        uid=job.uid,
        etag=etag_of(job.revision),
        creator=job.creator,
        spec=JobSpec.FromString(job.spec),
        training_dataset=source_to_proto(job.training_dataset),
        validation_dataset=source_to_proto(validation) if validation is not None else None,
        dataset_fingerprint=job.dataset_fingerprint,
        create_time=timestamp(job.create_time_us),
        start_time=timestamp(job.start_time_us),
        end_time=timestamp(job.end_time_us),
        state=job_pb2.JobState.Value(f"JOB_STATE_{job.state}"),
        reason=job_pb2.JobReason.Value(f"JOB_REASON_{job.reason}"),
        reason_message=job.reason_message,
        stop_mode=job_pb2.StopMode.ValueType(job.stop),
        attempts=[attempt_to_proto(attempt) for attempt in view.attempts],
        progress=progress_to_proto(job.progress),
        last_checkpoint=checkpoint_to_proto(last, job.name) if last is not None else None,
        source_job=job.source.job_name if job.source is not None else "",
        source_checkpoint=job.source.checkpoint_name if job.source is not None else "",
        revision=job.revision,
    )


def queued_job_to_proto(view: JobView, standing: QueueStanding | None) -> job_pb2.Job:
    """The job with its place in the queue, as GetJob alone tells it."""
    proto = job_to_proto(view)
    if standing is not None:
        proto.queue_position = standing.ahead
        proto.why_not_running = why_not_running(view.job.needs, standing)
    return proto


def why_not_running(needs: Needs, standing: QueueStanding) -> str:
    """What a queued job waits for, in words, the nearest reason first."""
    able = [runner for runner in standing.runners if not lacking(needs, runner.capabilities)]
    if not standing.runners:
        return "no runner is registered"
    if not able:
        lacks = [f"{r.name} lacks {' and '.join(lacking(needs, r.capabilities))}" for r in standing.runners]
        more = f" (and {len(lacks) - LACKING_SHOWN_MAX} more)" if len(lacks) > LACKING_SHOWN_MAX else ""
        return "no registered runner can serve it: " + "; ".join(lacks[:LACKING_SHOWN_MAX]) + more
    if standing.active_job:
        return f"{standing.active_job} has the project's slot"
    if standing.held:
        return "checkpoints of its lost attempt are being looked for"
    if standing.ahead:
        return f"{standing.ahead} jobs of the project go first"
    if all(runner.runner_id in standing.busy or not runner.takes_jobs for runner in able):
        return "every runner that can serve it is busy"
    return "it is about to be given to a runner"


def attempt_to_proto(attempt: Attempt) -> job_pb2.Attempt:
    """The attempt as users see it."""
    outcome = attempt.outcome.value if attempt.outcome is not None else "UNSPECIFIED"
    return job_pb2.Attempt(
        number=attempt.number,
        epoch=attempt.epoch,
        runner=f"runners/{attempt.runner_id}",
        start_time=timestamp(attempt.start_time_us),
        run_time=timestamp(attempt.run_time_us),
        end_time=timestamp(attempt.end_time_us),
        outcome=job_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{outcome}"),
        reason=job_pb2.JobReason.Value(f"JOB_REASON_{attempt.reason}"),
        message=attempt.message,
        from_step=attempt.from_step,
        software_version=attempt.software_version,
    )


def progress_to_proto(progress: Progress) -> job_pb2.Progress:
    """How far a job is."""
    left = progress.time_left_us
    return job_pb2.Progress(
        phase=progress.phase,
        iteration=progress.iteration,
        iterations_max=progress.iterations_max,
        time_left=duration(left / 1_000_000) if left is not None else None,
        done=progress.done,
        total=progress.total,
    )


def progress_from_proto(proto: job_pb2.Progress) -> Progress:
    """How far a runner says that it is."""
    return Progress(
        phase=proto.phase,
        iteration=proto.iteration,
        iterations_max=proto.iterations_max,
        time_left_us=duration_us(proto.time_left) if proto.HasField("time_left") else None,
        done=proto.done,
        total=proto.total,
    )


def submission_from_spec(
    spec: JobSpec, *, project_id: str, job_id: str, creator: str, source: ResumeSource | None = None
) -> Submission:
    """What the store keeps of a completed specification beside its bytes."""
    return Submission(
        project_id=project_id,
        job_id=job_id,
        creator=creator,
        spec=spec.SerializeToString(deterministic=True),
        labels=dict(spec.labels),
        priority=spec.priority,
        needs=Needs(
            gpus=spec.resources.gpus,
            gpu_memory_bytes=spec.resources.gpu_memory_bytes,
            tasks=frozenset(task_word(head.task) for head in spec.model.heads),
        ),
        iterations_max=spec.trainer.iterations_max,
        source=source,
    )


def task_word(task: task_pb2.Task.ValueType) -> str:
    """The task's name in the proto's enum, without its prefix; its number where this version has no name for it."""
    known = task_pb2.Task.DESCRIPTOR.values_by_number.get(task)
    return known.name.removeprefix("TASK_") if known is not None else str(task)


def job_filter_from_proto(parent: str, proto: job_service_pb2.JobFilter) -> JobFilter:
    """Which jobs are meant."""
    names = {number: job_pb2.JobState.Name(number).removeprefix("JOB_STATE_") for number in job_pb2.JobState.values()}
    wrong = [state for state in proto.states if names.get(state, "UNSPECIFIED") == "UNSPECIFIED"]
    description = f"holds {', '.join(map(str, wrong))}, which is no state of a job"
    refuse([Violation(field="filter.states", description=description)] if wrong else [])
    return JobFilter(
        project_id=parent_of_jobs(parent),
        states=frozenset(JobState(names[state]) for state in proto.states),
        labels=dict(proto.labels),
        created_after_us=time_us(proto.created_after) if proto.HasField("created_after") else None,
        created_before_us=time_us(proto.created_before) if proto.HasField("created_before") else None,
    )


def stop_mode_from_proto(request: job_service_pb2.StopJobRequest) -> StopMode:
    """How to stop; CHECKPOINT where nothing is said."""
    if request.mode == job_pb2.STOP_MODE_IMMEDIATE:
        return StopMode.IMMEDIATE
    return StopMode.CHECKPOINT


def stop_violations(request: job_service_pb2.StopJobRequest, grace_seconds_max: float) -> list[Violation]:
    """What is wrong with a request to stop."""
    found = []
    if request.mode not in job_pb2.StopMode.values():
        found.append(Violation(field="mode", description=f"is {request.mode}, which is no way to stop"))
    if len(request.reason) > REASON_CHARACTERS_MAX:
        description = f"has {len(request.reason)} characters, but at most {REASON_CHARACTERS_MAX} may be"
        found.append(Violation(field="reason", description=description))
    if request.HasField("grace") and not 0 < seconds_of(request.grace) <= grace_seconds_max:
        description = f"is {seconds_of(request.grace):g} s, but must be above 0 and at most {grace_seconds_max:g} s"
        found.append(Violation(field="grace", description=description))
    return found


def seconds_of(proto: Duration) -> float:
    """A Duration as seconds."""
    return duration_us(proto) / 1_000_000


def prefixed(violations: Sequence[Violation], prefix: str) -> list[Violation]:
    """Violations of a part of the request, with the part's own path before theirs."""
    return [Violation(field=f"{prefix}{v.field}", description=v.description, reason=v.reason) for v in violations]
