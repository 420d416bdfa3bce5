"""Runners in the database: what they report is applied here, in one transaction a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, or_, select, tuple_

from services.chassis.log import get_logger
from services.scheduler.domain import job as domain
from services.scheduler.domain.ending import RetryLimits, blame_of
from services.scheduler.domain.fact import RunnerJoined
from services.scheduler.domain.job import (
    SECOND_US,
    Attempt,
    AttemptOutcome,
    Checkpoint,
    Job,
    JobReason,
    JobState,
    Progress,
)
from services.scheduler.domain.lease import (
    ActiveReport,
    AsideLimits,
    AttemptKey,
    ClosedReport,
    Grip,
    Report,
    Runner,
    after_attempt,
    grip,
)
from services.scheduler.domain.request import Request
from services.scheduler.domain.view import Damaged, RunnerView
from services.scheduler.store import tables
from services.scheduler.store.attempts import (
    ACTIVE_OF_RUNNER,
    JOB_OF_RUNNER,
    active_attempt,
    close_attempt,
    find_attempt,
    find_checkpoint,
    load_job,
    look_up_checkpoint,
    reattach_attempt,
    record_checkpoints,
    save_attempt,
    save_job,
)
from services.scheduler.store.database import Database
from services.scheduler.store.placing import Placing, WaitingCall
from services.scheduler.store.registration import RUNNER_BY_ID, find_runner, known_runner, save_runner, taken_over
from services.scheduler.store.requests import answered
from services.scheduler.store.rows import Record, attempt_from_row, job_from_row, readable, runner_from_row
from services.scheduler.store.transaction import Transaction

log = get_logger(__name__)


_IDLE = (RUNNER_BY_ID, ACTIVE_OF_RUNNER)
_WORKING = (*_IDLE, JOB_OF_RUNNER)
"""What a report of a runner is held against."""
RESTORED_ADVICE = "was a backup put back? end the scheduler and run `python -m services.scheduler restored`"
LOST_BY_RUNNER = "the runner came without the attempt that it held"


class Standing(Struct, frozen=True, kw_only=True):
    """A runner and what it should hold. `resume`: the checkpoint that the attempt begins at.

    `applied`: nothing of the report was where this is False, because its number was not above the highest one.
    `as_of`: the number of the last transaction that it shows for certain.
    """

    runner: Runner
    attempt: Attempt | None = None
    job: Job | None = None
    resume: Checkpoint | None = None
    applied: bool = True
    as_of: int = 0


class Renewal(Struct, frozen=True, kw_only=True):
    """A call that said nothing new but that runner and attempt are alive, `age_us` ago. `progress`: where it moved."""

    runner_id: str
    age_us: int
    key: AttemptKey | None = None
    progress: Progress | None = None


class RunnerStore:
    """Runners. `placing` gives jobs to idle ones."""

    def __init__(
        self, database: Database, placing: Placing, *, lease_seconds: float, retry: RetryLimits, aside: AsideLimits
    ) -> None:
        self._database = database
        self._placing = placing
        self._lease_seconds = lease_seconds
        self._lease_us = round(lease_seconds * SECOND_US)
        self._retry = retry
        self._aside = aside

    async def synchronize(self, report: Report, call: WaitingCall | None) -> Standing:
        """Apply a report, give an idle runner a job, and return how the runner stands after it.

        Without a job the runner stays in the pool for as long as `call` waits (None: it does not wait). A sequence
        number that is not above the highest one changes nothing. Aborted (SESSION_REPLACED) for an old session.
        """
        return await self._database.write(
            lambda tx: self._synchronize(tx, report, call),
            then=_with_what_was_placed,
            ahead=lambda _: [(each, {"id": report.runner_id}) for each in (_WORKING if report.active else _IDLE)],
            control=True,
        )

    async def wait_again(self, standing: Standing, report: Report, call: WaitingCall) -> Standing:
        """An idle runner of which nothing has changed waits once more; costs no statement where there is no job.

        Where it was drained, lost, taken back or given a job since it was known to stand so, its report is applied like
        any other.
        """

        def wait(transaction: Transaction) -> Standing:
            runner = standing.runner
            is_changed = transaction.dispatcher.is_registered(runner.runner_id) != runner.takes_jobs
            if is_changed or self._placing.has_given_since(runner.runner_id, standing.as_of):
                return self._synchronize(transaction, report, call)
            self._placing.wait(transaction, runner, call)
            return standing

        return await self._database.write(wait, then=_with_what_was_placed, control=True)

    async def take_up(self, report: Report) -> Standing:
        """How the runner stands after the attempt that it works on was taken up again, if that could be."""

        def take_up(transaction: Transaction) -> Standing:
            runner = known_runner(transaction.connection, report.runner_id)
            is_free = active_attempt(transaction.connection, report.runner_id) is None
            if report.active is not None and is_free and runner.session == report.session:
                attempt = self._reattached(transaction, report, report.active)
                if attempt is not None:
                    return self._observe(transaction, runner, attempt, report)
            return _standing_of(transaction.connection, runner)

        return await self._database.write(take_up, control=True)

    async def fail(self, key: AttemptKey, *, reason: JobReason, message: str) -> None:
        """End an attempt that its runner cannot even be told of."""

        def fail(transaction: Transaction) -> None:
            attempt = find_attempt(transaction.connection, key)
            if attempt is not None and attempt.active:
                self._end(transaction, attempt, AttemptOutcome.FAILED, reason, message)

        await self._database.write(fail, control=True)

    async def standing(self, runner_id: str) -> Standing | None:
        """How the runner stands; None where it is unknown."""
        return await self._database.read(lambda connection: _standing(connection, runner_id))

    async def attempts(
        self, keys: Sequence[AttemptKey], *, ended_hours_max: float
    ) -> dict[AttemptKey, tuple[Attempt | Damaged, str]]:
        """Those of the attempts that exist and ended no longer ago than this, with their projects' ids."""
        if not keys:
            return {}

        def read(connection: Connection) -> dict[AttemptKey, tuple[Attempt | Damaged, str]]:
            attempts, jobs = tables.attempts, tables.jobs
            columns = tuple_(attempts.c.job_uid, attempts.c.epoch)
            query = select(attempts, jobs.c.project_id.label("project_id")).join(jobs, jobs.c.uid == attempts.c.job_uid)
            now_us = self._database.old_time_us(self._database.now_us(connection))
            oldest_us = now_us - round(ended_hours_max * 3_600 * SECOND_US)
            is_recent = or_(attempts.c.end_time_us.is_(None), attempts.c.end_time_us >= oldest_us)
            query = query.where(columns.in_([(key.job_uid, key.epoch) for key in keys]), is_recent)
            rows = connection.execute(query).all()
            found = readable(rows, _attempt_in_project, place=lambda row: f"{row.job_uid}/{row.number}")
            return {
                AttemptKey(job_uid=row.job_uid, epoch=row.epoch): (attempt, row.project_id)
                for row, attempt in zip(rows, found, strict=True)
            }

        return await self._database.read(read)

    async def page(self, *, after: str, limit: int) -> list[RunnerView | Damaged]:
        """Runners by id, those after `after`."""

        def read(connection: Connection) -> list[RunnerView | Damaged]:
            runners = tables.runners
            query = select(runners).where(runners.c.runner_id > after).order_by(runners.c.runner_id).limit(limit)
            return readable(
                connection.execute(query).all(),
                lambda row: _view(connection, runner_from_row(row)),
                place=lambda row: str(row.runner_id),
            )

        return await self._database.list(read)

    async def get(self, runner_id: str) -> RunnerView:
        """The runner, or NotFound."""
        return await self._database.read(lambda connection: _view(connection, known_runner(connection, runner_id)))

    async def drain(self, request: Request, encode: Callable[[RunnerView], bytes], *, runner_id: str) -> bytes:
        """Let a runner take no new job, and have its attempt handed back."""

        def drain(transaction: Transaction) -> RunnerView:
            runner = known_runner(transaction.connection, runner_id)
            save_runner(transaction, runner, replace(runner, drain_asked=True))
            transaction.wake_runner(runner_id)
            return _view(transaction.connection, replace(runner, drain_asked=True))

        return await self._database.write(lambda tx: answered(tx, request, lambda: drain(tx), encode), control=True)

    async def undrain(self, request: Request, encode: Callable[[RunnerView], bytes], *, runner_id: str) -> bytes:
        """Let a runner take jobs again that was drained by an operator, or put aside."""

        def undrain(transaction: Transaction) -> RunnerView:
            runner = known_runner(transaction.connection, runner_id)
            after = replace(runner, drain_asked=False, failures=0, put_aside_until_us=None, put_aside_reason="")
            save_runner(transaction, runner, after)
            if after.takes_jobs and not runner.takes_jobs:
                transaction.emit(RunnerJoined(runner_id=runner_id))
            self._placing.wait_anew(transaction, after)
            transaction.wake_runner(runner_id)
            return _view(transaction.connection, after)

        return await self._database.write(lambda tx: answered(tx, request, lambda: undrain(tx), encode), control=True)

    def _synchronize(self, transaction: Transaction, report: Report, call: WaitingCall | None) -> Standing:
        transaction.dispatcher.leave(report.runner_id)
        row = transaction.ask(RUNNER_BY_ID, id=report.runner_id)
        before = runner_from_row(row) if row is not None else None
        if before is not None and report.session == before.session and report.sequence <= before.sequence:
            return replace(_standing_of(transaction.connection, before), applied=False)
        runner = taken_over(transaction, before, report)
        for closed in report.closed:
            runner = self._close(transaction, runner, closed)
        found = transaction.ask(ACTIVE_OF_RUNNER, id=report.runner_id)
        attempt = attempt_from_row(found) if found is not None else None
        if attempt is None and report.active is not None:
            attempt = self._reattached(transaction, report, report.active)
        standing = Standing(runner=runner)
        if attempt is not None:
            standing = self._observe(transaction, runner, attempt, report)
        if report.active is not None and (attempt is None or report.active.key.epoch != attempt.epoch):
            self._record_late(transaction, runner, report.active.key, report.active.checkpoints)
        if report.active is None and standing.attempt is None:
            self._placing.wait(transaction, runner, call)
        return standing

    def _reattached(self, transaction: Transaction, report: Report, active: ActiveReport) -> Attempt | None:
        """The attempt that the runner works on, if it was lost and nobody else has taken its place since."""
        lost = find_attempt(transaction.connection, active.key)
        if lost is None or lost.active:
            return None
        reattach_attempt(transaction, lost, report, lease_seconds=self._lease_seconds)
        return active_attempt(transaction.connection, report.runner_id)

    def _close(self, transaction: Transaction, runner: Runner, closed: ClosedReport) -> Runner:
        """Record the end of an attempt; return the runner after it. A late one may still bring checkpoints."""
        attempt = self._record_late(transaction, runner, closed.key, closed.checkpoints)
        if attempt is None or not attempt.active:
            return runner
        close_attempt(
            transaction,
            attempt,
            outcome=closed.outcome,
            reason=closed.reason,
            message=closed.message,
            limits=self._retry,
            iteration=closed.iteration,
        )
        after = after_attempt(
            runner,
            blame=blame_of(closed.outcome, closed.reason),
            seconds=(transaction.now_us - attempt.start_time_us) / SECOND_US,
            reason=closed.message.partition("\n")[0],
            now_us=transaction.now_us,
            limits=self._aside,
        )
        save_runner(transaction, runner, after)
        return after

    def _record_late(
        self, transaction: Transaction, runner: Runner, key: AttemptKey, checkpoints: Sequence[Checkpoint]
    ) -> Attempt | None:
        """Record checkpoints of this runner's attempt, and return the attempt; another's changes nothing."""
        attempt = find_attempt(transaction.connection, key)
        if attempt is not None and attempt.runner_id != runner.runner_id:
            log.warning("report_of_another_runner", runner=runner.name, job_uid=key.job_uid, of=attempt.runner_id)
            return None
        if attempt is None or not attempt.active:
            transaction.come_late(key.job_uid)
        job = load_job(transaction.connection, key.job_uid) if attempt is None or checkpoints else None
        if job is not None and attempt is not None:
            record_checkpoints(transaction, job, checkpoints)
        elif job is not None and key.epoch > max(job.epoch, transaction.fence.epoch_floor(job.sequence)):
            log.error("database_forgot", attempt=key.epoch, job=job.name, runner=runner.name, advice=RESTORED_ADVICE)
        return attempt

    def _observe(self, transaction: Transaction, runner: Runner, attempt: Attempt, report: Report) -> Standing:
        """Hold the report against the attempt that the runner should have; how it stands then."""
        row = transaction.ask(JOB_OF_RUNNER, id=runner.runner_id)
        assert row is not None, "a job with an active attempt is never deleted"
        job = job_from_row(row)
        match grip(attempt, report):
            case Grip.HELD:
                assert report.active is not None, "who holds an attempt names it"
                job, attempt = self._hold(transaction, job, attempt, report.active)
            case Grip.UNACKNOWLEDGED if job.state is JobState.STOPPING:
                nobody = JobReason.UNSPECIFIED
                self._end(transaction, attempt, AttemptOutcome.STOPPED, nobody, "stopped before the runner had it")
                return Standing(runner=runner)
            case Grip.UNACKNOWLEDGED if not runner.takes_jobs:
                drained = "the runner was drained before it had it"
                self._end(transaction, attempt, AttemptOutcome.HANDED_BACK, JobReason.UNSPECIFIED, drained)
                return Standing(runner=runner)
            case Grip.UNACKNOWLEDGED:
                before, lease = attempt, transaction.now_us + self._lease_us
                attempt = replace(attempt, lease_expire_time_us=lease)
                save_attempt(transaction, before, attempt)
            case Grip.LOST:
                self._end(transaction, attempt, AttemptOutcome.LOST, JobReason.RUNNER_LOST, LOST_BY_RUNNER)
                return Standing(runner=runner)
        resume = look_up_checkpoint(transaction, attempt.resume) if attempt.resume is not None else None
        return Standing(runner=runner, attempt=attempt, job=job, resume=resume)

    def _hold(self, transaction: Transaction, job: Job, attempt: Attempt, active: ActiveReport) -> tuple[Job, Attempt]:
        """Job and attempt after the report of the runner that holds it."""
        after, seen = domain.observe(
            job,
            attempt,
            phase=active.phase or attempt.phase,
            progress=active.progress,
            now_us=transaction.now_us,
        )
        seen = replace(seen, lease_expire_time_us=transaction.now_us + self._lease_us)
        save_attempt(transaction, attempt, seen)
        if seen.progress != attempt.progress:
            transaction.move_on(job.uid)
        after = replace(after, dataset_fingerprint=after.dataset_fingerprint or active.dataset_fingerprint)
        return record_checkpoints(transaction, save_job(transaction, job, after), active.checkpoints), seen

    def _end(
        self, transaction: Transaction, attempt: Attempt, outcome: AttemptOutcome, reason: JobReason, message: str
    ) -> None:
        close_attempt(transaction, attempt, outcome=outcome, reason=reason, message=message, limits=self._retry)


