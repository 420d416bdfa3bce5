"""Jobs as callers see them: submitted, read, listed, stopped, followed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, exists, or_, select, tuple_
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.errors import FailedPrecondition, NotFound, Reason
from services.scheduler.domain import job as domain
from services.scheduler.domain.fact import JobSubmitted
from services.scheduler.domain.job import (
    FINAL,
    Checkpoint,
    CheckpointKey,
    Job,
    JobState,
    ResumeSource,
    StopMode,
)
from services.scheduler.domain.request import Request
from services.scheduler.domain.view import Damaged, JobFilter, JobView, QueueStanding, Submission
from services.scheduler.store import tables
from services.scheduler.store.attempts import JOB_BY_NAME, find_checkpoint, find_job, insert_job, known_job, save_job
from services.scheduler.store.committed import Stopping
from services.scheduler.store.database import Database
from services.scheduler.store.projects import (
    IS_DELETED,
    PROJECT_BY_ID,
    bury_job,
    find_project,
    job_dataset,
    known_project,
    with_known_credentials,
)
from services.scheduler.store.queue import SERVED, QueueLimits, queue_standing
from services.scheduler.store.requests import answered, asked_first, first_answer
from services.scheduler.store.rows import checkpoint_from_row, job_from_row, readable
from services.scheduler.store.transaction import Question, Transaction
from services.scheduler.store.views import few_at_a_time, last_revision, readable_views, views, views_within

OLDEST_CURSOR = "oldest_cursor"
REMOVAL_COLUMNS = ("revision", "uid", "name", "project_uid")

Encode = Callable[[JobView], bytes]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A job that was deleted."""

    revision: int
    uid: str
    name: str
    project_uid: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What changed after a revision, in the order of the revisions, in one snapshot.

    It goes up to `revision`; `complete` where that is the last there is. Nothing below `oldest` can be gone on from.
    """

    items: tuple[JobView | Removal | Damaged, ...]
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
            ahead=lambda tx: [*asked_first(request), *_asked_of_project(tx, submission.project_id)],
        )

    async def get(self, project_id: str, job_id: str) -> tuple[JobView, QueueStanding | None]:
        """The job and, while it is queued, why it waits."""

        def read(connection: Connection) -> tuple[JobView, QueueStanding | None]:
            job = find_job(connection, project_id, job_id)
            waits = job.state is JobState.QUEUED
            standing = queue_standing(connection, job, self._queue_limits) if waits else None
            return views(connection, [job])[0], standing

        return await self._database.list(read)

    async def batch(self, names: Sequence[tuple[str, str]], uids: Sequence[str]) -> list[JobView | Damaged]:
        """Those of the jobs that exist, in no particular order. Names are (project id, job id).

        The place of one that cannot be read is its uid and its name.
        """

        def read(connection: Connection) -> list[JobView | Damaged]:
            jobs, projects = tables.jobs, tables.projects
            found: dict[str, Row[Any]] = {}
            if uids:
                found = {row.uid: row for row in connection.execute(select(jobs).where(jobs.c.uid.in_(uids)))}
            if names:
                query = select(jobs).join(projects, projects.c.uid == jobs.c.project_uid)
                query = query.where(tuple_(projects.c.project_id, jobs.c.job_id).in_(names))
                found |= {row.uid: row for row in connection.execute(query)}
            return readable_views(
                connection,
                list(found.values()),
                place=lambda row: f"{row.uid} projects/{row.project_id}/jobs/{row.job_id}",
            )

        return await self._database.list(read)

    async def page(self, job_filter: JobFilter, *, before: int | None, limit: int) -> list[JobView | Damaged]:
        """Jobs, newest first, those submitted before the one with sequence `before`."""

        def read(connection: Connection) -> list[JobView | Damaged]:
            jobs = tables.jobs
            query = _filtered(select(jobs), connection, job_filter).order_by(jobs.c.sequence.desc()).limit(limit)
            if before is not None:
                query = query.where(jobs.c.sequence < before)
            rows = few_at_a_time(connection.execute(query))
            return readable_views(connection, rows, place=lambda row: str(row.sequence))

        return await self._database.list(read)

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
        stopper: str = "",
    ) -> bytes:
        """Ask for a stop; the runner is told at once."""

        def stop(transaction: Transaction) -> JobView:
            row = transaction.ask(JOB_BY_NAME, in_project=project_id, named=job_id)
            job = known_job(row, project_id, job_id)
            asked = domain.ask_stop(
                job,
                mode=mode,
                grace_seconds=grace_seconds,
                margin_seconds=margin_seconds,
                reason=reason,
                stopper=stopper,
                now_us=transaction.now_us,
            )
            saved = save_job(transaction, job, asked)
            view = views(transaction.connection, [saved])[0]
            if saved is not job:
                for attempt in view.attempts:
                    if attempt.active:
                        transaction.stop(Stopping(job=saved, attempt=attempt))
            return view

        return await self._database.write(
            lambda tx: answered(tx, request, lambda: stop(tx), encode),
            ahead=lambda _: asked_first(request),
            control=True,
        )

    async def delete(self, request: Request, encode: Callable[[Job], bytes], *, project_id: str, job_id: str) -> bytes:
        """Delete an ended job. It is gone at once, and its name is free; what is left is taken out later.

        FailedPrecondition while it has not ended, and while a job that goes on from it has not.
        """

        def delete_job(transaction: Transaction) -> Job:
            job = find_job(transaction.connection, project_id, job_id)
            _require_ended(job, "to be deleted")
            _refuse_successors(transaction.connection, job)
            bury_job(transaction, job)
            return job

        return await self._database.write(lambda tx: answered(tx, request, lambda: delete_job(tx), encode))

    async def resumable(self, project_id: str, job_id: str, checkpoint: str) -> tuple[Job, Checkpoint]:
        """An ended job and the checkpoint that is meant. FailedPrecondition while it has not ended or has none."""

        def read(connection: Connection) -> tuple[Job, Checkpoint]:
            job = find_job(connection, project_id, job_id)
            _require_ended(job, "to be resumed")
            if job.last_checkpoint is None:
                raise _nothing_to_resume(job, "has no checkpoint to go on from: submit a new job instead")
            if job.source is not None and job.evaluates:
                raise _nothing_to_resume(job, f"is an evaluation, which trains nothing: resume {job.source.job_name}")
            return job, resolve_checkpoint(connection, job, checkpoint or "last")

        return await self._database.read(read)

    async def checkpoint(self, project_id: str, job_id: str, checkpoint: str) -> tuple[Job, Checkpoint]:
        """A job, whatever its state, and one of its checkpoints. NotFound without them."""

        def read(connection: Connection) -> tuple[Job, Checkpoint]:
            job = find_job(connection, project_id, job_id)
            return job, resolve_checkpoint(connection, job, checkpoint)

        return await self._database.read(read)

    async def changes(
        self,
        *,
        project_uid: str | None,
        after: int,
        limit: int,
        bytes_max: int = sys.maxsize,
        job_filter: JobFilter | None = None,
        unseen_to: int = 0,
    ) -> Changes:
        """What changed after the revision `after`, in one project or in all: at most `limit` jobs, and so many that
        they have `bytes_max`, but for one that alone has more.

        Of `job_filter` (but for its project) only what never changes for a job is regarded; with `after` 0, and of jobs
        that have not changed since `unseen_to`, where nobody has seen one that could leave it, all of it.
        """
        wanted = job_filter or JobFilter()
        return await self._database.list(
            lambda connection: _changes(connection, project_uid, after, limit, bytes_max, wanted, unseen_to)
        )

    async def revision(self) -> int:
        """The last revision that is visible."""
        return await self._database.read(last_revision)


def _require_ended(job: Job, purpose: str) -> None:
    if job.state not in FINAL:
        raise FailedPrecondition(
            Reason.JOB_STATE,
            f"{job.name} is {job.state}, but must have ended {purpose}: stop it first",
            {"job": job.name, "state": job.state.value, "wanted": ", ".join(sorted(FINAL))},
        )


def _refuse_successors(connection: Connection, job: Job) -> None:
    """What a job goes on from stays until that one has ended: it may have to begin there again."""
    jobs = tables.jobs
    query = select(jobs).where(jobs.c.project_uid == job.project_uid, jobs.c.source.is_not(None))
    rows = connection.execute(query.where(jobs.c.end_time_us.is_(None)))
    living = readable(rows, job_from_row, place=lambda row: str(row.uid))
    for successor in living:
        if isinstance(successor, Damaged) or successor.source is None or successor.source.key.job_uid != job.uid:
            continue
        raise FailedPrecondition(
            Reason.JOB_STATE,
            f"{successor.name} goes on from {job.name} and is {successor.state}: stop it first",
            {"job": successor.name, "state": successor.state.value, "wanted": ", ".join(sorted(FINAL))},
        )


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
        found = checkpoint_from_row(row._mapping) if row is not None else None
    else:
        epoch, _, iteration = checkpoint_id.partition("-")
        found = None
        if epoch.isdecimal() and iteration.isdecimal():
            key = CheckpointKey(job_uid=job.uid, epoch=int(epoch), iteration=int(iteration))
            found = find_checkpoint(connection, key)
    if found is None:
        raise _no_checkpoint(f"{job.name}/checkpoints/{checkpoint_id}")
    return found


def _no_checkpoint(name: str) -> NotFound:
    return NotFound(Reason.CHECKPOINT_NOT_FOUND, f"{name} does not exist: list the job's checkpoints", {"name": name})


def _nothing_to_resume(job: Job, why: str) -> FailedPrecondition:
    return FailedPrecondition(Reason.NO_CHECKPOINT, f"{job.name} {why}", {"job": job.name})


def _asked_of_project(transaction: Transaction, project_id: str) -> Iterator[Question]:
    """What `_submit` asks of a project that is not known, or of which nothing waits or runs."""
    project = transaction.projects.get(project_id)
    if project is None:
        yield PROJECT_BY_ID, {"id": project_id}
    if project is None or transaction.dispatcher.served(project.uid) is None:
        yield SERVED, {"id": project_id}


def _submit(transaction: Transaction, submission: Submission) -> JobView:
    project = known_project(transaction, submission.project_id)
    uid = transaction.new_id()
    revision = transaction.next_revision()
    training, validation, fingerprint = project.training_dataset, project.validation_dataset, ""
    if submission.source is not None:
        origin = _source_job(transaction.connection, submission.source)
        training = with_known_credentials(project, origin.training_dataset)
        validation = with_known_credentials(project, origin.validation_dataset) if origin.validation_dataset else None
        fingerprint = origin.dataset_fingerprint
    if submission.initialization is not None:
        _source_job(transaction.connection, submission.initialization)
    if submission.dataset is not None:
        validation = job_dataset(transaction, project, submission.dataset, submission.sealed)
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
    insert_job(transaction, job)
    transaction.emit(JobSubmitted(job_name=job.name, job_uid=job.uid, creator=job.creator))
    return JobView(job=job)


def _source_job(connection: Connection, source: ResumeSource) -> Job:
    """The job that the checkpoint is of. NotFound where either was deleted since the checkpoint was looked up."""
    jobs, projects = tables.jobs, tables.projects
    query = select(jobs).join(projects, projects.c.uid == jobs.c.project_uid)
    row = connection.execute(query.where(jobs.c.uid == source.key.job_uid, ~IS_DELETED)).one_or_none()
    if row is None:
        raise NotFound(Reason.JOB_NOT_FOUND, f"{source.job_name} does not exist", {"name": source.job_name})
    if find_checkpoint(connection, source.key) is None:
        raise _no_checkpoint(source.checkpoint_name)
    return job_from_row(row._mapping)


def _filtered(query: Select[Any], connection: Connection, job_filter: JobFilter) -> Select[Any]:
    jobs = tables.jobs
    if job_filter.project_id is not None:
        query = query.where(jobs.c.project_uid == find_project(connection, job_filter.project_id).uid)
    if job_filter.states:
        query = query.where(jobs.c.state.in_(sorted(state.value for state in job_filter.states)))
    return _filtered_for_good(query, job_filter)


def _filtered_for_good(query: Select[Any], job_filter: JobFilter) -> Select[Any]:
    """By the conditions that never change for a job."""
    jobs, labels = tables.jobs, tables.job_labels
    if job_filter.uids:
        query = query.where(jobs.c.uid.in_(sorted(job_filter.uids)))
    for key, value in job_filter.labels.items():
        same = (labels.c.job_uid == jobs.c.uid, labels.c.key == key, labels.c.value == value)
        query = query.where(exists().where(*same))
    if job_filter.created_after_us is not None:
        query = query.where(jobs.c.create_time_us >= job_filter.created_after_us)
    if job_filter.created_before_us is not None:
        query = query.where(jobs.c.create_time_us < job_filter.created_before_us)
    return query


def _changes(
    connection: Connection,
    project_uid: str | None,
    after: int,
    limit: int,
    bytes_max: int,
    job_filter: JobFilter,
    unseen_to: int,
) -> Changes:
    jobs, removed = tables.jobs, tables.removed_jobs
    revision: ColumnElement[int] = jobs.c.revision
    states = job_filter.states if after < max(unseen_to, 1) else frozenset()
    if states or job_filter.uids:
        # Few of all jobs are meant: SQLite would go through all of them in the order of the index.
        revision = jobs.c.revision + 0
    changed = select(jobs).where(revision > after).order_by(revision).limit(limit)
    changed = _filtered_for_good(changed, job_filter)
    if states:
        is_meant = jobs.c.state.in_(sorted(state.value for state in states))
        changed = changed.where(or_(is_meant, jobs.c.revision > unseen_to) if after else is_meant)
    gone = select(removed).where(removed.c.revision > after).order_by(removed.c.revision).limit(limit)
    if project_uid is not None:
        changed = changed.where(jobs.c.project_uid == project_uid)
        gone = gone.where(removed.c.project_uid == project_uid)
    if job_filter.uids:
        gone = gone.where(removed.c.uid.in_(sorted(job_filter.uids)))
    found, goes_on = views_within(connection, changed, place=lambda row: str(row.revision), bytes_max=bytes_max)
    if goes_on:
        gone = gone.where(removed.c.revision < found[-1][0].revision)
    # Who starts from nothing has nothing that could be removed.
    found_gone = (
        [Removal(**{name: getattr(row, name) for name in REMOVAL_COLUMNS}) for row in connection.execute(gone)]
        if after
        else []
    )
    items: dict[int, JobView | Removal | Damaged] = {
        **{row.revision: view for row, view in found},
        **{removal.revision: removal for removal in found_gone},
    }
    revisions = sorted(items)[:limit]
    complete = len(revisions) < limit and not goes_on
    return Changes(
        items=tuple(items[revision] for revision in revisions),
        revision=last_revision(connection) if complete else revisions[-1],
        complete=complete,
        oldest=_oldest_cursor(connection),
    )


def _oldest_cursor(connection: Connection) -> int:
    counters = tables.counters
    return int(connection.execute(select(counters.c.value).where(counters.c.name == OLDEST_CURSOR)).scalar() or 0)
