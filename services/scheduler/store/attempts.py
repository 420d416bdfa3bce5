"""Jobs, attempts and checkpoints inside a transaction: loaded, changed by the domain, saved with their events.

Each save is guarded by what was read; nothing here decides what happens, that is `services.scheduler.domain.job`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from msgspec.structs import replace
from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from services.chassis.errors import AlreadyExists, NotFound, Reason, Unavailable
from services.chassis.log import get_logger
from services.scheduler.domain import ending
from services.scheduler.domain import job as domain
from services.scheduler.domain.ending import RetryLimits
from services.scheduler.domain.fact import AttemptLost, CheckpointSaved, JobEnded, JobRunning, JobStarted, JobStopping
from services.scheduler.domain.job import (
    FINAL,
    Attempt,
    AttemptOutcome,
    Checkpoint,
    CheckpointKey,
    Job,
    JobReason,
    JobState,
    StopMode,
)
from services.scheduler.domain.lease import AttemptKey, Report, key_of
from services.scheduler.store import tables
from services.scheduler.store.queue import enter_queue, leave_queue, reload_project, served_of
from services.scheduler.store.rows import (
    attempt_from_row,
    attempt_to_row,
    changes,
    checkpoint_from_row,
    checkpoint_to_row,
    job_from_row,
    job_to_row,
)
from services.scheduler.store.statement import Statement, Values
from services.scheduler.store.together import Step
from services.scheduler.store.transaction import Transaction

log = get_logger(__name__)

UPDATES_MAX = 256
"""Statements that are kept, one for each set of columns that change together."""
_INSERT_JOB = Statement(insert(tables.jobs))
_INSERT_LABEL = Statement(insert(tables.job_labels))
JOB_OF_RUNNER = Statement(
    select(tables.jobs)
    .join(tables.attempts, tables.attempts.c.job_uid == tables.jobs.c.uid)
    .where(tables.attempts.c.active),
    key=tables.attempts.c.runner_id,
)
JOB_BY_NAME = Statement(
    select(tables.jobs)
    .join(tables.projects, tables.projects.c.uid == tables.jobs.c.project_uid)
    .where(tables.projects.c.project_id == bindparam("in_project"), tables.jobs.c.job_id == bindparam("named"))
)
JOB_BY_UID = Statement(select(tables.jobs), key=tables.jobs.c.uid)
ACTIVE_OF_RUNNER = Statement(select(tables.attempts).where(tables.attempts.c.active), key=tables.attempts.c.runner_id)
_BY_EPOCH = Statement(
    select(tables.attempts).where(
        tables.attempts.c.job_uid == bindparam("job_uid"), tables.attempts.c.epoch == bindparam("epoch")
    )
)
_CHECKPOINT = Statement(
    select(tables.checkpoints).where(
        tables.checkpoints.c.job_uid == bindparam("job_uid"),
        tables.checkpoints.c.epoch == bindparam("epoch"),
        tables.checkpoints.c.iteration == bindparam("iteration"),
    )
)


def find_job(connection: Connection, project_id: str, job_id: str) -> Job:
    """The job of this name, or NotFound."""
    return known_job(JOB_BY_NAME.one(connection, {"in_project": project_id, "named": job_id}), project_id, job_id)


def known_job(row: Values | None, project_id: str, job_id: str) -> Job:
    """The job of this name, whose row was asked for, or NotFound."""
    if row is None:
        name = f"projects/{project_id}/jobs/{job_id}"
        raise NotFound(Reason.JOB_NOT_FOUND, f"{name} does not exist", {"name": name})
    return job_from_row(row)


def load_job(connection: Connection, uid: str) -> Job | None:
    """The job with this uid; None where there is none (any more)."""
    row = JOB_BY_UID.one(connection, {"id": uid})
    return job_from_row(row) if row is not None else None


def insert_job(transaction: Transaction, job: Job) -> None:
    """Write a new job and put it into the queue. The unit's caller gets AlreadyExists where the name is taken."""

    def refused(error: DBAPIError | Unavailable) -> Exception:
        transaction.doubts.append(lambda: reload_project(transaction, job.project_uid))
        if not isinstance(error, IntegrityError):
            return error
        return AlreadyExists(
            Reason.JOB_ALREADY_EXISTS, f"{job.name} exists already: take another id", {"name": job.name}
        )

    transaction.write(_INSERT_JOB, job_to_row(job), refused)
    for key, value in job.labels.items():
        transaction.write(_INSERT_LABEL, {"job_uid": job.uid, "key": key, "value": value})
    enter_queue(transaction, job)


