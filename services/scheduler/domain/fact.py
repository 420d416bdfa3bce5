"""Facts: what happened, as it goes to the bus. Values only; the proto is made at the wire."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from services.scheduler.domain.job import AttemptOutcome, Checkpoint, JobReason, JobState, StopMode


class JobFact(Struct, frozen=True, kw_only=True):
    """Something happened to a job."""

    job_name: str
    job_uid: str


class JobSubmitted(JobFact, frozen=True, kw_only=True):
    """A job was submitted."""

    creator: str


class JobStarted(JobFact, frozen=True, kw_only=True):
    """A job was assigned to a runner."""

    attempt: int
    epoch: int
    runner_id: str


class JobRunning(JobFact, frozen=True, kw_only=True):
    """A job's trainer took its first step."""

    attempt: int


class JobStopping(JobFact, frozen=True, kw_only=True):
    """A job was asked to stop."""

    mode: StopMode


class JobEnded(JobFact, frozen=True, kw_only=True):
    """A job ended."""

    state: JobState
    reason: JobReason
    message: str


class AttemptLost(JobFact, frozen=True, kw_only=True):
    """An attempt was lost or handed back, or failed in a way that its job is tried again."""

    attempt: int
    runner_id: str
    outcome: AttemptOutcome


class CheckpointSaved(JobFact, frozen=True, kw_only=True):
    """A checkpoint was recorded."""

    checkpoint: Checkpoint


class JobDeleted(JobFact, frozen=True, kw_only=True):
    """A job was deleted."""


class RunnerFact(Struct, frozen=True, kw_only=True):
    """Something happened to a runner."""

    runner_id: str


class RunnerJoined(RunnerFact, frozen=True, kw_only=True):
    """A runner was heard of for the first time, or again."""


class RunnerDrained(RunnerFact, frozen=True, kw_only=True):
    """A runner takes no new job."""


class RunnerPutAside(RunnerFact, frozen=True, kw_only=True):
    """A runner takes no job for a while: too many attempts failed through its fault."""

    reason: str
    until_us: int


class RunnerLost(RunnerFact, frozen=True, kw_only=True):
    """A runner went silent."""


Fact: TypeAlias = JobFact | RunnerFact


class EncodedFact(Struct, frozen=True, kw_only=True):
    """An event as it goes to the bus."""

    subject: str
    payload: bytes
