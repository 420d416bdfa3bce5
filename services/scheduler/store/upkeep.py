"""What time does to the rows: leases and deadlines run out, old things are forgotten.

Every call is one transaction, and each update is guarded by the state that it ends. The clock is the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Column, Row, bindparam, case, func, select, update
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.log import get_logger
from services.scheduler.domain.ending import RetryLimits
from services.scheduler.domain.fact import RunnerLost
from services.scheduler.domain.job import (
    SECOND_US,
    Attempt,
    AttemptOutcome,
    AttemptPhase,
    Job,
    JobReason,
    JobState,
    avoiding_none,
)
from services.scheduler.domain.timekeeping import ClockLimits, Guard, Look, SilenceLimits, outage, step_us
from services.scheduler.store import tables
from services.scheduler.store.attempts import close_attempt, load_job, save_job
from services.scheduler.store.credentials import forget_credentials
from services.scheduler.store.database import Database
from services.scheduler.store.forgetting import ROWS_MAX, KeepingLimits, forget_old
from services.scheduler.store.placing import Placing
from services.scheduler.store.registration import save_runner
from services.scheduler.store.restart import WaitLimits, restart_clocks
from services.scheduler.store.rows import attempt_from_row, job_from_row, progress_to_json, runner_from_row
from services.scheduler.store.runners import Renewal
from services.scheduler.store.statement import Statement
from services.scheduler.store.transaction import Transaction

log = get_logger(__name__)

EXPIRED_MAX = 500
"""Attempts that one transaction closes; the next second takes the rest."""
SILENT_SHARE = 0.6
"""Of a lease: a runner that was not heard of for longer has missed a call."""

_SET_PROGRESS = Statement(
    update(tables.attempts)
    .where(
        tables.attempts.c.job_uid == bindparam("of_uid"),
        tables.attempts.c.epoch == bindparam("of_epoch"),
        tables.attempts.c.active,
    )
    .values(progress=bindparam("how_far"), progress_time_us=bindparam("time_us"))
)


@dataclass(frozen=True, kw_only=True)
class UpkeepLimits:
    """How long things may take, and how long they are kept."""

    lease_seconds: float
    starting_minutes_max: float
    stalled_minutes_max: float
    uploading_minutes_max: float
    retry: RetryLimits
    clocks: ClockLimits
    silence: SilenceLimits
    keeping: KeepingLimits
    waits: WaitLimits
    parked_minutes: float = 10.0
    """How long what cannot be dealt with is left alone, before it is tried, and logged, again."""


class Upkeep:
    """Called by the loops alone. `monotonic` is in seconds."""

    def __init__(
        self, database: Database, placing: Placing, limits: UpkeepLimits, *, monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._placing = placing
        self._limits = limits
        self._monotonic = monotonic
        self._seen = _Seen()
        self._parked: dict[str, float] = {}
        """Records that could not be dealt with, and when they are tried again; see `_apart`."""

    async def restart_clocks(self) -> None:
        """Nobody could renew while the scheduler was away: every lease and every deadline begins again."""
        await self._database.write(self._restart_clocks, control=True)

    async def renew_and_expire(self, renewals: Sequence[Renewal]) -> list[Attempt]:
        """Write down who was heard of since the last time, then close what has run out; return what was closed.

        Where the clocks do not agree, or the look came late, the clocks restart instead and nothing is closed.
        """
        asked_seconds = self._monotonic()
        closed, seen, forward_us = await self._database.write(
            lambda tx: self._renew_and_expire(tx, renewals, asked_seconds), control=True
        )
        # Not before it is on disk: what was not done is seen again, and done then.
        self._database.clock_ahead_us = max(self._database.clock_ahead_us + forward_us, 0)
        self._seen = seen
        return closed

    async def forget(self) -> None:
        """Drop what has been kept long enough. A clock that was set forward makes nothing old."""
        limits, database = self._limits.keeping, self._database
        while await database.write(lambda tx: forget_old(tx, limits, database.old_time_us(tx.now_us))) >= ROWS_MAX:
            pass
        await forget_credentials(self._database)

    @property
    def _lease_us(self) -> int:
        return round(self._limits.lease_seconds * SECOND_US)

    def _restart_clocks(self, transaction: Transaction, back_us: int = 0) -> None:
        restart_clocks(transaction, lease_us=self._lease_us, waits=self._limits.waits, back_us=back_us)

    def _renew_and_expire(
        self, transaction: Transaction, renewals: Sequence[Renewal], asked_seconds: float
    ) -> tuple[list[Attempt], _Seen, int]:
        """What was closed, what was seen, and by how much (us) the clock was set forward since the look before."""
        before, clocks = self._seen, self._limits.clocks
        look = Look(asked_seconds=asked_seconds, taken_seconds=self._monotonic(), now_us=transaction.now_us)
        step = step_us(before.look, look, clocks)
        seen = replace(before, look=look)
        self._renew(transaction, renewals)
        if problem := outage(before.look, look, clocks):
            log.warning("clocks_restarted", problem=problem)
            self._restart_clocks(transaction, back_us=max(-step, 0))
            return [], seen, step
        seen = replace(seen, guard=self._guarded(transaction, look))
        closed = []
        if not seen.guard.holds(look.taken_seconds, self._limits.silence):
            closed += self._close_where(transaction, tables.attempts.c.lease_expire_time_us <= look.now_us, _lost)
            self._lose_runners(transaction)
        closed += self._close_where(transaction, self._starting_too_long(look.now_us), self._late_start)
        closed += self._close_where(transaction, self._stalled(look.now_us), self._standing_still)
        closed += self._close_where(transaction, self._stopping_too_long(look.now_us), _late_stop)
        self._let_retry(transaction)
        self._let_go_anywhere(transaction)
        self._take_back(transaction)
        return closed, seen, step

    def _guarded(self, transaction: Transaction, look: Look) -> Guard:
        """Whether so many runners are silent that it must be something else."""
        before, runners = self._seen.guard, tables.runners
        silent_us = look.now_us - round(SILENT_SHARE * self._lease_us)
        counted = select(func.count(), func.sum(case((runners.c.heartbeat_time_us <= silent_us, 1), else_=0)))
        registered, silent = transaction.connection.execute(counted.where(~runners.c.lost)).one()
        guard = before.after(
            silent=silent or 0, registered=registered, now_seconds=look.taken_seconds, limits=self._limits.silence
        )
        if guard.since_seconds is not None and before.since_seconds is None:
            log.warning("leases_held", silent=silent, registered=registered)
        return guard

    def _let_retry(self, transaction: Transaction) -> None:
        """The pause after a fault is over: the jobs are ready again."""
        self._change_due(transaction, tables.jobs.c.retry_time_us, lambda job: replace(job, retry_time_us=None))

    def _let_go_anywhere(self, transaction: Transaction) -> None:
        """Jobs have kept away from the runners that failed with them for long enough."""
        self._change_due(transaction, tables.jobs.c.avoid_until_us, avoiding_none)

    def _change_due(self, transaction: Transaction, due_us: Column[int], change: Callable[[Job], Job]) -> None:
        query = select(tables.jobs).where(due_us.is_not(None), due_us <= transaction.now_us)
        rows = transaction.connection.execute(query.order_by(due_us).limit(EXPIRED_MAX)).all()
        for row in self._sound(rows, lambda row: f"job {row.uid}"):
            with self._apart(transaction, "job_not_changed", f"job {row.uid}"):
                job = job_from_row(row._mapping)
                save_job(transaction, job, change(job))

    def _take_back(self, transaction: Transaction) -> None:
        """Runners that were put aside for long enough take jobs again; one more failure puts them aside for longer."""
        runners = tables.runners
        over = runners.c.put_aside_until_us <= transaction.now_us
        query = select(runners).where(runners.c.put_aside_until_us.is_not(None), over)
        rows = transaction.connection.execute(query.order_by(runners.c.put_aside_until_us).limit(EXPIRED_MAX)).all()
        for row in self._sound(rows, lambda row: f"runner {row.runner_id}"):
            with self._apart(transaction, "runner_not_taken_back", f"runner {row.runner_id}"):
                before = runner_from_row(row._mapping)
                runner = replace(before, put_aside_until_us=None, put_aside_reason="")
                save_runner(transaction, before, runner)
                if not runner.lost:
                    self._placing.wait_anew(transaction, runner)
                transaction.wake_runner(runner.runner_id)

    def _renew(self, transaction: Transaction, renewals: Sequence[Renewal]) -> None:
        """Two statements, however many were heard of, and one for all that have moved on."""
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
        self._save_progress(transaction, renewals)

    def _save_progress(self, transaction: Transaction, renewals: Sequence[Renewal]) -> None:
        """One statement, however many have moved on, and no revision. An attempt that is over changes nothing."""
        moved = [
            {
                "of_uid": renewal.key.job_uid,
                "of_epoch": renewal.key.epoch,
                "how_far": progress_to_json(renewal.progress),
                "time_us": transaction.now_us - renewal.age_us,
            }
            for renewal in renewals
            if renewal.key is not None and renewal.progress is not None
        ]
        if moved:
            transaction.together([transaction.changing(_SET_PROGRESS, moved)])
            for row in moved:
                transaction.move_on(str(row["of_uid"]))

    def _starting_too_long(self, now_us: int) -> ColumnElement[bool]:
        attempts = tables.attempts
        early = [AttemptPhase.ASSIGNED.value, AttemptPhase.DOWNLOADING.value, AttemptPhase.PREPARING.value]
        limit_us = now_us - round(self._limits.starting_minutes_max * 60 * SECOND_US)
        return attempts.c.phase.in_(early) & (attempts.c.progress_time_us <= limit_us)

    def _stalled(self, now_us: int) -> ColumnElement[bool]:
        """A trainer that runs, and says nothing new for too long. What is being stopped has deadlines of its own."""
        attempts, jobs = tables.attempts, tables.jobs
        limit_us = now_us - round(self._limits.stalled_minutes_max * 60 * SECOND_US)
        stops = select(jobs.c.uid).where(jobs.c.stop_deadline_us.is_not(None))
        late = [AttemptPhase.TRAINING.value, AttemptPhase.CHECKPOINTING.value, AttemptPhase.UPLOADING.value]
        standing = attempts.c.phase.in_(late) & (attempts.c.progress_time_us <= limit_us)
        return standing & attempts.c.job_uid.not_in(stops)

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

    def _standing_still(self, _job: Job, attempt: Attempt) -> _End:
        message = f"no progress for {self._limits.stalled_minutes_max:g} minutes while {attempt.phase.lower()}"
        return _End(outcome=AttemptOutcome.FAILED, reason=JobReason.STALLED, message=message)

    def _close_where(self, transaction: Transaction, condition: ColumnElement[bool], end_of: _EndOf) -> list[Attempt]:
        """Close what the condition names, each in a savepoint of its own: one that cannot be closed harms no other."""
        attempts, closed = tables.attempts, []
        query = select(attempts).where(attempts.c.active, condition).order_by(attempts.c.progress_time_us)
        rows = transaction.connection.execute(query.limit(EXPIRED_MAX)).all()
        for row in self._sound(rows, lambda row: f"attempt {row.job_uid}/{row.number}"):
            with self._apart(transaction, "attempt_not_closed", f"attempt {row.job_uid}/{row.number}"):
                attempt = attempt_from_row(row._mapping)
                job = load_job(transaction.connection, attempt.job_uid)
                assert job is not None, "a job with an active attempt is never deleted"
                end = end_of(job, attempt)
                close_attempt(
                    transaction,
                    attempt,
                    outcome=end.outcome,
                    reason=end.reason,
                    message=end.message,
                    limits=self._limits.retry,
                )
                closed.append(attempt)
        return closed

    def _sound(self, rows: Sequence[Row[Any]], name: Callable[[Row[Any]], str]) -> list[Row[Any]]:
        """The rows but for those that are left alone."""
        now_seconds = self._monotonic()
        self._parked = {each: until for each, until in self._parked.items() if until > now_seconds}
        return [row for row in rows if name(row) not in self._parked]

    @contextmanager
    def _apart(self, transaction: Transaction, event: str, record: str) -> Iterator[None]:
        """See `Transaction.apart`. What fails is left alone for a while: it would fill the log.

        Trouble of the database, which is raised, is no fault of the record.
        """
        is_done = False
        with transaction.apart(event, record=record):
            yield
            is_done = True
        if not is_done:
            self._parked[record] = self._monotonic() + 60 * self._limits.parked_minutes

    def _lose_runners(self, transaction: Transaction) -> None:
        runners = tables.runners
        silent = (~runners.c.lost) & (runners.c.heartbeat_time_us <= transaction.now_us - self._lease_us)
        query = update(runners).where(silent).values(lost=True).returning(runners.c.runner_id)
        for runner_id in transaction.connection.execute(query).scalars().all():
            transaction.emit(RunnerLost(runner_id=runner_id))
            transaction.dispatcher.unregister(runner_id)
            transaction.wake_runner(runner_id)


class _Seen(Struct, frozen=True, kw_only=True):
    """The last look at the leases."""

    look: Look | None = None
    guard: Guard = Guard()


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
