"""A job and its attempts: states, and what may happen in each.

What is wanted (`Job.stop`) stands beside what is observed (`Job.state`), so a stop is never lost in a race with a claim
or with a lost lease. Values and our errors only: no clock, no database, no proto. Times are whole
microseconds since 1970, UTC. Every function returns new values.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from services.chassis.errors import FailedPrecondition, Reason
from services.scheduler.domain.placement import Needs
from services.scheduler.domain.project import DatasetSource

SECOND_US = 1_000_000


class JobState(enum.StrEnum):
    """Where a job is."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


FINAL = frozenset({JobState.COMPLETED, JobState.STOPPED, JobState.FAILED})
ACTIVE = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING})
"""The states in which a job has an active attempt, and only they."""


class JobReason(enum.StrEnum):
    """Why a job, or an attempt, is in its state."""

    UNSPECIFIED = "UNSPECIFIED"
    USER_STOP = "USER_STOP"
    LIMIT_REACHED = "LIMIT_REACHED"
    RUNNER_LOST = "RUNNER_LOST"
    DATASET_ERROR = "DATASET_ERROR"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TRAINER_ERROR = "TRAINER_ERROR"
    START_DEADLINE = "START_DEADLINE"
    INTERNAL = "INTERNAL"
    CHECKPOINT_ERROR = "CHECKPOINT_ERROR"
    RUNNER_FAULT = "RUNNER_FAULT"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    STALLED = "STALLED"


class StopMode(enum.IntEnum):
    """What is wanted: nothing but to run, or a stop. A higher one is harder, and a job's only rises."""

    NONE = 0
    CHECKPOINT = 1
    IMMEDIATE = 2


class AttemptOutcome(enum.StrEnum):
    """How an attempt ended."""

    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    LOST = "LOST"
    HANDED_BACK = "HANDED_BACK"


class AttemptPhase(enum.StrEnum):
    """What a runner does with its attempt. From TRAINING on the trainer has taken its first step."""

    ASSIGNED = "ASSIGNED"
    DOWNLOADING = "DOWNLOADING"
    PREPARING = "PREPARING"
    TRAINING = "TRAINING"
    CHECKPOINTING = "CHECKPOINTING"
    UPLOADING = "UPLOADING"


class Event(enum.Enum):
    """What can happen to a job."""

    CLAIMED = "claimed"
    STEPPED = "stepped"
    STOP_ASKED = "stop asked"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    RELEASED = "released"
    REATTACHED = "taken up again"


TRANSITIONS: Mapping[JobState, Mapping[Event, JobState]] = {
    # Entered by a submit, and by an attempt that ended in a way that lets its job be tried again. Left by a claim, by
    # the runner of a lost attempt that is back with it, or by a stop; nobody holds it, so a stop ends it at once. If
    # everything dies here it is still queued.
    JobState.QUEUED: {
        Event.CLAIMED: JobState.STARTING,
        Event.REATTACHED: JobState.STARTING,
        Event.STOP_ASKED: JobState.STOPPED,
    },
    # Entered by a claim: attempt and lease are written in the same transaction. Left by the first step, a stop, the end
    # of the attempt, or its loss. If everything dies here the lease runs out, and the job is queued again or fails.
    JobState.STARTING: {
        Event.STEPPED: JobState.RUNNING,
        Event.STOP_ASKED: JobState.STOPPING,
        Event.COMPLETED: JobState.COMPLETED,
        Event.FAILED: JobState.FAILED,
        Event.RELEASED: JobState.QUEUED,
    },
    # Entered by the runner's report of its first step. Left as STARTING is. If everything dies here the next attempt
    # goes on from the last checkpoint.
    JobState.RUNNING: {
        Event.STOP_ASKED: JobState.STOPPING,
        Event.COMPLETED: JobState.COMPLETED,
        Event.FAILED: JobState.FAILED,
        Event.RELEASED: JobState.QUEUED,
    },
    # Entered by a stop while an attempt is active. Left when the attempt ends, however it ends: a limit that was
    # reached before the stop arrived completes the job, an error fails it, all else (loss, hand-back, the end of the
    # grace period) means stopped. A harder stop stays in it. If everything dies here the stop is kept, and the job ends
    # stopped.
    JobState.STOPPING: {
        Event.STOP_ASKED: JobState.STOPPING,
        Event.COMPLETED: JobState.COMPLETED,
        Event.STOPPED: JobState.STOPPED,
        Event.FAILED: JobState.FAILED,
    },
    # The three ends. Entered when the attempt closes (or, for STOPPED, by a stop in the queue); never left.
    JobState.COMPLETED: {},
    JobState.STOPPED: {},
    JobState.FAILED: {},
}


class Progress(Struct, frozen=True, kw_only=True):
    """How far an attempt is. Mirrors the proto's message; 0 and None while unknown."""

    phase: str = ""
    iteration: int = 0
    iterations_max: int = 0
    time_left_us: int | None = None
    done: int = 0
    total: int = 0
    problem: str = ""


class CheckpointKey(Struct, frozen=True, kw_only=True):
    """Which checkpoint of which job. Newer ones have a greater (epoch, iteration)."""

    job_uid: str
    epoch: int
    iteration: int


