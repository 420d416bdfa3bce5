"""Jobs as callers see them: submitted, read, listed, stopped, followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, exists, func, select, tuple_
from sqlalchemy.exc import IntegrityError

from services.chassis.errors import AlreadyExists, FailedPrecondition, NotFound, Reason
from services.scheduler import job as domain
from services.scheduler.fact import JobSubmitted
from services.scheduler.job import (
    FINAL,
    Attempt,
    Checkpoint,
    CheckpointKey,
    Job,
    JobState,
    ResumeSource,
    StopMode,
)
from services.scheduler.placement import Needs
from services.scheduler.store import tables
from services.scheduler.store.attempts import find_checkpoint, find_job, insert_job, save_job
from services.scheduler.store.database import Database
from services.scheduler.store.projects import find_project
from services.scheduler.store.queue import QueueLimits, QueueStanding, queue_standing
from services.scheduler.store.requests import Request, answered, first_answer
from services.scheduler.store.rows import attempt_from_row, checkpoint_from_row, job_from_row
from services.scheduler.store.transaction import REVISION, Transaction

ATTEMPTS_SHOWN_MAX = 20
"""The newest attempts that a job shows."""
OLDEST_CURSOR = "oldest_cursor"


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job with what is shown beside it."""

    job: Job
    attempts: tuple[Attempt, ...] = ()
    last_checkpoint: Checkpoint | None = None


Encode = Callable[[JobView], bytes]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A new job. `source` is set for one that goes on from another: it takes that one's datasets."""

    project_id: str
    job_id: str
    creator: str
    spec: bytes
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    needs: Needs = field(default_factory=Needs)
    iterations_max: int = 0
    source: ResumeSource | None = None


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs are meant; conditions that are given must all hold. `project_id` None means every project."""

    project_id: str | None = None
    states: frozenset[JobState] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after_us: int | None = None
    created_before_us: int | None = None

    def could_match(self, job: Job) -> bool:
        """Whether the job meets every condition that never changes for it."""
        return (
            all(job.labels.get(key) == value for key, value in self.labels.items())
            and (self.created_after_us is None or job.create_time_us >= self.created_after_us)
            and (self.created_before_us is None or job.create_time_us < self.created_before_us)
        )

    def matches(self, job: Job) -> bool:
        """Whether the job meets every condition."""
        return (not self.states or job.state in self.states) and self.could_match(job)


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A job that was deleted."""

    revision: int
    uid: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What changed after a revision, in the order of the revisions, in one snapshot.

    It goes up to `revision`; `complete` where that is the last there is. Nothing below `oldest` can be gone on from.
    """

    items: tuple[JobView | Removal, ...]
    revision: int
    complete: bool
    oldest: int


class JobStore:
    """Jobs. What mutates answers with what `encode` made of the first answer to the request."""

    def __init__(self, database: Database, *, queue_limits: QueueLimits) -> None:
        self._database = database
        self._queue_limits = queue_limits

    async def first_answer(self, request: Request) -> bytes | None:
        """What this request was answered before; None where it is new."""
        return await self._database.read(lambda connection: first_answer(connection, request))

    async def submit(self, request: Request, encode: Encode, submission: Submission) -> bytes:
        """Put a new job at the end of its project's queue."""
        return await self._database.write(
            lambda tx: answered(tx, request, lambda: _submit(tx, submission), encode),
        )

    async def get(self, project_id: str, job_id: str) -> tuple[JobView, QueueStanding | None]:
        """The job and, while it is queued, why it waits."""

        def read(connection: Connection) -> tuple[JobView, QueueStanding | None]:
            job = find_job(connection, project_id, job_id)
            waits = job.state is JobState.QUEUED
            standing = queue_standing(connection, job, self._queue_limits) if waits else None
            return _views(connection, [job])[0], standing

        return await self._database.read(read)

    async def batch(self, names: Sequence[tuple[str, str]], uids: Sequence[str]) -> list[JobView]:
        """Those of the jobs that exist, in no particular order. Names are (project id, job id)."""

        def read(connection: Connection) -> list[JobView]:
            jobs, projects = tables.jobs, tables.projects
            found = {}
            if uids:
                found = {
                    row.uid: job_from_row(row) for row in connection.execute(select(jobs).where(jobs.c.uid.in_(uids)))
                }
            if names:
                query = select(jobs).join(projects, projects.c.uid == jobs.c.project_uid)
                query = query.where(tuple_(projects.c.project_id, jobs.c.job_id).in_(names))
                found |= {row.uid: job_from_row(row) for row in connection.execute(query)}
            return _views(connection, list(found.values()))

        return await self._database.read(read)

    async def page(self, job_filter: JobFilter, *, before: int | None, limit: int) -> list[JobView]:
        """Jobs, newest first, those submitted before the one with sequence `before`."""

        def read(connection: Connection) -> list[JobView]:
            jobs = tables.jobs
            query = _filtered(select(jobs), connection, job_filter).order_by(jobs.c.sequence.desc()).limit(limit)
            if before is not None:
                query = query.where(jobs.c.sequence < before)
            return _views(connection, [job_from_row(row) for row in connection.execute(query)])

        return await self._database.read(read)

    async def stop(
        self,
        request: Request,
        encode: Encode,
        *,
        project_id: str,
        job_id: str,
        mode: StopMode,
        grace_seconds: float,
        margin_seconds: float,
        reason: str,
    ) -> bytes:
        """Ask for a stop; the runner is told at once."""

        def stop(transaction: Transaction) -> JobView:
            job = find_job(transaction.connection, project_id, job_id)
            asked = domain.ask_stop(
                job,
                mode=mode,
                grace_seconds=grace_seconds,
                margin_seconds=margin_seconds,
                reason=reason,
                now_us=transaction.now_us,
            )
            saved = save_job(transaction, job, asked)
            view = _views(transaction.connection, [saved])[0]
            if saved is not job:
                for attempt in view.attempts:
                    if attempt.active:
                        transaction.wake_runner(attempt.runner_id)
            return view

        return await self._database.write(lambda tx: answered(tx, request, lambda: stop(tx), encode))

    async def resumable(self, project_id: str, job_id: str, checkpoint: str) -> tuple[Job, Checkpoint]:
        """An ended job and the checkpoint that is meant. FailedPrecondition while it has not ended or has none."""

        def read(connection: Connection) -> tuple[Job, Checkpoint]:
            job = find_job(connection, project_id, job_id)
            if job.state not in FINAL:
                wanted = ", ".join(sorted(FINAL))
                raise FailedPrecondition(
                    Reason.JOB_STATE,
                    f"{job.name} is {job.state}, but must have ended to be resumed: stop it first",
                    {"job": job.name, "state": job.state.value, "wanted": wanted},
                )
            if job.last_checkpoint is None:
                raise FailedPrecondition(
                    Reason.NO_CHECKPOINT,
                    f"{job.name} has no checkpoint to go on from: submit a new job instead",
                    {"job": job.name},
                )
            return job, resolve_checkpoint(connection, job, checkpoint or "last")

        return await self._database.read(read)

    async def changes(self, *, project_uid: str | None, after: int, limit: int) -> Changes:
        """What changed after the revision `after`, in one project or in all, at most `limit` jobs."""
        return await self._database.read(lambda connection: _changes(connection, project_uid, after, limit))

    async def revision(self) -> int:
        """The last revision that is visible."""
        return await self._database.read(_revision)


