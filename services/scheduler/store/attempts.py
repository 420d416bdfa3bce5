"""Jobs, attempts and checkpoints inside a transaction: loaded, changed by the domain, saved with their events.

Each save is guarded by what was read; nothing here decides what happens, that is `services.scheduler.job`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy import Connection, bindparam, insert, select, update

from services.chassis.errors import NotFound, Reason, Unavailable
from services.scheduler import job as domain
from services.scheduler.fact import AttemptLost, CheckpointSaved, JobEnded, JobRunning, JobStarted, JobStopping
from services.scheduler.job import (
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
from services.scheduler.lease import AttemptKey, Runner, key_of
from services.scheduler.store import tables
from services.scheduler.store.queue import enter_queue, leave_queue, refresh_queue
from services.scheduler.store.rows import (
    attempt_from_row,
    attempt_to_row,
    changes,
    checkpoint_from_row,
    checkpoint_to_row,
    job_from_row,
    job_to_row,
)
from services.scheduler.store.transaction import Transaction

# Built once: see `queue`.
_INSERT_JOB = insert(tables.jobs)
_INSERT_ATTEMPT = insert(tables.attempts)
_SERVE = update(tables.projects).where(tables.projects.c.uid == bindparam("id")).values(served=bindparam("at"))
_JOB_BY_UID = select(tables.jobs).where(tables.jobs.c.uid == bindparam("id"))
_ACTIVE_OF_RUNNER = select(tables.attempts).where(
    tables.attempts.c.runner_id == bindparam("id"), tables.attempts.c.active
)


def find_job(connection: Connection, project_id: str, job_id: str) -> Job:
    """The job of this name, or NotFound."""
    jobs = tables.jobs
    row = connection.execute(
        select(jobs)
        .join(tables.projects, tables.projects.c.uid == jobs.c.project_uid)
        .where(tables.projects.c.project_id == project_id, jobs.c.job_id == job_id)
    ).one_or_none()
    if row is None:
        name = f"projects/{project_id}/jobs/{job_id}"
        raise NotFound(Reason.JOB_NOT_FOUND, f"{name} does not exist", {"name": name})
    return job_from_row(row)


def load_job(connection: Connection, uid: str) -> Job | None:
    """The job with this uid; None where there is none (any more)."""
    row = connection.execute(_JOB_BY_UID, {"id": uid}).one_or_none()
    return job_from_row(row) if row is not None else None


def insert_job(transaction: Transaction, job: Job, *, served: int) -> None:
    """Write a new job and put it into the queue. `served`: its project's. IntegrityError where the name is taken."""
    transaction.connection.execute(_INSERT_JOB, job_to_row(job))
    if job.labels:
        rows = [{"job_uid": job.uid, "key": key, "value": value} for key, value in job.labels.items()]
        transaction.connection.execute(insert(tables.job_labels), rows)
    enter_queue(transaction, job, served)


def save_job(transaction: Transaction, before: Job, after: Job) -> Job:
    """Write what changed, with a new revision and the events that it means."""
    if after == before:
        return before
    after = replace(after, revision=transaction.next_revision())
    jobs = tables.jobs
    query = update(jobs).where(jobs.c.uid == before.uid, jobs.c.revision == before.revision)
    result = transaction.connection.execute(query.values(changes(job_to_row(before), job_to_row(after))))
    if result.rowcount != 1:
        raise Unavailable(Reason.DATABASE_UNAVAILABLE, f"{before.name} was changed by another: send the call again")
    if before.ready != after.ready and after.state is not JobState.STARTING:
        refresh_queue(transaction, after.project_uid)
    _emit_changes(transaction, before, after)
    return after


