"""Facts: what happened, as it goes to the bus. Standard library and the domain only; the proto is made at the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from services.scheduler.domain.job import AttemptOutcome, Checkpoint, JobReason, JobState, StopMode


@dataclass(frozen=True, kw_only=True)
class JobFact:
    """Something happened to a job."""

    job_name: str
    job_uid: str


@dataclass(frozen=True, kw_only=True)
class JobSubmitted(JobFact):
    """A job was submitted."""

    creator: str


@dataclass(frozen=True, kw_only=True)
class JobStarted(JobFact):
    """A job was assigned to a runner."""

    attempt: int
    epoch: int
    runner_id: str


@dataclass(frozen=True, kw_only=True)
class JobRunning(JobFact):
    """A job's trainer took its first step."""

    attempt: int


@dataclass(frozen=True, kw_only=True)
class JobStopping(JobFact):
    """A job was asked to stop."""

    mode: StopMode


@dataclass(frozen=True, kw_only=True)
class JobEnded(JobFact):
    """A job ended."""

    state: JobState
    reason: JobReason
    message: str


@dataclass(frozen=True, kw_only=True)
class AttemptLost(JobFact):
    """An attempt was lost or handed back, or failed in a way that its job is tried again."""

    attempt: int
    runner_id: str
    outcome: AttemptOutcome


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(JobFact):
    """A checkpoint was recorded."""

    checkpoint: Checkpoint


@dataclass(frozen=True, kw_only=True)
class JobDeleted(JobFact):
    """A job was deleted."""


@dataclass(frozen=True, kw_only=True)
class RunnerFact:
    """Something happened to a runner."""

    runner_id: str


@dataclass(frozen=True, kw_only=True)
class RunnerJoined(RunnerFact):
    """A runner was heard of for the first time, or again."""


@dataclass(frozen=True, kw_only=True)
class RunnerDrained(RunnerFact):
    """A runner takes no new job."""


@dataclass(frozen=True, kw_only=True)
class RunnerPutAside(RunnerFact):
    """A runner takes no job for a while: too many attempts failed through its fault."""

    reason: str
    until_us: int


@dataclass(frozen=True, kw_only=True)
class RunnerLost(RunnerFact):
    """A runner went silent."""


Fact: TypeAlias = JobFact | RunnerFact


@dataclass(frozen=True, kw_only=True)
class EncodedFact:
    """An event as it goes to the bus."""

    subject: str
    payload: bytes
