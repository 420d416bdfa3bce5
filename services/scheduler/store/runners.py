"""Runners in the database: what they report is applied here, in one transaction a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, insert, select, tuple_, update

from services.chassis.errors import Aborted, NotFound, Reason
from services.scheduler import job as domain
from services.scheduler.fact import RunnerDrained, RunnerJoined
from services.scheduler.job import (
    SECOND_US,
    Attempt,
    AttemptOutcome,
    Checkpoint,
    CheckpointKey,
    Job,
    JobReason,
    JobState,
    Progress,
)
from services.scheduler.lease import ActiveReport, AttemptKey, ClosedReport, Grip, Report, Runner, grip
from services.scheduler.store import tables
from services.scheduler.store.attempts import (
    active_attempt,
    close_attempt,
    find_attempt,
    find_checkpoint,
    load_job,
    record_checkpoints,
    save_attempt,
    save_job,
)
from services.scheduler.store.claims import Claims, WaitingCall
from services.scheduler.store.database import Database
from services.scheduler.store.requests import Request, answered
from services.scheduler.store.rows import attempt_from_row, changes, runner_from_row, runner_to_row
from services.scheduler.store.transaction import Transaction

SESSIONS_KEPT = 16
"""Sessions of a runner that are known to be over."""
LOST_BY_RUNNER = "the runner came without the attempt that it held"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A runner and what it should hold. `resume`: the checkpoint that the attempt begins at."""

    runner: Runner
    attempt: Attempt | None = None
    job: Job | None = None
    resume: Checkpoint | None = None


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """A call that said nothing new but that runner and attempt are alive, and how far they are: `age_us` ago."""

    runner_id: str
    age_us: int
    key: AttemptKey | None = None
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class RunnerView:
    """A runner and the job that it works on."""

    runner: Runner
    job_name: str