def resolve_checkpoint(connection: Connection, job: Job, checkpoint_id: str) -> Checkpoint:
    """The job's checkpoint with this id; `last`, `best` and `final` stand for the one that is. NotFound without it."""
    table = tables.checkpoints
    newest = select(table).where(table.c.job_uid == job.uid)
    newest = newest.order_by(table.c.epoch.desc(), table.c.iteration.desc()).limit(1)
    queries = {
        "last": newest,
        "best": newest.where(table.c.best),
        "final": newest.where(table.c.cause == "FINAL"),
    }
    if checkpoint_id in queries:
        row = connection.execute(queries[checkpoint_id]).one_or_none()
        found = checkpoint_from_row(row) if row is not None else None
    else:
        epoch, _, iteration = checkpoint_id.partition("-")
        found = None
        if epoch.isdecimal() and iteration.isdecimal():
            key = CheckpointKey(job_uid=job.uid, epoch=int(epoch), iteration=int(iteration))
            found = find_checkpoint(connection, key)
    if found is None:
        name = f"{job.name}/checkpoints/{checkpoint_id}"
        raise NotFound(
            Reason.CHECKPOINT_NOT_FOUND, f"{name} does not exist: list the job's checkpoints", {"name": name}
        )
    return found


def _submit(transaction: Transaction, submission: Submission) -> JobView:
    connection = transaction.connection
    project = find_project(connection, submission.project_id)
    uid = transaction.new_id()
    revision = transaction.next_revision()
    training, validation, fingerprint = project.training_dataset, project.validation_dataset, ""
    if submission.source is not None:
        origin = _source_job(connection, submission.source)
        training, validation = origin.training_dataset, origin.validation_dataset
        fingerprint = origin.dataset_fingerprint
    job = Job(
        uid=uid,
        project_uid=project.uid,
        project_id=project.project_id,
        job_id=submission.job_id or f"job-{uid[-12:]}",
        sequence=revision,
        creator=submission.creator,
        spec=submission.spec,
        labels=submission.labels,
        priority=submission.priority,
        needs=submission.needs,
        iterations_max=submission.iterations_max,
        training_dataset=training,
        validation_dataset=validation,
        dataset_fingerprint=fingerprint,
        create_time_us=transaction.now_us,
        progress=domain.Progress(iterations_max=submission.iterations_max),
        source=submission.source,
        revision=revision,
    )
    try:
        insert_job(transaction, job, served=project.served)
    except IntegrityError as error:
        raise AlreadyExists(
            Reason.JOB_ALREADY_EXISTS, f"{job.name} exists already: take another id", {"name": job.name}
        ) from error
    transaction.emit(JobSubmitted(job_name=job.name, job_uid=job.uid, creator=job.creator))
    return JobView(job=job)


