"""What runners and the scheduler say to each other ↔ protos."""

from __future__ import annotations

from sihlai.conversion.v1 import task_pb2
from sihlai.runner.v1 import runner_admin_service_pb2, runner_service_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import Violation
from services.scheduler.job import AttemptOutcome, AttemptPhase, JobReason, StopMode
from services.scheduler.lease import (
    ActiveReport,
    AttemptKey,
    BeIdle,
    ClosedReport,
    Desired,
    Report,
    RunAttempt,
    SpoolReport,
)
from services.scheduler.placement import Capabilities, Gpu
from services.scheduler.store.runners import RunnerView
from services.scheduler.wire.checkpoint import checkpoint_from_proto
from services.scheduler.wire.job import progress_from_proto, seconds_of, task_word
from services.scheduler.wire.names import SESSION_CHARACTERS_MAX, refuse, runner_id_of
from services.scheduler.wire.times import duration, timestamp

CLOSED_MAX = 100
SPOOLS_MAX = 100
CHECKPOINTS_MAX = 100
"""Of each kind in one call; a runner sends the rest when these are acknowledged."""
MESSAGE_CHARACTERS_MAX = 16_000

_PHASES = {
    runner_service_pb2.ATTEMPT_PHASE_UNSPECIFIED: AttemptPhase.ASSIGNED,
    runner_service_pb2.ATTEMPT_PHASE_DOWNLOADING: AttemptPhase.DOWNLOADING,
    runner_service_pb2.ATTEMPT_PHASE_PREPARING: AttemptPhase.PREPARING,
    runner_service_pb2.ATTEMPT_PHASE_TRAINING: AttemptPhase.TRAINING,
    runner_service_pb2.ATTEMPT_PHASE_CHECKPOINTING: AttemptPhase.CHECKPOINTING,
    runner_service_pb2.ATTEMPT_PHASE_UPLOADING: AttemptPhase.UPLOADING,
}
_OUTCOMES = {
    job_pb2.ATTEMPT_OUTCOME_COMPLETED: AttemptOutcome.COMPLETED,
    job_pb2.ATTEMPT_OUTCOME_STOPPED: AttemptOutcome.STOPPED,
    job_pb2.ATTEMPT_OUTCOME_FAILED: AttemptOutcome.FAILED,
    job_pb2.ATTEMPT_OUTCOME_HANDED_BACK: AttemptOutcome.HANDED_BACK,
}


def report_from_proto(request: runner_service_pb2.SynchronizeRequest) -> Report:
    """What a runner says. InvalidArgument with all that is wrong."""
    runner_id = runner_id_of(request.runner, "runner")
    refuse(_report_violations(request))
    return Report(
        runner_id=runner_id,
        session=request.session,
        sequence=request.sequence,
        capabilities=capabilities_from_proto(request.capabilities),
        active=_active_from_proto(request.active) if request.WhichOneof("state") == "active" else None,
        closed=tuple(_closed_from_proto(closed) for closed in request.closed[:CLOSED_MAX]),
        spools=tuple(
            SpoolReport(key=AttemptKey(job_uid=spool.job_uid, epoch=spool.epoch), number=spool.attempt)
            for spool in request.spools[:SPOOLS_MAX]
        ),
        draining=request.draining,
        wait_seconds=max(0.0, seconds_of(request.wait_max)),
    )


def capabilities_from_proto(proto: runner_service_pb2.Capabilities) -> Capabilities:
    """What a runner has and can do."""
    return Capabilities(
        gpus=tuple(Gpu(model=gpu.model, memory_bytes=gpu.memory_bytes) for gpu in proto.gpus),
        cpus=proto.cpus,
        memory_bytes=proto.memory_bytes,
        tasks=frozenset(task_word(task) for task in proto.tasks),
        software_version=proto.software_version,
        host=proto.host,
    )


def capabilities_to_proto(capabilities: Capabilities) -> runner_service_pb2.Capabilities:
    """What a runner has and can do."""
    return runner_service_pb2.Capabilities(
        gpus=[runner_service_pb2.Gpu(model=gpu.model, memory_bytes=gpu.memory_bytes) for gpu in capabilities.gpus],
        cpus=capabilities.cpus,
        memory_bytes=capabilities.memory_bytes,
        tasks=sorted(_task_number(word) for word in capabilities.tasks),
        software_version=capabilities.software_version,
        host=capabilities.host,
    )


