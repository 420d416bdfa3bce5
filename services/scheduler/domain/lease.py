"""What a runner holds, what it says, and what it is told. Pure functions; who is right is decided here.

A lease is the time until which an attempt is taken for alive; it is renewed by every call that names the attempt. The
epoch fences: a report about any other attempt than the active one changes no state.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from services.scheduler.domain.ending import Blame
from services.scheduler.domain.job import (
    SECOND_US,
    Attempt,
    AttemptOutcome,
    AttemptPhase,
    Checkpoint,
    Job,
    JobReason,
    JobState,
    Progress,
    StopMode,
)
from services.scheduler.domain.placement import Capabilities


class AttemptKey(Struct, frozen=True, kw_only=True):
    """Names an attempt."""

    job_uid: str
    epoch: int


class Orphan(Struct, frozen=True, kw_only=True):
    """An attempt that ended so long ago, whose checkpoints are to be looked for. `waits`: its job is not claimed before
    that.
    """

    key: AttemptKey
    ended_seconds: float
    waits: bool


class ActiveReport(Struct, frozen=True, kw_only=True):
    """The attempt that a runner says it works on. `phase` is None where this version has no word for it."""

    key: AttemptKey
    number: int
    phase: AttemptPhase | None
    progress: Progress = field(default_factory=Progress)
    checkpoints: tuple[Checkpoint, ...] = ()
    dataset_fingerprint: str = ""
    stopping: StopMode = StopMode.NONE


class ClosedReport(Struct, frozen=True, kw_only=True):
    """An attempt that a runner says has ended."""

    key: AttemptKey
    number: int
    outcome: AttemptOutcome
    reason: JobReason = JobReason.UNSPECIFIED
    message: str = ""
    iteration: int = 0
    checkpoints: tuple[Checkpoint, ...] = ()


class SpoolReport(Struct, frozen=True, kw_only=True):
    """Points and lines that wait on a runner's disk after their attempt ended."""

    key: AttemptKey
    number: int


class Report(Struct, frozen=True, kw_only=True):
    """All that a runner says in one call."""

    runner_id: str
    session: str
    sequence: int
    capabilities: Capabilities
    active: ActiveReport | None = None
    closed: tuple[ClosedReport, ...] = ()
    spools: tuple[SpoolReport, ...] = ()
    draining: bool = False
    wait_seconds: float = 0.0


class Runner(Struct, frozen=True, kw_only=True):
    """A runner as it is recorded. `drain_asked` is an operator's wish, `draining` its own; a new session clears both.

    `replaced` are the sessions that newer ones took over from, newest first, bounded. `failures`: attempts in a row
    that failed soon and through its own fault; after too many it takes no jobs until `put_aside_until_us`.
    """

    runner_id: str
    session: str
    sequence: int
    capabilities: Capabilities
    draining: bool = False
    drain_asked: bool = False
    lost: bool = False
    heartbeat_time_us: int = 0
    replaced: tuple[str, ...] = ()
    failures: int = 0
    put_aside_until_us: int | None = None
    put_aside_reason: str = ""

    @property
    def name(self) -> str:
        """The resource name."""
        return f"runners/{self.runner_id}"

    @property
    def takes_jobs(self) -> bool:
        """Whether it may get a new job."""
        return not (self.drained or self.capabilities.problem) and self.put_aside_until_us is None

    @property
    def drained(self) -> bool:
        """Whether it hands back what it has."""
        return self.draining or self.drain_asked


class AsideLimits(Struct, frozen=True, kw_only=True):
    """When a runner is put aside, and for how long."""

    failures_max: int
    """Attempts in a row that may fail soon and through the runner's own fault."""
    soon_seconds: float
    """What fails later than this after its start says nothing of a row."""
    seconds_first: float
    """How long it is put aside; each failure in a row after that doubles it."""
    seconds_max: float


def after_attempt(
    runner: Runner, *, blame: Blame | None, seconds: float, reason: str, now_us: int, limits: AsideLimits
) -> Runner:
    """The runner after an attempt of it ended: put aside where too many in a row failed soon, through its own fault.

    `seconds` is how long the attempt took, `reason` what people are told.
    """
    if blame is Blame.INFRASTRUCTURE:
        return runner
    if blame is not Blame.RUNNER:
        return replace(runner, failures=0)
    failures = runner.failures + 1 if seconds <= limits.soon_seconds else 1
    if failures < limits.failures_max:
        return replace(runner, failures=failures)
    pause_seconds = min(limits.seconds_first * 2.0 ** (failures - limits.failures_max), limits.seconds_max)
    return replace(
        runner,
        failures=failures,
        put_aside_until_us=now_us + round(pause_seconds * SECOND_US),
        put_aside_reason=f"{failures} attempts in a row failed through its fault: {reason}",
    )


class Grip(enum.Enum):
    """What a report says of the attempt that the runner should hold."""

    HELD = "held"
    UNACKNOWLEDGED = "unacknowledged"
    LOST = "lost"


def grip(attempt: Attempt, report: Report) -> Grip:
    """Whether the runner holds `attempt`, has not heard of it yet, or has lost it.

    "Idle" from the session that got the assignment, without ever having held it, means that the answer was lost. A new
    session cannot hold what an earlier one held: an attempt does not survive its agent.
    """
    active = report.active
    if report.session != attempt.session:
        return Grip.LOST
    if active is not None and active.key == key_of(attempt):
        return Grip.HELD
    if active is None and not attempt.acknowledged:
        return Grip.UNACKNOWLEDGED
    return Grip.LOST


def key_of(attempt: Attempt) -> AttemptKey:
    """The attempt's key."""
    return AttemptKey(job_uid=attempt.job_uid, epoch=attempt.epoch)


class BeIdle(Struct, frozen=True, kw_only=True):
    """Nothing to do; an attempt that the runner works on is superseded."""


class RunAttempt(Struct, frozen=True, kw_only=True):
    """Work on this attempt."""

    key: AttemptKey


class StopAttempt(Struct, frozen=True, kw_only=True):
    """Stop this attempt; `hand_back` where the runner is drained and the job goes on elsewhere."""

    key: AttemptKey
    mode: StopMode
    grace_seconds: float
    hand_back: bool = False


Desired: TypeAlias = BeIdle | RunAttempt | StopAttempt


def desired(runner: Runner, attempt: Attempt | None, job: Job | None, *, grace_seconds: float) -> Desired:
    """What the runner should do. `grace_seconds` is for a hand-back, which no user gave one for."""
    if attempt is None or job is None:
        return BeIdle()
    if job.state is JobState.STOPPING:
        return StopAttempt(key=key_of(attempt), mode=job.stop, grace_seconds=job.stop_grace_seconds)
    if runner.drained:
        return StopAttempt(key=key_of(attempt), mode=StopMode.CHECKPOINT, grace_seconds=grace_seconds, hand_back=True)
    return RunAttempt(key=key_of(attempt))


def does(report: Report, wanted: Desired) -> bool:
    """Whether the runner already does what is wanted."""
    active = report.active
    if isinstance(wanted, BeIdle):
        return active is None
    if active is None or active.key != wanted.key:
        return False
    return isinstance(wanted, RunAttempt) or active.stopping >= wanted.mode
