"""What runners and the scheduler say to each other ↔ protos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from sihlai.conversion.v1 import task_pb2
from sihlai.runner.v1 import runner_admin_service_pb2, runner_service_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import Violation
from services.chassis.text import cleaned_text, text_violations
from services.scheduler.domain.job import SECOND_US, AttemptOutcome, AttemptPhase, Checkpoint, JobReason, StopMode
from services.scheduler.domain.lease import (
    ActiveReport,
    AttemptKey,
    BeIdle,
    ClosedReport,
    Desired,
    Report,
    RunAttempt,
    SpoolReport,
)
from services.scheduler.domain.placement import Capabilities, Gpu
from services.scheduler.domain.view import RunnerView
from services.scheduler.wire.checkpoint import COUNT_MAX, ITERATION_MAX, checkpoint_from_proto
from services.scheduler.wire.job import PROBLEM_CHARACTERS_MAX, counted, progress_from_proto, task_word
from services.scheduler.wire.names import SESSION_CHARACTERS_MAX, is_uid, refuse, runner_id_of
from services.scheduler.wire.times import duration, known_duration_us, timestamp

CLOSED_MAX = 100
SPOOLS_MAX = 100
CHECKPOINTS_MAX = 100
"""Of each kind in one call; a runner sends the rest when these are acknowledged."""
MESSAGE_CHARACTERS_MAX = 16_000
WORD_CHARACTERS_MAX = 200
GPUS_MAX = 64
TASKS_MAX = 100
EXTRAS_MAX = 100

_NamesAttempt: TypeAlias = (
    runner_service_pb2.ActiveAttempt | runner_service_pb2.ClosedAttempt | runner_service_pb2.UndrainedSpool
)

_PHASES = {
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
        wait_seconds=(known_duration_us(request.wait_max) or 0) / SECOND_US,
    )


def capabilities_from_proto(proto: runner_service_pb2.Capabilities) -> Capabilities:
    """What a runner has and can do, as far as there can be such a machine."""
    return Capabilities(
        gpus=tuple(
            Gpu(model=_word(gpu.model), memory_bytes=counted(gpu.memory_bytes)) for gpu in proto.gpus[:GPUS_MAX]
        ),
        cpus=counted(proto.cpus),
        memory_bytes=counted(proto.memory_bytes),
        tasks=frozenset(task_word(task) for task in proto.tasks[:TASKS_MAX]),
        extras=frozenset(_word(extra) for extra in proto.extras[:EXTRAS_MAX]),
        software_version=_word(proto.software_version),
        host=_word(proto.host),
        problem=cleaned_text(proto.problem, characters_max=PROBLEM_CHARACTERS_MAX, lines=True),
    )


def capabilities_to_proto(capabilities: Capabilities) -> runner_service_pb2.Capabilities:
    """What a runner has and can do."""
    return runner_service_pb2.Capabilities(
        gpus=[runner_service_pb2.Gpu(model=gpu.model, memory_bytes=gpu.memory_bytes) for gpu in capabilities.gpus],
        cpus=capabilities.cpus,
        memory_bytes=capabilities.memory_bytes,
        tasks=sorted(_task_number(word) for word in capabilities.tasks),
        extras=sorted(capabilities.extras),
        software_version=capabilities.software_version,
        host=capabilities.host,
        problem=capabilities.problem,
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
        draining=runner.drained,
        put_aside_until_time=timestamp(runner.put_aside_until_us),
        put_aside_reason=runner.put_aside_reason,
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


def _word(text: str) -> str:
    return cleaned_text(text, characters_max=WORD_CHARACTERS_MAX)


def _report_violations(request: runner_service_pb2.SynchronizeRequest) -> list[Violation]:
    found = text_violations(request.session, "session", characters_max=SESSION_CHARACTERS_MAX)
    if not request.session:
        found.append(Violation(field="session", description="is empty: make a UUID at each start"))
    if request.sequence < 1:
        found.append(Violation(field="sequence", description=f"is {request.sequence}, but must be at least 1"))
    if request.WhichOneof("state") is None:
        found.append(Violation(field="state", description="is missing: say idle or active"))
    if request.WhichOneof("state") == "active":
        found += _key_violations(request.active, "active")
    for index, spool in enumerate(request.spools[:SPOOLS_MAX]):
        found += _key_violations(spool, f"spools[{index}]")
    for index, closed in enumerate(request.closed[:CLOSED_MAX]):
        # Who declined an attempt that it was never given knows no number of it.
        found += _key_violations(closed, f"closed[{index}]", number_min=0)
        if closed.outcome not in _OUTCOMES:
            description = "must be COMPLETED, STOPPED, FAILED or HANDED_BACK"
            found.append(Violation(field=f"closed[{index}].outcome", description=description))
    return found


def _key_violations(named: _NamesAttempt, field: str, *, number_min: int = 1) -> list[Violation]:
    """What is wrong with the attempt that a part of the report is about. One that is unknown is no mistake."""
    found = []
    if not is_uid(named.job_uid):
        found.append(Violation(field=f"{field}.job_uid", description="is no uid of a job: send back what was assigned"))
    for name, number, least in (("attempt", named.attempt, number_min), ("epoch", named.epoch, 1)):
        if not least <= number <= COUNT_MAX:
            found.append(Violation(field=f"{field}.{name}", description=f"is {number}, but must be at least {least}"))
    return found


def _checkpoints_from_proto(protos: Sequence[job_pb2.Checkpoint], job_uid: str) -> tuple[Checkpoint, ...]:
    """Those that can be some; the others are told in the log, and never sent back."""
    found = (checkpoint_from_proto(proto, job_uid) for proto in protos[:CHECKPOINTS_MAX])
    return tuple(checkpoint for checkpoint in found if checkpoint is not None)


def _active_from_proto(proto: runner_service_pb2.ActiveAttempt) -> ActiveReport:
    return ActiveReport(
        key=AttemptKey(job_uid=proto.job_uid, epoch=proto.epoch),
        number=proto.attempt,
        phase=_PHASES.get(proto.phase),
        progress=progress_from_proto(proto.progress),
        checkpoints=_checkpoints_from_proto(proto.checkpoints, proto.job_uid),
        dataset_fingerprint=_word(proto.dataset_fingerprint),
        stopping=StopMode(proto.stopping) if proto.stopping in job_pb2.StopMode.values() else StopMode.NONE,
    )


def _closed_from_proto(proto: runner_service_pb2.ClosedAttempt) -> ClosedReport:
    reason = proto.reason if proto.reason in job_pb2.JobReason.values() else job_pb2.JOB_REASON_INTERNAL
    return ClosedReport(
        key=AttemptKey(job_uid=proto.job_uid, epoch=proto.epoch),
        number=proto.attempt,
        outcome=_OUTCOMES[proto.outcome],
        reason=JobReason(job_pb2.JobReason.Name(reason).removeprefix("JOB_REASON_")),
        message=cleaned_text(proto.message, characters_max=MESSAGE_CHARACTERS_MAX, lines=True),
        iteration=min(counted(proto.iteration), ITERATION_MAX),
        checkpoints=_checkpoints_from_proto(proto.checkpoints, proto.job_uid),
    )


def _task_number(word: str) -> task_pb2.Task.ValueType:
    known = task_pb2.Task.DESCRIPTOR.values_by_name.get(f"TASK_{word}")
    return task_pb2.Task.ValueType(known.number if known is not None else int(word))
