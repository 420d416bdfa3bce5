"""Jobs and runners as callers give and see them."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from services.scheduler.domain.job import Attempt, Checkpoint, Job, JobState, Progress, ResumeSource
from services.scheduler.domain.lease import Runner
from services.scheduler.domain.placement import Needs
from services.scheduler.domain.project import DatasetSource

DAMAGE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError)
"""What the reading of a record raises that another version wrote, or a hand, or a failing disk."""


class JobView(Struct, frozen=True, kw_only=True):
    """A job with what is shown beside it: its newest attempts, in their order, and its last checkpoint."""

    job: Job
    attempts: tuple[Attempt, ...] = ()
    last_checkpoint: Checkpoint | None = None

    @property
    def progress(self) -> Progress:
        """How far it is."""
        newest = self.attempts[-1] if self.attempts else None
        return newest.progress if newest is not None and newest.active else self.job.progress


class Submission(Struct, frozen=True, kw_only=True):
    """A new job. `source` is set for one that goes on from another: it takes that one's datasets.

    `initialization`: the checkpoint of another job whose weights it begins with, where it does.
    `dataset`: what an evaluation validates on, where it is another; `sealed` are its credentials, where it has its own.
    """

    project_id: str
    job_id: str
    creator: str
    spec: bytes
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    needs: Needs = field(default_factory=Needs)
    iterations_max: int = 0
    source: ResumeSource | None = None
    initialization: ResumeSource | None = None
    dataset: DatasetSource | None = None
    sealed: bytes | None = None


class JobFilter(Struct, frozen=True, kw_only=True):
    """Which jobs are meant; conditions that are given must all hold. `project_id` None means every project."""

    project_id: str | None = None
    states: frozenset[JobState] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after_us: int | None = None
    created_before_us: int | None = None
    uids: frozenset[str] = frozenset()

    def could_match(self, job: Job) -> bool:
        """Whether the job meets every condition that never changes for it."""
        return (
            all(job.labels.get(key) == value for key, value in self.labels.items())
            and (self.created_after_us is None or job.create_time_us >= self.created_after_us)
            and (self.created_before_us is None or job.create_time_us < self.created_before_us)
            and (not self.uids or job.uid in self.uids)
        )

    def matches(self, job: Job) -> bool:
        """Whether the job meets every condition."""
        return (not self.states or job.state in self.states) and self.could_match(job)


class QueueStanding(Struct, frozen=True, kw_only=True):
    """Why a job waits. `ahead` is counted up to a limit."""

    ahead: int
    active_job: str
    held: bool
    retry_time_us: int | None
    runners: tuple[Runner, ...]
    """Of registered runners that are alike in all that matters here one each, but for lost ones; bounded."""
    busy: frozenset[str]
    """Ids of those of them that have an attempt."""
    avoided: frozenset[str]
    """Ids of those of them that the job keeps away from, until `avoid_until_us`, while another one could serve it."""
    avoid_until_us: int | None
    registered: int
    """How many runners they stand for."""


class RunnerView(Struct, frozen=True, kw_only=True):
    """A runner and the job that it works on."""

    runner: Runner
    job_name: str


class Damaged(Struct, frozen=True, kw_only=True):
    """Stands in a list for a record that cannot be read. `place` is where it stands in the list's order."""

    place: str
