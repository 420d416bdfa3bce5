"""Jobs ↔ protos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from msgspec.structs import replace
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1 import job_pb2, job_service_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.chassis.errors import Violation
from services.chassis.text import cleaned_text, text_violations
from services.scheduler.backbone import extras_of
from services.scheduler.domain.job import FINAL, SECOND_US, Attempt, JobState, Progress, ResumeSource, StopMode
from services.scheduler.domain.lease import Runner
from services.scheduler.domain.placement import Needs, lacking
from services.scheduler.domain.project import DatasetSource
from services.scheduler.domain.view import JobFilter, JobView, QueueStanding, Submission
from services.scheduler.specification import LABEL_VALUE_CHARACTERS_MAX, LABELS_MAX
from services.scheduler.wire.checkpoint import COUNT_MAX, checkpoint_to_proto
from services.scheduler.wire.names import NAME_SHOWN_MAX, is_uid, parent_of_jobs, refuse
from services.scheduler.wire.project import etag_of, source_to_proto
from services.scheduler.wire.times import (
    duration,
    duration_us,
    known_duration_us,
    time_us,
    time_violations,
    timestamp,
)

REASON_CHARACTERS_MAX = 1_000
PROBLEM_CHARACTERS_MAX = 1_000
PHASE_CHARACTERS_MAX = 100
STATES_SHOWN_MAX = 20
FILTER_UIDS_MAX = 1_000
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
        stopper=job.stopper,
        attempts=[attempt_to_proto(attempt) for attempt in view.attempts],
        progress=progress_to_proto(view.progress if job.state not in FINAL else at_end(view.progress)),
        last_checkpoint=checkpoint_to_proto(last, job.name) if last is not None else None,
        source_job=job.source.job_name if job.source is not None else "",
        source_checkpoint=job.source.checkpoint_name if job.source is not None else "",
        revision=job.revision,
        evaluation=job.evaluates,
    )


def is_deleted(project_uid: str, uid: str) -> bool:
    """Whether a job of this project is one that was deleted: until its files are gone it is in a project of its own."""
    return project_uid == uid


def listed_job_to_proto(view: JobView) -> job_pb2.Job | None:
    """The job as lists have it; None where it was deleted."""
    return None if is_deleted(view.job.project_uid, view.job.uid) else job_to_proto(view)


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
        shown = standing.runners[:LACKING_SHOWN_MAX]
        lacks = "; ".join(f"{each.name} lacks {' and '.join(lacking(needs, each.capabilities))}" for each in shown)
        left = standing.registered - len(shown)
        return f"no registered runner can serve it: {lacks}" + (f" (and {left} more)" if left else "")
    if standing.active_job:
        return f"{standing.active_job} has the project's slot"
    if standing.held:
        return "checkpoints of its last attempt are being looked for"
    if standing.retry_time_us is not None:
        return f"it is tried again at {_at(standing.retry_time_us)}, after a fault that was not its own"
    if standing.ahead:
        return f"{standing.ahead} jobs of the project go first"
    free = [runner for runner in able if runner.takes_jobs and runner.runner_id not in standing.busy]
    if not free:
        unable = [f"{r.name} cannot train: {problem}" for r in able if (problem := _problem(r))]
        busy = ["every runner that can serve it is busy"] if len(unable) < len(able) else []
        return "; ".join([*busy, *unable[:LACKING_SHOWN_MAX]])
    others = [runner for runner in able if runner.takes_jobs and runner.runner_id not in standing.avoided]
    if others and standing.avoid_until_us is not None and standing.avoided.issuperset(each.runner_id for each in free):
        avoided = " and ".join(runner.name for runner in free)
        until = _at(standing.avoid_until_us)
        return (
            f"it keeps away from {avoided}, which failed with it, until {until}; every other that can serve it is busy"
        )
    return "it is about to be given to a runner"


def _at(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // SECOND_US, UTC).isoformat().replace("+00:00", "Z")


def _problem(runner: Runner) -> str:
    """Why a runner that is not busy takes no job, in words; empty where it would."""
    return runner.capabilities.problem or runner.put_aside_reason


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


def at_end(progress: Progress) -> Progress:
    """How far an ended job came: nobody works on it, and nothing is left."""
    return replace(progress, phase="", time_left_us=None, done=0, total=0, problem="")


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
        problem=progress.problem,
    )


def progress_from_proto(proto: job_pb2.Progress) -> Progress:
    """How far a runner says that it is; numbers that nobody counts to are taken for the nearest."""
    return Progress(
        phase=cleaned_text(proto.phase, characters_max=PHASE_CHARACTERS_MAX),
        iteration=counted(proto.iteration),
        iterations_max=counted(proto.iterations_max),
        time_left_us=known_duration_us(proto.time_left) if proto.HasField("time_left") else None,
        done=counted(proto.done),
        total=counted(proto.total),
        problem=cleaned_text(proto.problem, characters_max=PROBLEM_CHARACTERS_MAX, lines=True),
    )


def counted(number: int) -> int:
    """A count as a program gives it, within what every language and database holds."""
    return min(max(number, 0), COUNT_MAX)


def submission_from_spec(
    spec: JobSpec,
    *,
    project_id: str,
    job_id: str,
    creator: str,
    source: ResumeSource | None = None,
    initialization: ResumeSource | None = None,
    dataset: DatasetSource | None = None,
    sealed: bytes | None = None,
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
            extras=extras_of(spec.model.backbone.name),
        ),
        iterations_max=source.key.iteration if source is not None and source.evaluates else spec.trainer.iterations_max,
        source=source,
        initialization=initialization,
        dataset=dataset,
        sealed=sealed,
    )


def task_word(task: task_pb2.Task.ValueType) -> str:
    """The task's name in the proto's enum, without its prefix; its number where this version has no name for it."""
    known = task_pb2.Task.DESCRIPTOR.values_by_number.get(task)
    return known.name.removeprefix("TASK_") if known is not None else str(task)


def job_filter_from_proto(parent: str, proto: job_service_pb2.JobFilter) -> JobFilter:
    """Which jobs are meant."""
    names = {number: job_pb2.JobState.Name(number).removeprefix("JOB_STATE_") for number in job_pb2.JobState.values()}
    wrong = [state for state in proto.states if names.get(state, "UNSPECIFIED") == "UNSPECIFIED"]
    project_id = parent_of_jobs(parent)
    refuse(
        [
            *_state_violations(wrong),
            *_label_violations(proto.labels),
            *_uid_violations(proto.uids),
            *time_violations(proto.created_after, "filter.created_after"),
            *time_violations(proto.created_before, "filter.created_before"),
        ]
    )
    return JobFilter(
        project_id=project_id,
        states=frozenset(JobState(names[state]) for state in proto.states),
        labels=dict(proto.labels),
        created_after_us=time_us(proto.created_after) if proto.HasField("created_after") else None,
        created_before_us=time_us(proto.created_before) if proto.HasField("created_before") else None,
        uids=frozenset(proto.uids),
    )


def _state_violations(wrong: Sequence[int]) -> list[Violation]:
    shown = ", ".join(map(str, wrong[:STATES_SHOWN_MAX]))
    description = f"holds {shown}, which is no state of a job"
    return [Violation(field="filter.states", description=description)] if wrong else []


def _uid_violations(uids: Sequence[str]) -> list[Violation]:
    if len(uids) > FILTER_UIDS_MAX:
        description = f"holds {len(uids)} uids, but may hold {FILTER_UIDS_MAX}"
        return [Violation(field="filter.uids", description=description)]
    wrong = next((uid for uid in uids if not is_uid(uid)), None)
    if wrong is None:
        return []
    description = f"holds {wrong[:NAME_SHOWN_MAX]!r}, which is no uid of a job: take them from its field uid"
    return [Violation(field="filter.uids", description=description)]


def _label_violations(labels: Mapping[str, str]) -> list[Violation]:
    if len(labels) > LABELS_MAX:
        description = f"has {len(labels)} entries, but a job has at most {LABELS_MAX}"
        return [Violation(field="filter.labels", description=description)]
    found = []
    for key, value in sorted(labels.items()):
        found += text_violations(key, "filter.labels", characters_max=LABEL_VALUE_CHARACTERS_MAX)
        found += text_violations(value, "filter.labels", characters_max=LABEL_VALUE_CHARACTERS_MAX)
    return found


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
    found += text_violations(request.reason, "reason", characters_max=REASON_CHARACTERS_MAX, lines=True)
    if request.HasField("grace") and not 0 < seconds_of(request.grace) <= grace_seconds_max:
        description = f"is {seconds_of(request.grace):g} s, but must be above 0 and at most {grace_seconds_max:g} s"
        found.append(Violation(field="grace", description=description))
    return found


def seconds_of(proto: Duration) -> float:
    """A Duration as seconds."""
    return duration_us(proto) / 1_000_000


def prefixed(violations: Sequence[Violation], prefix: str) -> list[Violation]:
    """Violations of a part of the request, with the part's own path before theirs."""
    return [
        Violation(field=f"{prefix}{v.field}".rstrip("."), description=v.description, reason=v.reason)
        for v in violations
    ]
