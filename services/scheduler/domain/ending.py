"""How an attempt ends, whose fault that was, and what it means for its job. Pure functions.

A fault of a runner or of what lies around it (a store, a network) is nobody's job's: it is tried again after a pause,
and after a runner's fault elsewhere for a while, where there is an elsewhere. Only what the user can mend ends a job.
"""

from __future__ import annotations

import enum

from msgspec import Struct
from msgspec.structs import replace

from services.scheduler.domain.job import (
    SECOND_US,
    Attempt,
    AttemptOutcome,
    Event,
    Job,
    JobReason,
    StopMode,
    ended,
    moved,
)

AVOIDED_MAX = 8
"""Runners that a job keeps away from, the newest first."""


class Blame(enum.StrEnum):
    """Whose fault a failed attempt is."""

    USER = "USER"
    """The dataset or the specification: the same again would end the same."""
    RUNNER = "RUNNER"
    """Its disk, a driver, a mount, its software, or the machine itself."""
    INFRASTRUCTURE = "INFRASTRUCTURE"
    """A store, a service or the network that was away."""


_BLAME = {
    JobReason.DATASET_ERROR: Blame.USER,
    JobReason.OUT_OF_MEMORY: Blame.USER,
    JobReason.TRAINER_ERROR: Blame.USER,
    JobReason.UNSPECIFIED: Blame.USER,
    JobReason.RUNNER_FAULT: Blame.RUNNER,
    JobReason.RUNNER_LOST: Blame.RUNNER,
    JobReason.START_DEADLINE: Blame.RUNNER,
    JobReason.STALLED: Blame.RUNNER,
    JobReason.INTERNAL: Blame.RUNNER,
    JobReason.CHECKPOINT_ERROR: Blame.INFRASTRUCTURE,
    JobReason.STORE_UNAVAILABLE: Blame.INFRASTRUCTURE,
}


class RetryLimits(Struct, frozen=True, kw_only=True):
    """How often, and how soon, a job is tried again."""

    lost_attempts_max: int
    """Runners lost in a row that fail a job."""
    faults_max: int
    """Failed attempts in a row, none of them the user's fault, that fail a job."""
    hand_backs_max: int
    """Attempts handed back in a row that fail a job."""
    retry_seconds_first: float
    """The pause after a fault; each in a row doubles it."""
    retry_seconds_max: float
    avoid_seconds: float
    """How long after that pause it keeps away from the runner that failed with it, where another one could serve it."""


def blame_of(outcome: AttemptOutcome, reason: JobReason) -> Blame | None:
    """Whose fault it is that an attempt ended so; None where it is nobody's: it did what was wanted of it.

    A failure for a reason that is none (a limit, a stop) is taken for the user's: trying again would not help.
    """
    if outcome is AttemptOutcome.LOST:
        return Blame.RUNNER
    if outcome is AttemptOutcome.FAILED:
        return _BLAME.get(reason, Blame.USER)
    if outcome is AttemptOutcome.HANDED_BACK and reason is not JobReason.UNSPECIFIED:
        blame = _BLAME.get(reason, Blame.USER)
        return blame if blame is not Blame.USER else None
    return None


def close(
    job: Job,
    attempt: Attempt,
    *,
    outcome: AttemptOutcome,
    reason: JobReason,
    message: str,
    now_us: int,
    limits: RetryLimits,
) -> tuple[Job, Attempt]:
    """Job and attempt after the attempt ended with `outcome`. What that means for the job is decided here alone."""
    assert attempt.active, "an attempt is closed once"
    assert attempt.epoch == job.epoch, "an older attempt was closed before"
    if outcome is AttemptOutcome.STOPPED and job.stop is StopMode.NONE:
        outcome, reason = AttemptOutcome.FAILED, JobReason.INTERNAL
        message = f"the runner stopped although nobody asked for it. {message}".strip()
    if outcome is AttemptOutcome.COMPLETED and job.stop is StopMode.IMMEDIATE and not _has_model(job):
        # The stop ended the upload of the last checkpoint: without it there is nothing that was completed.
        outcome, reason = AttemptOutcome.STOPPED, JobReason.USER_STOP
    over = replace(
        attempt, outcome=outcome, reason=reason, message=message, end_time_us=max(now_us, attempt.start_time_us)
    )
    job = replace(job, progress=attempt.progress)
    blame = blame_of(outcome, reason)
    if outcome is AttemptOutcome.COMPLETED:
        return ended(moved(job, Event.COMPLETED), now_us=now_us, reason=reason, message=message), over
    if blame is Blame.USER:
        return ended(moved(job, Event.FAILED), now_us=now_us, reason=reason, message=message), over
    if job.stop is not StopMode.NONE:
        stopped = ended(moved(job, Event.STOPPED), now_us=now_us, reason=JobReason.USER_STOP)
        return replace(stopped, reason_message=job.reason_message or message), over
    counted = _counted(job, outcome, blame)
    if exhausted := _exhausted(counted, limits):
        failed = moved(counted, Event.FAILED)
        why = JobReason.RUNNER_FAULT if reason is JobReason.UNSPECIFIED else reason
        return ended(failed, now_us=now_us, reason=why, message=f"{exhausted}: {message}"), over
    released = replace(moved(counted, Event.RELEASED), held=True, overtaken=0, reason=JobReason.UNSPECIFIED)
    if blame is not None and outcome is not AttemptOutcome.LOST:
        pause_seconds = min(limits.retry_seconds_first * 2.0 ** (counted.faults - 1), limits.retry_seconds_max)
        retry_time_us = now_us + round(pause_seconds * SECOND_US)
        released = replace(released, retry_time_us=retry_time_us)
        if blame is Blame.RUNNER:
            avoided = (attempt.runner_id, *(each for each in job.needs.avoided if each != attempt.runner_id))
            released = replace(
                released,
                needs=replace(job.needs, avoided=avoided[:AVOIDED_MAX]),
                avoid_until_us=retry_time_us + round(limits.avoid_seconds * SECOND_US),
            )
    return replace(
        released, progress=replace(job.progress, phase="", time_left_us=None, done=0, total=0, problem="")
    ), over


def _has_model(job: Job) -> bool:
    """Whether a checkpoint of the job's newest attempt is recorded."""
    return job.last_checkpoint is not None and job.last_checkpoint.epoch == job.epoch


def _counted(job: Job, outcome: AttemptOutcome, blame: Blame | None) -> Job:
    """The job with one more of what its attempt ended with."""
    if outcome is AttemptOutcome.LOST:
        return replace(job, lost_attempts=job.lost_attempts + 1)
    if blame is not None:
        return replace(job, faults=job.faults + 1)
    return replace(job, hand_backs=job.hand_backs + 1)


def _exhausted(job: Job, limits: RetryLimits) -> str:
    """Why it is not tried again, in words; empty where it is."""
    if job.lost_attempts >= limits.lost_attempts_max:
        return f"{job.lost_attempts} runners in a row were lost with it, at most {limits.lost_attempts_max} may be"
    if job.faults >= limits.faults_max:
        return f"{job.faults} attempts in a row failed, at most {limits.faults_max} may"
    if job.hand_backs >= limits.hand_backs_max:
        return f"{job.hand_backs} runners in a row handed it back, at most {limits.hand_backs_max} may"
    return ""