class RunnerStore:
    """Runners. `claims` gives jobs to idle ones."""

    def __init__(self, database: Database, claims: Claims, *, lease_seconds: float, lost_attempts_max: int) -> None:
        self._database = database
        self._claims = claims
        self._lease_us = round(lease_seconds * SECOND_US)
        self._lost_attempts_max = lost_attempts_max

    async def synchronize(self, report: Report, call: WaitingCall | None) -> Standing:
        """Apply a report, give an idle runner a job, and return how the runner stands after it.

        Without a job the runner stays in the pool for as long as `call` waits (None: it does not wait). A sequence
        number that is not above the highest one changes nothing. Aborted (SESSION_REPLACED) for an old session.
        """
        return await self._database.write(lambda tx: self._synchronize(tx, report, call))

    async def standing(self, runner_id: str) -> Standing | None:
        """How the runner stands; None where it is unknown."""
        return await self._database.read(lambda connection: _standing(connection, runner_id))

    async def attempts(self, keys: Sequence[AttemptKey]) -> dict[AttemptKey, tuple[Attempt, str]]:
        """Those of the attempts that exist, with their projects' ids."""
        if not keys:
            return {}

        def read(connection: Connection) -> dict[AttemptKey, tuple[Attempt, str]]:
            attempts, jobs = tables.attempts, tables.jobs
            columns = tuple_(attempts.c.job_uid, attempts.c.epoch)
            query = select(attempts, jobs.c.project_id.label("project_id")).join(jobs, jobs.c.uid == attempts.c.job_uid)
            found = {}
            for row in connection.execute(query.where(columns.in_([(key.job_uid, key.epoch) for key in keys]))):
                key = AttemptKey(job_uid=row.job_uid, epoch=row.epoch)
                found[key] = (attempt_from_row(row, besides=("project_id",)), row.project_id)
            return found

        return await self._database.read(read)

    async def page(self, *, after: str, limit: int) -> list[RunnerView]:
        """Runners by id, those after `after`."""

        def read(connection: Connection) -> list[RunnerView]:
            runners = tables.runners
            query = select(runners).where(runners.c.runner_id > after).order_by(runners.c.runner_id).limit(limit)
            return [_view(connection, runner_from_row(row)) for row in connection.execute(query).all()]

        return await self._database.read(read)

    async def drain(self, request: Request, encode: Callable[[RunnerView], bytes], *, runner_id: str) -> bytes:
        """Let a runner take no new job, and have its attempt handed back."""

        def drain(transaction: Transaction) -> RunnerView:
            runner = _find_runner(transaction.connection, runner_id)
            if runner is None:
                name = f"runners/{runner_id}"
                raise NotFound(Reason.RUNNER_NOT_FOUND, f"{name} does not exist: list the runners", {"name": name})
            _save_runner(transaction, runner, replace(runner, drain_asked=True))
            self._claims.forget(runner_id)
            transaction.wake_runner(runner_id)
            return _view(transaction.connection, replace(runner, drain_asked=True))

        return await self._database.write(lambda tx: answered(tx, request, lambda: drain(tx), encode))

    def _synchronize(self, transaction: Transaction, report: Report, call: WaitingCall | None) -> Standing:
        self._claims.forget(report.runner_id)
        before = _find_runner(transaction.connection, report.runner_id)
        if before is not None and report.session == before.session and report.sequence <= before.sequence:
            return _standing_of(transaction.connection, before)
        runner = _taken_over(transaction, before, report)
        for closed in report.closed:
            self._close(transaction, closed)
        attempt = active_attempt(transaction.connection, report.runner_id)
        if attempt is not None:
            self._observe(transaction, runner, attempt, report)
        if report.active is not None and (attempt is None or report.active.key.epoch != attempt.epoch):
            self._record_late(transaction, report.active.key, report.active.checkpoints)
        if report.active is None and runner.takes_jobs and not _holds(transaction.connection, runner):
            self._claims.claim(transaction, runner, call)
        return _standing_of(transaction.connection, runner)

    def _close(self, transaction: Transaction, closed: ClosedReport) -> None:
        """Record the end of an attempt. A late one, of an attempt that is over already, may still bring checkpoints."""
        self._record_late(transaction, closed.key, closed.checkpoints)
        attempt = find_attempt(transaction.connection, closed.key)
        if attempt is None or not attempt.active:
            return
        close_attempt(
            transaction,
            attempt,
            outcome=closed.outcome,
            reason=closed.reason,
            message=closed.message,
            lost_attempts_max=self._lost_attempts_max,
            iteration=closed.iteration,
        )

    def _record_late(self, transaction: Transaction, key: AttemptKey, checkpoints: Sequence[Checkpoint]) -> None:
        job = load_job(transaction.connection, key.job_uid) if checkpoints else None
        if job is not None:
            record_checkpoints(transaction, job, checkpoints)

    def _observe(self, transaction: Transaction, runner: Runner, attempt: Attempt, report: Report) -> None:
        """Hold the report against the attempt that the runner should have."""
        job = load_job(transaction.connection, attempt.job_uid)
        assert job is not None, "a job with an active attempt is never deleted"
        match grip(attempt, report):
            case Grip.HELD:
                assert report.active is not None, "who holds an attempt names it"
                self._hold(transaction, job, attempt, report.active)
            case Grip.UNACKNOWLEDGED if job.state is JobState.STOPPING:
                self._end(transaction, attempt, AttemptOutcome.STOPPED, "stopped before the runner had it")
            case Grip.UNACKNOWLEDGED if not runner.takes_jobs:
                self._end(transaction, attempt, AttemptOutcome.HANDED_BACK, "the runner was drained before it had it")
            case Grip.UNACKNOWLEDGED:
                lease = transaction.now_us + self._lease_us
                save_attempt(transaction, attempt, replace(attempt, lease_expire_time_us=lease))
            case Grip.LOST:
                self._end(transaction, attempt, AttemptOutcome.LOST, LOST_BY_RUNNER)

    def _hold(self, transaction: Transaction, job: Job, attempt: Attempt, active: ActiveReport) -> None:
        after, seen = domain.observe(job, attempt, phase=active.phase, now_us=transaction.now_us)
        moved_on = active.progress != job.progress
        seen = replace(
            seen,
            lease_expire_time_us=transaction.now_us + self._lease_us,
            progress_time_us=transaction.now_us if moved_on else seen.progress_time_us,
        )
        save_attempt(transaction, attempt, seen)
        after = replace(
            after,
            progress=active.progress,
            dataset_fingerprint=after.dataset_fingerprint or active.dataset_fingerprint,
        )
        record_checkpoints(transaction, save_job(transaction, job, after), active.checkpoints)

    def _end(self, transaction: Transaction, attempt: Attempt, outcome: AttemptOutcome, message: str) -> None:
        reason = JobReason.RUNNER_LOST if outcome is AttemptOutcome.LOST else JobReason.UNSPECIFIED
        close_attempt(
            transaction,
            attempt,
            outcome=outcome,
            reason=reason,
            message=message,
            lost_attempts_max=self._lost_attempts_max,
        )