class CheckpointFile(Struct, frozen=True, kw_only=True):
    """One file of a checkpoint; sha256 in hexadecimal."""

    name: str
    size_bytes: int
    sha256: str


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint as it is recorded. `cause` is a name of the proto's enum without its prefix."""

    key: CheckpointKey
    uri: str
    create_time_us: int
    cause: str
    files: tuple[CheckpointFile, ...]
    selection_value: float | None = None
    best: bool = False


class ResumeSource(Struct, frozen=True, kw_only=True):
    """What a resumed job goes on from: names for people, the key for the store. Or, where it `evaluates`, validates."""

    job_name: str
    checkpoint_name: str
    key: CheckpointKey
    evaluates: bool = False


class Attempt(Struct, frozen=True, kw_only=True):
    """One try of a job on one runner. Active until it has an outcome.

    `resume` is the checkpoint that it began at, None for a fresh start. `acknowledged`: the runner said that it holds
    it. `progress_time_us` moves with phase and progress; the deadlines of starting and uploading count from it.
    `progress` changes all the time, and has no part in its job's revisions.
    """

    job_uid: str
    number: int
    epoch: int
    runner_id: str
    session: str
    software_version: str
    from_step: int
    resume: CheckpointKey | None
    start_time_us: int
    lease_expire_time_us: int
    progress_time_us: int
    phase: AttemptPhase = AttemptPhase.ASSIGNED
    acknowledged: bool = False
    progress: Progress = Progress()
    run_time_us: int | None = None
    end_time_us: int | None = None
    outcome: AttemptOutcome | None = None
    reason: JobReason = JobReason.UNSPECIFIED
    message: str = ""

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.outcome is None


class Job(Struct, frozen=True, kw_only=True):
    """One training of a model. `sequence` is the order of submission; `spec` is the completed JobSpec, as bytes.

    `held`: queued, and not to be claimed before its lost attempt's checkpoints have been looked for.
    `retry_time_us`: queued, and not to be claimed before then, after a fault that was not the user's.
    `avoid_until_us`: until then it keeps away from the runners of `needs.avoided`.
    `overtaken`: how often a job behind it went first because no free runner could serve this one.
    `faults`, `hand_backs`: how many of each in a row, without a new checkpoint between them.
    `progress`: how far it was when its last attempt began or ended; in between its attempt knows.
    """

    uid: str
    project_uid: str
    project_id: str
    job_id: str
    sequence: int
    creator: str
    spec: bytes
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int
    needs: Needs
    iterations_max: int
    training_dataset: DatasetSource
    validation_dataset: DatasetSource | None
    dataset_fingerprint: str = ""
    create_time_us: int
    start_time_us: int | None = None
    end_time_us: int | None = None
    state: JobState = JobState.QUEUED
    reason: JobReason = JobReason.UNSPECIFIED
    reason_message: str = ""
    stop: StopMode = StopMode.NONE
    stop_grace_seconds: float = 0.0
    stop_deadline_us: int | None = None
    stopper: str = ""
    epoch: int = 0
    attempts: int = 0
    lost_attempts: int = 0
    faults: int = 0
    hand_backs: int = 0
    held: bool = False
    retry_time_us: int | None = None
    avoid_until_us: int | None = None
    overtaken: int = 0
    progress: Progress = Progress()
    last_checkpoint: CheckpointKey | None = None
    source: ResumeSource | None = None
    revision: int = 0

    @property
    def name(self) -> str:
        """The resource name."""
        return f"projects/{self.project_id}/jobs/{self.job_id}"

    @property
    def evaluates(self) -> bool:
        """Whether it validates a checkpoint and trains nothing."""
        return self.source is not None and self.source.evaluates

    @property
    def ready(self) -> bool:
        """Whether it may be claimed."""
        return self.state is JobState.QUEUED and not self.held and self.retry_time_us is None


def moved(job: Job, event: Event) -> Job:
    """The job in the state that `event` leads to. FailedPrecondition (JOB_STATE) where the table has no such way."""
    state = TRANSITIONS[job.state].get(event)
    if state is None:
        wanted = ", ".join(sorted(state for state, ways in TRANSITIONS.items() if event in ways))
        raise FailedPrecondition(
            Reason.JOB_STATE,
            f"{job.name} is {job.state}, but must be one of {wanted} to be {event.value}",
            {"job": job.name, "state": job.state.value, "wanted": wanted},
        )
    return replace(job, state=state)