def claim_job(transaction: Transaction, job_uid: str, runner: Runner, *, lease_seconds: float) -> Attempt:
    """Give a ready job to a runner: attempt and lease in one. Raises IntegrityError where a slot is taken."""
    job = load_job(transaction.connection, job_uid)
    assert job is not None, "the job was chosen in this transaction"
    claimed, attempt = domain.claim(
        job,
        runner_id=runner.runner_id,
        session=runner.session,
        software_version=runner.capabilities.software_version,
        now_us=transaction.now_us,
        lease_seconds=lease_seconds,
    )
    row = {**attempt_to_row(attempt), "project_uid": job.project_uid, "adopted": False}
    transaction.connection.execute(_INSERT_ATTEMPT, row)
    claimed = save_job(transaction, job, claimed)
    transaction.connection.execute(_SERVE, {"id": job.project_uid, "at": claimed.revision})
    leave_queue(transaction, job.project_uid)
    transaction.emit(
        JobStarted(
            job_name=job.name,
            job_uid=job.uid,
            attempt=attempt.number,
            epoch=attempt.epoch,
            runner_id=runner.runner_id,
        )
    )
    transaction.wake_runner(runner.runner_id)
    return attempt


def find_attempt(connection: Connection, key: AttemptKey) -> Attempt | None:
    """The attempt; None where there is none (any more)."""
    attempts = tables.attempts
    query = select(attempts).where(attempts.c.job_uid == key.job_uid, attempts.c.epoch == key.epoch)
    row = connection.execute(query).one_or_none()
    return attempt_from_row(row) if row is not None else None


def active_attempt(connection: Connection, runner_id: str) -> Attempt | None:
    """The attempt that a runner should hold."""
    row = connection.execute(_ACTIVE_OF_RUNNER, {"id": runner_id}).one_or_none()
    return attempt_from_row(row) if row is not None else None


def save_attempt(transaction: Transaction, before: Attempt, after: Attempt) -> None:
    """Write what changed in an active attempt."""
    if after == before:
        return
    attempts = tables.attempts
    query = update(attempts).where(
        attempts.c.job_uid == before.job_uid, attempts.c.epoch == before.epoch, attempts.c.active
    )
    result = transaction.connection.execute(query.values(changes(attempt_to_row(before), attempt_to_row(after))))
    if result.rowcount != 1:
        raise Unavailable(Reason.DATABASE_UNAVAILABLE, "the attempt was closed by another: send the call again")


def close_attempt(
    transaction: Transaction,
    attempt: Attempt,
    *,
    outcome: AttemptOutcome,
    reason: JobReason,
    message: str,
    lost_attempts_max: int,
    iteration: int = 0,
) -> Job:
    """End an active attempt; what that means for its job is the domain's. The slots of project and runner are free.

    `iteration`: steps that were done, where the runner said so.
    """
    job = load_job(transaction.connection, attempt.job_uid)
    assert job is not None, "a job with an active attempt is never deleted"
    after, over = domain.close(
        job,
        attempt,
        outcome=outcome,
        reason=reason,
        message=message,
        now_us=transaction.now_us,
        lost_attempts_max=lost_attempts_max,
    )
    after = replace(after, progress=replace(after.progress, iteration=max(iteration, after.progress.iteration)))
    save_attempt(transaction, attempt, over)
    saved = save_job(transaction, job, after)
    refresh_queue(transaction, saved.project_uid)
    if outcome in (AttemptOutcome.LOST, AttemptOutcome.HANDED_BACK):
        transaction.emit(
            AttemptLost(
                job_name=job.name,
                job_uid=job.uid,
                attempt=attempt.number,
                runner_id=attempt.runner_id,
                outcome=outcome,
            )
        )
    transaction.wake_runner(attempt.runner_id)
    transaction.adopt(key_of(attempt))
    return saved


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


def find_checkpoint(connection: Connection, key: CheckpointKey) -> Checkpoint | None:
    """The checkpoint; None where none is recorded."""
    table = tables.checkpoints
    row = connection.execute(
        select(table).where(
            table.c.job_uid == key.job_uid, table.c.epoch == key.epoch, table.c.iteration == key.iteration
        )
    ).one_or_none()
    return checkpoint_from_row(row) if row is not None else None


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