def _taken_over(transaction: Transaction, before: Runner | None, report: Report) -> Runner:
    """The runner after the call's own part: session, sequence, capabilities."""
    if before is None:
        runner = Runner(
            runner_id=report.runner_id,
            session=report.session,
            sequence=report.sequence,
            capabilities=report.capabilities,
            draining=report.draining,
            heartbeat_time_us=transaction.now_us,
        )
        transaction.connection.execute(insert(tables.runners), runner_to_row(runner))
        transaction.emit(RunnerJoined(runner_id=runner.runner_id))
        return runner
    if report.session in before.replaced:
        raise Aborted(
            Reason.SESSION_REPLACED,
            f"a newer session has taken over {before.name}: this one must end",
            {"runner": before.name},
        )
    is_new = report.session != before.session
    runner = replace(
        before,
        session=report.session,
        sequence=report.sequence,
        capabilities=report.capabilities,
        draining=report.draining,
        drain_asked=before.drain_asked and not is_new,
        lost=False,
        heartbeat_time_us=transaction.now_us,
        replaced=(before.session, *before.replaced)[:SESSIONS_KEPT] if is_new else before.replaced,
    )
    _save_runner(transaction, before, runner)
    if is_new:
        transaction.wake_runner(runner.runner_id)
    if is_new or before.lost:
        transaction.emit(RunnerJoined(runner_id=runner.runner_id))
    return runner


def _save_runner(transaction: Transaction, before: Runner, after: Runner) -> None:
    values = changes(runner_to_row(before), runner_to_row(after))
    if values:
        query = update(tables.runners).where(tables.runners.c.runner_id == after.runner_id)
        transaction.connection.execute(query.values(values))
    if before.takes_jobs and not after.takes_jobs:
        transaction.emit(RunnerDrained(runner_id=after.runner_id))


def _find_runner(connection: Connection, runner_id: str) -> Runner | None:
    row = connection.execute(select(tables.runners).where(tables.runners.c.runner_id == runner_id)).one_or_none()
    return runner_from_row(row) if row is not None else None


def _holds(connection: Connection, runner: Runner) -> bool:
    return active_attempt(connection, runner.runner_id) is not None


def _standing(connection: Connection, runner_id: str) -> Standing | None:
    runner = _find_runner(connection, runner_id)
    return _standing_of(connection, runner) if runner is not None else None


def _standing_of(connection: Connection, runner: Runner) -> Standing:
    attempt = active_attempt(connection, runner.runner_id)
    if attempt is None:
        return Standing(runner=runner)
    key: CheckpointKey | None = attempt.resume
    return Standing(
        runner=runner,
        attempt=attempt,
        job=load_job(connection, attempt.job_uid),
        resume=find_checkpoint(connection, key) if key is not None else None,
    )


def _view(connection: Connection, runner: Runner) -> RunnerView:
    attempt = active_attempt(connection, runner.runner_id)
    job = load_job(connection, attempt.job_uid) if attempt is not None else None
    return RunnerView(runner=runner, job_name=job.name if job is not None else "")