def claim(
    job: Job, *, runner_id: str, session: str, software_version: str, now_us: int, lease_seconds: float
) -> tuple[Job, Attempt]:
    """The job, starting, and its new attempt, which goes on from the newest checkpoint there is.

    An evaluation begins anew each time, and logs at the iteration of what it evaluates.
    """
    resume = job.source.key if job.source else None
    if not job.evaluates:
        resume = job.last_checkpoint or resume
    claimed = replace(
        moved(job, Event.CLAIMED),
        epoch=job.epoch + 1,
        attempts=job.attempts + 1,
        start_time_us=job.start_time_us if job.start_time_us is not None else now_us,
        progress=Progress(iteration=resume.iteration if resume else 0, iterations_max=job.iterations_max),
    )
    attempt = Attempt(
        job_uid=job.uid,
        number=claimed.attempts,
        epoch=claimed.epoch,
        runner_id=runner_id,
        session=session,
        software_version=software_version,
        from_step=resume.iteration + (not job.evaluates) if resume else 0,
        resume=resume,
        start_time_us=now_us,
        lease_expire_time_us=now_us + round(lease_seconds * SECOND_US),
        progress_time_us=now_us,
        progress=claimed.progress,
    )
    return claimed, attempt


def may_reattach(job: Job, attempt: Attempt, *, runner_id: str, session: str) -> bool:
    """Whether an attempt that was taken for lost may be taken up again by the session that is back with it.

    Nobody else may have had its job since, nobody may have asked for a stop, and it must be the same agent: an attempt
    does not survive its agent.
    """
    same = (attempt.runner_id, attempt.session) == (runner_id, session)
    lost = attempt.outcome is AttemptOutcome.LOST
    return same and lost and job.state is JobState.QUEUED and job.epoch == attempt.epoch


def reattach(job: Job, attempt: Attempt, *, now_us: int, lease_seconds: float) -> tuple[Job, Attempt]:
    """Job and attempt as if the attempt had never been lost; its lease begins again, and its loss is not counted."""
    taken = replace(
        moved(job, Event.REATTACHED),
        held=False,
        retry_time_us=None,
        lost_attempts=max(0, job.lost_attempts - 1),
    )
    again = replace(
        attempt,
        outcome=None,
        reason=JobReason.UNSPECIFIED,
        message="",
        end_time_us=None,
        lease_expire_time_us=now_us + round(lease_seconds * SECOND_US),
        progress_time_us=now_us,
    )
    return taken, again


def ask_stop(
    job: Job,
    *,
    mode: StopMode,
    grace_seconds: float,
    margin_seconds: float,
    reason: str,
    now_us: int,
    stopper: str = "",
) -> Job:
    """The job after `stopper` asked for a stop. The same job where that changes nothing.

    `margin_seconds` is how much longer than the grace period the server waits for the runner, which enforces it first.
    """
    assert mode is not StopMode.NONE, "a stop has a mode"
    if job.state in FINAL or mode <= job.stop:
        return job
    grace_seconds = 0.0 if mode is StopMode.IMMEDIATE else grace_seconds
    asked = replace(
        moved(job, Event.STOP_ASKED),
        stop=mode,
        stop_grace_seconds=grace_seconds,
        stop_deadline_us=now_us + round((grace_seconds + margin_seconds) * SECOND_US),
        reason=JobReason.USER_STOP,
        reason_message=reason or job.reason_message,
        stopper=stopper,
    )
    return asked if asked.state not in FINAL else ended(asked, now_us=now_us)


def observe(job: Job, attempt: Attempt, *, phase: AttemptPhase, progress: Progress, now_us: int) -> tuple[Job, Attempt]:
    """Job and attempt after the runner said what it does. Holding the attempt acknowledges it."""
    stepped = _has_stepped(phase)
    has_moved = phase is not attempt.phase or progress != attempt.progress
    seen = replace(
        attempt,
        phase=phase,
        acknowledged=True,
        progress=progress,
        progress_time_us=now_us if has_moved else attempt.progress_time_us,
        run_time_us=now_us if stepped and attempt.run_time_us is None else attempt.run_time_us,
    )
    if stepped and job.state is JobState.STARTING:
        return moved(job, Event.STEPPED), seen
    return job, seen


def record(job: Job, key: CheckpointKey) -> Job:
    """The job after a checkpoint of its newest epoch was recorded. One that got further ends a row of bad attempts."""
    assert (key.job_uid, key.epoch) == (job.uid, job.epoch), "older epochs are fenced off before"
    last = job.last_checkpoint
    if last is not None and (last.epoch, last.iteration) >= (key.epoch, key.iteration):
        return job
    # Who waits to be tried again still keeps away from the runners that failed with it.
    after = job if job.state is JobState.QUEUED else avoiding_none(job)
    return replace(after, last_checkpoint=key, lost_attempts=0, faults=0, hand_backs=0)


def avoiding_none(job: Job) -> Job:
    """The job, which any runner that can serve it may have."""
    return replace(job, needs=replace(job.needs, avoided=()), avoid_until_us=None)


def ended(job: Job, *, now_us: int, reason: JobReason | None = None, message: str | None = None) -> Job:
    """The job with its end written into it."""
    return replace(
        job,
        end_time_us=max(now_us, job.create_time_us),
        stop_deadline_us=None,
        held=False,
        retry_time_us=None,
        avoid_until_us=None,
        reason=job.reason if reason is None else reason,
        reason_message=job.reason_message if message is None else message,
    )


def _has_stepped(phase: AttemptPhase) -> bool:
    return phase in (AttemptPhase.TRAINING, AttemptPhase.CHECKPOINTING, AttemptPhase.UPLOADING)