def save_job(transaction: Transaction, before: Job, after: Job) -> Job:
    """Write what changed, with a new revision and the events that it means."""
    if after == before:
        return before
    after = replace(after, revision=transaction.next_revision())
    transaction.write(*_job_update(before, after))
    is_moved = before.needs.key != after.needs.key
    if before.ready and (is_moved or not after.ready):
        leave_queue(transaction, before)
    if after.ready and (is_moved or not before.ready):
        enter_queue(transaction, after)
    _emit_changes(transaction, before, after)
    return after


def changing_jobs(transaction: Transaction, changed: Sequence[tuple[Job, Job]]) -> Iterator[Step[None]]:
    """The steps that write what changed in each of the jobs, those in which the same has changed together."""
    alike: dict[Statement, list[Values]] = {}
    for before, after in changed:
        statement, values = _job_update(before, after)
        alike.setdefault(statement, []).append(values)
    for statement, rows in alike.items():
        yield transaction.changing(statement, rows)


def find_attempt(connection: Connection, key: AttemptKey) -> Attempt | None:
    """The attempt; None where there is none (any more)."""
    row = _BY_EPOCH.one(connection, {"job_uid": key.job_uid, "epoch": key.epoch})
    return attempt_from_row(row) if row is not None else None


def active_attempt(connection: Connection, runner_id: str) -> Attempt | None:
    """The attempt that a runner should hold."""
    row = ACTIVE_OF_RUNNER.one(connection, {"id": runner_id})
    return attempt_from_row(row) if row is not None else None


def save_attempt(transaction: Transaction, before: Attempt, after: Attempt) -> None:
    """Write what changed in an active attempt."""
    if after != before:
        transaction.write(*_attempt_update(before, after))


def close_attempt(
    transaction: Transaction,
    attempt: Attempt,
    *,
    outcome: AttemptOutcome,
    reason: JobReason,
    message: str,
    limits: RetryLimits,
    iteration: int = 0,
) -> Job:
    """End an active attempt; what that means for its job is the domain's. The slots of project and runner are free.

    `iteration`: steps that were done, where the runner said so.
    """
    job = load_job(transaction.connection, attempt.job_uid)
    assert job is not None, "a job with an active attempt is never deleted"
    after, over = ending.close(
        job,
        attempt,
        outcome=outcome,
        reason=reason,
        message=message,
        now_us=transaction.now_us,
        limits=limits,
    )
    after = replace(after, progress=replace(after.progress, iteration=max(iteration, after.progress.iteration)))
    save_attempt(transaction, attempt, over)
    if outcome in (AttemptOutcome.LOST, AttemptOutcome.HANDED_BACK) or after.state is JobState.QUEUED:
        # Before what `save_job` may tell: that the job has ended with it.
        transaction.emit(
            AttemptLost(
                job_name=job.name,
                job_uid=job.uid,
                attempt=attempt.number,
                runner_id=attempt.runner_id,
                outcome=outcome,
            )
        )
    saved = save_job(transaction, job, after)
    transaction.dispatcher.vacate(job.project_uid, served=served_of(transaction, job))
    transaction.wake_runner(attempt.runner_id)
    transaction.adopt(key_of(attempt))
    return saved


def reattach_attempt(transaction: Transaction, attempt: Attempt, report: Report, *, lease_seconds: float) -> None:
    """Take a lost attempt up again, where nobody else has its job or its project's slot since; else change nothing."""
    job = load_job(transaction.connection, attempt.job_uid)
    who = {"runner_id": report.runner_id, "session": report.session}
    if job is None or not domain.may_reattach(job, attempt, **who):
        return
    taken, again = domain.reattach(job, attempt, now_us=transaction.now_us, lease_seconds=lease_seconds)
    try:
        with transaction.savepoint():
            attempts = tables.attempts
            is_it = (attempts.c.job_uid == attempt.job_uid) & (attempts.c.epoch == attempt.epoch) & ~attempts.c.active
            values = changes(attempt_to_row(attempt), attempt_to_row(again))
            values |= {"adopted": False, "adopt_time_us": 0}  # what it leaves is looked for as soon as it ends again
            result = transaction.connection.execute(update(attempts).where(is_it).values(**values))
            assert result.rowcount == 1, "it was read in this transaction"
            save_job(transaction, job, taken)
            transaction.dispatcher.occupy(job.project_uid, served=served_of(transaction, job))
            transaction.emit(
                JobStarted(
                    job_name=job.name,
                    job_uid=job.uid,
                    attempt=again.number,
                    epoch=again.epoch,
                    runner_id=again.runner_id,
                )
            )
    except IntegrityError:
        log.warning("lost_attempt_too_late", job=job.name, attempt=attempt.number)
        return
    log.warning("lost_attempt_taken_up_again", job=job.name, attempt=attempt.number, runner=report.runner_id)