def _with_what_was_placed(transaction: Transaction, standing: Standing) -> Standing:
    """The standing after the transaction has given out what there was."""
    runner_id, number = standing.runner.runner_id, transaction.number
    given = transaction.given.get(runner_id)
    if given is None:
        # Another unit may have changed something after this one has looked.
        return replace(standing, as_of=number - 1 if runner_id in transaction.woken else number)
    placed = Standing(runner=given.runner, attempt=given.attempt, job=given.job, as_of=number)
    if given.attempt.resume is None:
        return placed
    return replace(placed, resume=find_checkpoint(transaction.connection, given.attempt.resume))


def _standing(connection: Connection, runner_id: str) -> Standing | None:
    runner = find_runner(connection, runner_id)
    return _standing_of(connection, runner) if runner is not None else None


def _standing_of(connection: Connection, runner: Runner) -> Standing:
    attempt = active_attempt(connection, runner.runner_id)
    if attempt is None:
        return Standing(runner=runner)
    job = load_job(connection, attempt.job_uid)
    resume = find_checkpoint(connection, attempt.resume) if attempt.resume is not None else None
    return Standing(runner=runner, attempt=attempt, job=job, resume=resume)


def _attempt_in_project(row: Record) -> Attempt:
    return attempt_from_row(row, besides=("project_id",))


def _view(connection: Connection, runner: Runner) -> RunnerView:
    attempt = active_attempt(connection, runner.runner_id)
    job = load_job(connection, attempt.job_uid) if attempt is not None else None
    return RunnerView(runner=runner, job_name=job.name if job is not None else "")