def _source_job(connection: Connection, source: ResumeSource) -> Job:
    row = connection.execute(select(tables.jobs).where(tables.jobs.c.uid == source.key.job_uid)).one_or_none()
    if row is None:
        raise NotFound(Reason.JOB_NOT_FOUND, f"{source.job_name} does not exist", {"name": source.job_name})
    return job_from_row(row)


def _views(connection: Connection, jobs: Sequence[Job]) -> list[JobView]:
    """The jobs with their newest attempts and last checkpoints, in the same order: two queries, however many."""
    tried = [job.uid for job in jobs if job.attempts]
    attempts: dict[str, list[Attempt]] = {uid: [] for uid in tried}
    if tried:
        table = tables.attempts
        query = select(table).join(tables.jobs, tables.jobs.c.uid == table.c.job_uid)
        query = query.where(table.c.job_uid.in_(tried), table.c.number > tables.jobs.c.attempts - ATTEMPTS_SHOWN_MAX)
        for row in connection.execute(query.order_by(table.c.number)):
            attempts[row.job_uid].append(attempt_from_row(row))
    checkpoints = _checkpoints(connection, [job.last_checkpoint for job in jobs if job.last_checkpoint is not None])
    return [
        JobView(
            job=job,
            attempts=tuple(attempts.get(job.uid, ())),
            last_checkpoint=checkpoints.get(job.last_checkpoint) if job.last_checkpoint is not None else None,
        )
        for job in jobs
    ]


def _checkpoints(connection: Connection, keys: Sequence[CheckpointKey]) -> dict[CheckpointKey, Checkpoint]:
    if not keys:
        return {}
    table = tables.checkpoints
    columns = tuple_(table.c.job_uid, table.c.epoch, table.c.iteration)
    query = select(table).where(columns.in_([(key.job_uid, key.epoch, key.iteration) for key in keys]))
    found = [checkpoint_from_row(row) for row in connection.execute(query)]
    return {checkpoint.key: checkpoint for checkpoint in found}


def _filtered(query: Select[Any], connection: Connection, job_filter: JobFilter) -> Select[Any]:
    jobs, labels = tables.jobs, tables.job_labels
    if job_filter.project_id is not None:
        query = query.where(jobs.c.project_uid == find_project(connection, job_filter.project_id).uid)
    if job_filter.states:
        query = query.where(jobs.c.state.in_(sorted(state.value for state in job_filter.states)))
    for key, value in job_filter.labels.items():
        same = (labels.c.job_uid == jobs.c.uid, labels.c.key == key, labels.c.value == value)
        query = query.where(exists().where(*same))
    if job_filter.created_after_us is not None:
        query = query.where(jobs.c.create_time_us >= job_filter.created_after_us)
    if job_filter.created_before_us is not None:
        query = query.where(jobs.c.create_time_us < job_filter.created_before_us)
    return query


def _changes(connection: Connection, project_uid: str | None, after: int, limit: int) -> Changes:
    jobs, removed = tables.jobs, tables.removed_jobs
    changed = select(jobs).where(jobs.c.revision > after).order_by(jobs.c.revision).limit(limit)
    gone = select(removed).where(removed.c.revision > after).order_by(removed.c.revision).limit(limit)
    if project_uid is not None:
        changed = changed.where(jobs.c.project_uid == project_uid)
        gone = gone.where(removed.c.project_uid == project_uid)
    found_jobs = [job_from_row(row) for row in connection.execute(changed)]
    # Who starts from nothing has nothing that could be removed.
    found_gone = (
        [Removal(revision=r.revision, uid=r.uid, name=r.name) for r in connection.execute(gone)] if after else []
    )
    views = {view.job.revision: view for view in _views(connection, found_jobs)}
    items: dict[int, JobView | Removal] = {**views, **{removal.revision: removal for removal in found_gone}}
    revisions = sorted(items)[:limit]
    complete = len(revisions) < limit
    return Changes(
        items=tuple(items[revision] for revision in revisions),
        revision=_revision(connection) if complete else revisions[-1],
        complete=complete,
        oldest=_counter(connection, OLDEST_CURSOR),
    )


def _revision(connection: Connection) -> int:
    return _counter(connection, REVISION)


def _counter(connection: Connection, name: str) -> int:
    query = select(func.max(tables.counters.c.value)).where(tables.counters.c.name == name)
    return int(connection.execute(query).scalar_one() or 0)