def record_checkpoints(transaction: Transaction, job: Job, checkpoints: Iterable[Checkpoint]) -> Job:
    """Record checkpoints of the job's newest epoch, each once. Those of older epochs change nothing."""
    after = job
    for checkpoint in checkpoints:
        if checkpoint.key.epoch != job.epoch or find_checkpoint(transaction.connection, checkpoint.key) is not None:
            continue
        if checkpoint.best:
            best = update(tables.checkpoints).where(tables.checkpoints.c.job_uid == job.uid, tables.checkpoints.c.best)
            transaction.connection.execute(best.values(best=False))
        transaction.connection.execute(insert(tables.checkpoints), checkpoint_to_row(checkpoint))
        transaction.emit(CheckpointSaved(job_name=job.name, job_uid=job.uid, checkpoint=checkpoint))
        after = domain.record(after, checkpoint.key)
    return save_job(transaction, job, after)


def look_up_checkpoint(transaction: Transaction, key: CheckpointKey) -> Checkpoint | None:
    """As `find_checkpoint`, in the middle of a transaction, without a savepoint."""
    row = transaction.look_up(_CHECKPOINT, job_uid=key.job_uid, epoch=key.epoch, iteration=key.iteration)
    return checkpoint_from_row(row) if row is not None else None


def find_checkpoint(connection: Connection, key: CheckpointKey) -> Checkpoint | None:
    """The checkpoint; None where none is recorded."""
    row = _CHECKPOINT.one(connection, {"job_uid": key.job_uid, "epoch": key.epoch, "iteration": key.iteration})
    return checkpoint_from_row(row) if row is not None else None


def _job_update(before: Job, after: Job) -> tuple[Statement, Values]:
    values = changes(job_to_row(before), job_to_row(after))
    return _update_job(frozenset(values)), {**values, "is_uid": before.uid, "is_revision": before.revision}


def _attempt_update(before: Attempt, after: Attempt) -> tuple[Statement, Values]:
    values = changes(attempt_to_row(before), attempt_to_row(after))
    return _update_attempt(frozenset(values)), {**values, "is_uid": before.job_uid, "is_epoch": before.epoch}


@lru_cache(maxsize=UPDATES_MAX)
def _update_job(columns: frozenset[str]) -> Statement:
    jobs = tables.jobs
    is_it = (jobs.c.uid == bindparam("is_uid")) & (jobs.c.revision == bindparam("is_revision"))
    return Statement(update(jobs).where(is_it).values({name: bindparam(name) for name in columns}), guarded=True)


@lru_cache(maxsize=UPDATES_MAX)
def _update_attempt(columns: frozenset[str]) -> Statement:
    attempts = tables.attempts
    is_it = (attempts.c.job_uid == bindparam("is_uid")) & (attempts.c.epoch == bindparam("is_epoch"))
    query = update(attempts).where(is_it, attempts.c.active)
    return Statement(query.values({name: bindparam(name) for name in columns}), guarded=True)


def _emit_changes(transaction: Transaction, before: Job, after: Job) -> None:
    """The events that a change of the job's state means. A claim's says more, and is sent with the claim."""
    if after.state is JobState.RUNNING and before.state is not JobState.RUNNING:
        transaction.emit(JobRunning(job_name=after.name, job_uid=after.uid, attempt=after.attempts))
    if after.state is JobState.STOPPING and after.stop is not before.stop:
        assert after.stop is not StopMode.NONE, "a job that stops was asked to"
        transaction.emit(JobStopping(job_name=after.name, job_uid=after.uid, mode=after.stop))
    if after.state in FINAL and before.state not in FINAL:
        transaction.emit(
            JobEnded(
                job_name=after.name,
                job_uid=after.uid,
                state=after.state,
                reason=after.reason,
                message=after.reason_message,
            )
        )