def runner_to_proto(view: RunnerView) -> runner_admin_service_pb2.Runner:
    """The runner as those see it who run it."""
    runner = view.runner
    state = runner_admin_service_pb2.RUNNER_STATE_IDLE
    if view.job_name:
        state = runner_admin_service_pb2.RUNNER_STATE_BUSY
    if runner.lost:
        state = runner_admin_service_pb2.RUNNER_STATE_LOST
    return runner_admin_service_pb2.Runner(
        name=runner.name,
        capabilities=capabilities_to_proto(runner.capabilities),
        state=state,
        job=view.job_name,
        heartbeat_time=timestamp(runner.heartbeat_time_us),
        draining=not runner.takes_jobs,
    )


def set_desired(response: runner_service_pb2.SynchronizeResponse, desired: Desired) -> None:
    """Write what the runner should do; an assignment is added by who has its parts."""
    if isinstance(desired, BeIdle):
        response.idle.SetInParent()
    elif isinstance(desired, RunAttempt):
        response.run.attempt.CopyFrom(key_to_proto(desired.key))
    else:
        stop = runner_service_pb2.DesiredStop(
            attempt=key_to_proto(desired.key),
            mode=job_pb2.StopMode.ValueType(desired.mode),
            grace=duration(desired.grace_seconds),
            hand_back=desired.hand_back,
        )
        response.stop.CopyFrom(stop)


def key_to_proto(key: AttemptKey) -> runner_service_pb2.AttemptKey:
    """Names an attempt."""
    return runner_service_pb2.AttemptKey(job_uid=key.job_uid, epoch=key.epoch)


def _report_violations(request: runner_service_pb2.SynchronizeRequest) -> list[Violation]:
    found = []
    if not 0 < len(request.session) <= SESSION_CHARACTERS_MAX:
        description = f"has {len(request.session)} characters, but must have 1 to {SESSION_CHARACTERS_MAX}"
        found.append(Violation(field="session", description=description))
    if request.sequence < 1:
        found.append(Violation(field="sequence", description=f"is {request.sequence}, but must be at least 1"))
    if request.WhichOneof("state") is None:
        found.append(Violation(field="state", description="is missing: say idle or active"))
    for index, closed in enumerate(request.closed[:CLOSED_MAX]):
        if closed.outcome not in _OUTCOMES:
            description = "must be COMPLETED, STOPPED, FAILED or HANDED_BACK"
            found.append(Violation(field=f"closed[{index}].outcome", description=description))
    return found


def _active_from_proto(proto: runner_service_pb2.ActiveAttempt) -> ActiveReport:
    return ActiveReport(
        key=AttemptKey(job_uid=proto.job_uid, epoch=proto.epoch),
        number=proto.attempt,
        phase=_PHASES.get(proto.phase, AttemptPhase.ASSIGNED),
        progress=progress_from_proto(proto.progress),
        checkpoints=tuple(checkpoint_from_proto(each, proto.job_uid) for each in proto.checkpoints[:CHECKPOINTS_MAX]),
        dataset_fingerprint=proto.dataset_fingerprint,
        stopping=StopMode(proto.stopping) if proto.stopping in job_pb2.StopMode.values() else StopMode.NONE,
    )


def _closed_from_proto(proto: runner_service_pb2.ClosedAttempt) -> ClosedReport:
    reason = proto.reason if proto.reason in job_pb2.JobReason.values() else job_pb2.JOB_REASON_INTERNAL
    return ClosedReport(
        key=AttemptKey(job_uid=proto.job_uid, epoch=proto.epoch),
        number=proto.attempt,
        outcome=_OUTCOMES[proto.outcome],
        reason=JobReason(job_pb2.JobReason.Name(reason).removeprefix("JOB_REASON_")),
        message=proto.message[:MESSAGE_CHARACTERS_MAX],
        iteration=proto.iteration,
        checkpoints=tuple(checkpoint_from_proto(each, proto.job_uid) for each in proto.checkpoints[:CHECKPOINTS_MAX]),
    )


def _task_number(word: str) -> task_pb2.Task.ValueType:
    known = task_pb2.Task.DESCRIPTOR.values_by_name.get(f"TASK_{word}")
    return task_pb2.Task.ValueType(known.number if known is not None else int(word))
