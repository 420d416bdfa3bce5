"""What time does to the rows: leases and deadlines run out, old things are forgotten.

Every call is one transaction, and each update is guarded by the state that it ends. The clock is the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.sql.elements import ColumnElement

from services.scheduler.fact import RunnerLost
from services.scheduler.job import (
    ACTIVE,
    SECOND_US,
    Attempt,
    AttemptOutcome,
    AttemptPhase,
    Checkpoint,
    Job,
    JobReason,
    JobState,
)
from services.scheduler.lease import AttemptKey
from services.scheduler.store import tables
from services.scheduler.store.attempts import close_attempt, load_job, record_checkpoints, save_job
from services.scheduler.store.database import Database
from services.scheduler.store.jobs import OLDEST_CURSOR
from services.scheduler.store.requests import forget_requests
from services.scheduler.store.rows import attempt_from_row
from services.scheduler.store.runners import Renewal
from services.scheduler.store.transaction import Transaction

EXPIRED_MAX = 500
"""Attempts that one transaction closes; the next second takes the rest."""
HOUR_US = 3_600 * SECOND_US


@dataclass(frozen=True, kw_only=True)
class UpkeepLimits:
    """How long things may take, and how long they are kept."""

    lease_seconds: float
    starting_minutes_max: float
    uploading_minutes_max: float
    lost_attempts_max: int
    request_id_hours: float
    removed_job_hours: float
    outbox_days_max: float


class Upkeep:
    """Called by `reconcile` alone."""

    def __init__(self, database: Database, limits: UpkeepLimits) -> None:
        self._database = database
        self._limits = limits

    async def restart_clocks(self) -> None:
        """Nobody could renew while the scheduler was away: every lease and every deadline begins again."""

        def restart(transaction: Transaction) -> None:
            now_us, connection = transaction.now_us, transaction.connection
            lease_us = now_us + self._lease_us
            attempts, jobs, runners = tables.attempts, tables.jobs, tables.runners
            connection.execute(
                update(attempts).where(attempts.c.active).values(lease_expire_time_us=lease_us, progress_time_us=now_us)
            )
            # A runner that could not be reached must still have its grace period: it is counted from now on again.
            grace_us = jobs.c.stop_grace_seconds * SECOND_US
            connection.execute(
                update(jobs)
                .where(jobs.c.stop_deadline_us.is_not(None))
                .values(stop_deadline_us=now_us + self._lease_us + grace_us)
            )
            connection.execute(update(runners).where(~runners.c.lost).values(heartbeat_time_us=now_us))

        await self._database.write(restart)

    async def renew_and_expire(self, renewals: Sequence[Renewal]) -> list[Attempt]:
        """Write down who was heard of since the last time, then close what has run out; return what was closed."""
        return await self._database.write(lambda tx: self._renew_and_expire(tx, renewals))

    async def attempts_to_adopt(self, limit: int) -> list[Attempt]:
        """Ended attempts whose checkpoints have not been looked for, the oldest first."""
        attempts = tables.attempts
        query = select(attempts).where(~attempts.c.active, ~attempts.c.adopted)
        query = query.order_by(attempts.c.end_time_us).limit(limit)
        return await self._database.read(lambda c: [attempt_from_row(row) for row in c.execute(query)])

    async def adopt(self, key: AttemptKey, checkpoints: Sequence[Checkpoint]) -> None:
        """Record what was found of an ended attempt; its job, if it is queued again, may be claimed now."""

        def adopt(transaction: Transaction) -> None:
            attempts = tables.attempts
            query = update(attempts).where(attempts.c.job_uid == key.job_uid, attempts.c.epoch == key.epoch)
            transaction.connection.execute(query.values(adopted=True))
            job = load_job(transaction.connection, key.job_uid)
            if job is None:
                return
            job = record_checkpoints(transaction, job, checkpoints)
            if job.held and job.epoch == key.epoch:
                save_job(transaction, job, replace(job, held=False))

        await self._database.write(adopt)

    async def forget(self) -> None:
        """Drop what has been kept long enough."""

        def forget(transaction: Transaction) -> None:
            now_us, limits = transaction.now_us, self._limits
            forget_requests(transaction, before_us=now_us - round(limits.request_id_hours * HOUR_US))
            _forget_removed(transaction, before_us=now_us - round(limits.removed_job_hours * HOUR_US))
            oldest_us = now_us - round(limits.outbox_days_max * 24 * HOUR_US)
            transaction.connection.execute(delete(tables.outbox).where(tables.outbox.c.create_time_us < oldest_us))

        await self._database.write(forget)

    @property
    def _lease_us(self) -> int:
        return round(self._limits.lease_seconds * SECOND_US)

    def _renew_and_expire(self, transaction: Transaction, renewals: Sequence[Renewal]) -> list[Attempt]:
        self._renew(transaction, renewals)
        closed = [
            *self._close_where(transaction, tables.attempts.c.lease_expire_time_us <= transaction.now_us, _lost),
            *self._close_where(transaction, self._starting_too_long(transaction.now_us), self._late_start),
            *self._close_where(transaction, self._stopping_too_long(transaction.now_us), _late_stop),
        ]
        self._lose_runners(transaction)
        return closed

    def _renew(self, transaction: Transaction, renewals: Sequence[Renewal]) -> None:
        """Two statements, however many were heard of, and one for each job that has moved on."""
        if not renewals:
            return
        attempts, runners, connection = tables.attempts, tables.runners, transaction.connection
        heard = update(runners).where(runners.c.runner_id == bindparam("id"))
        connection.execute(
            heard.values(heartbeat_time_us=bindparam("time_us")),
            [{"id": renewal.runner_id, "time_us": transaction.now_us - renewal.age_us} for renewal in renewals],
        )
        held = [
            {
                "uid": renewal.key.job_uid,
                "of_epoch": renewal.key.epoch,
                "expire_time_us": transaction.now_us - renewal.age_us + self._lease_us,
            }
            for renewal in renewals
            if renewal.key is not None
        ]
        if held:
            lease = update(attempts).where(
                attempts.c.job_uid == bindparam("uid"), attempts.c.epoch == bindparam("of_epoch"), attempts.c.active
            )
            connection.execute(lease.values(lease_expire_time_us=bindparam("expire_time_us")), held)
        for renewal in renewals:
            self._save_progress(transaction, renewal)

    def _save_progress(self, transaction: Transaction, renewal: Renewal) -> None:
        if renewal.key is None or renewal.progress is None:
            return
        job = load_job(transaction.connection, renewal.key.job_uid)
        if job is None or job.epoch != renewal.key.epoch or job.state not in ACTIVE or job.progress == renewal.progress:
            return
        save_job(transaction, job, replace(job, progress=renewal.progress))
        attempts = tables.attempts
        attempt = update(attempts).where(attempts.c.job_uid == job.uid, attempts.c.epoch == job.epoch)
        transaction.connection.execute(attempt.values(progress_time_us=transaction.now_us - renewal.age_us))

    def _starting_too_long(self, now_us: int) -> ColumnElement[bool]:
        attempts = tables.attempts
        early = [AttemptPhase.ASSIGNED.value, AttemptPhase.DOWNLOADING.value, AttemptPhase.PREPARING.value]
        limit_us = now_us - round(self._limits.starting_minutes_max * 60 * SECOND_US)
        return attempts.c.phase.in_(early) & (attempts.c.progress_time_us <= limit_us)

    def _stopping_too_long(self, now_us: int) -> ColumnElement[bool]:
        """The grace period is over before the checkpoint was written, or its upload stands still."""
        attempts, jobs = tables.attempts, tables.jobs
        late = select(jobs.c.uid).where(jobs.c.stop_deadline_us.is_not(None), jobs.c.stop_deadline_us <= now_us)
        limit_us = now_us - round(self._limits.uploading_minutes_max * 60 * SECOND_US)
        uploads = attempts.c.phase == AttemptPhase.UPLOADING.value
        return attempts.c.job_uid.in_(late) & (~uploads | (attempts.c.progress_time_us <= limit_us))

    def _late_start(self, job: Job, attempt: Attempt) -> _End:
        outcome = AttemptOutcome.STOPPED if job.state is JobState.STOPPING else AttemptOutcome.FAILED
        message = f"no progress for {self._limits.starting_minutes_max:g} minutes while {attempt.phase.lower()}"
        return _End(outcome=outcome, reason=JobReason.START_DEADLINE, message=message)

    def _close_where(self, transaction: Transaction, condition: ColumnElement[bool], end_of: _EndOf) -> list[Attempt]:
        attempts = tables.attempts
        query = select(attempts).where(attempts.c.active, condition).limit(EXPIRED_MAX)
        closed = [attempt_from_row(row) for row in transaction.connection.execute(query).all()]
        for attempt in closed:
            job = load_job(transaction.connection, attempt.job_uid)
            assert job is not None, "a job with an active attempt is never deleted"
            end = end_of(job, attempt)
            close_attempt(
                transaction,
                attempt,
                outcome=end.outcome,
                reason=end.reason,
                message=end.message,
                lost_attempts_max=self._limits.lost_attempts_max,
            )
        return closed

    def _lose_runners(self, transaction: Transaction) -> None:
        runners = tables.runners
        silent = (~runners.c.lost) & (runners.c.heartbeat_time_us <= transaction.now_us - self._lease_us)
        query = update(runners).where(silent).values(lost=True).returning(runners.c.runner_id)
        for runner_id in transaction.connection.execute(query).scalars().all():
            transaction.emit(RunnerLost(runner_id=runner_id))
            # A slot may have been kept for a job that only this runner could serve.
            transaction.place_everywhere = True


@dataclass(frozen=True, kw_only=True)
class _End:
    outcome: AttemptOutcome
    reason: JobReason
    message: str


_EndOf: TypeAlias = Callable[[Job, Attempt], _End]


def _lost(_job: Job, attempt: Attempt) -> _End:
    message = f"runners/{attempt.runner_id} went silent"
    return _End(outcome=AttemptOutcome.LOST, reason=JobReason.RUNNER_LOST, message=message)


def _late_stop(_job: Job, attempt: Attempt) -> _End:
    message = f"the runner did not end within the grace period; it was {attempt.phase.lower()}"
    return _End(outcome=AttemptOutcome.STOPPED, reason=JobReason.USER_STOP, message=message)


def _forget_removed(transaction: Transaction, *, before_us: int) -> None:
    """Forget old deletions; watches can go on from the newest of them only."""
    removed, counters, connection = tables.removed_jobs, tables.counters, transaction.connection
    newest = connection.execute(
        select(func.max(removed.c.revision)).where(removed.c.create_time_us < before_us)
    ).scalar_one()
    if newest is None:
        return
    connection.execute(delete(removed).where(removed.c.revision <= newest))
    connection.execute(update(counters).where(counters.c.name == OLDEST_CURSOR).values(value=newest))
