"""Runners as they are registered: read, taken over by a session, saved with their events, forgotten."""

from __future__ import annotations

from functools import lru_cache

from msgspec.structs import replace
from sqlalchemy import Connection, bindparam, delete, exists, insert, select, update
from sqlalchemy.exc import DBAPIError

from services.chassis.errors import Aborted, NotFound, Reason, Unavailable
from services.scheduler.domain.fact import RunnerDrained, RunnerJoined, RunnerPutAside
from services.scheduler.domain.lease import Report, Runner
from services.scheduler.store import tables
from services.scheduler.store.attempts import UPDATES_MAX
from services.scheduler.store.rows import changes, runner_from_row, runner_to_row
from services.scheduler.store.statement import Statement, Values
from services.scheduler.store.transaction import Transaction

RUNNER_BY_ID = Statement(select(tables.runners), key=tables.runners.c.runner_id)
_INSERT = Statement(insert(tables.runners))

SESSIONS_KEPT = 16
"""Sessions of a runner that are known to be over."""
FORGOTTEN_MAX = 500
"""Lost runners that one transaction forgets."""


def taken_over(transaction: Transaction, before: Runner | None, report: Report) -> Runner:
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
        _write(transaction, _INSERT, runner_to_row(runner))
        tell_dispatcher(transaction, runner)
        transaction.emit(RunnerJoined(runner_id=runner.runner_id))
        return runner
    if report.session in before.replaced:
        raise Aborted(
            Reason.SESSION_REPLACED,
            f"a newer session has taken over {before.name}, so this one must end: give each runner a name of its own",
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
    if is_new:  # somebody has started it anew: it may be well again
        runner = replace(runner, failures=0, put_aside_until_us=None, put_aside_reason="")
    save_runner(transaction, before, runner)
    if is_new:
        transaction.wake_runner(runner.runner_id)
    if is_new or before.lost:
        transaction.emit(RunnerJoined(runner_id=runner.runner_id))
    return runner


def save_runner(transaction: Transaction, before: Runner, after: Runner) -> None:
    """Write what changed in a runner, with the events that it means."""
    values = changes(runner_to_row(before), runner_to_row(after))
    if values:
        _write(transaction, _update_runner(frozenset(values)), {**values, "is_id": after.runner_id})
    tell_dispatcher(transaction, after)
    if after.put_aside_until_us is not None and before.put_aside_until_us is None:
        reason, until_us = after.put_aside_reason, after.put_aside_until_us
        transaction.emit(RunnerPutAside(runner_id=after.runner_id, reason=reason, until_us=until_us))
    elif before.takes_jobs and not after.takes_jobs:
        transaction.emit(RunnerDrained(runner_id=after.runner_id))


@lru_cache(maxsize=UPDATES_MAX)
def _update_runner(columns: frozenset[str]) -> Statement:
    is_it = tables.runners.c.runner_id == bindparam("is_id")
    return Statement(update(tables.runners).where(is_it).values({name: bindparam(name) for name in columns}))


def _write(transaction: Transaction, statement: Statement, values: Values) -> None:
    runner_id = values.get("is_id") or values["runner_id"]

    def refused(error: DBAPIError | Unavailable) -> Exception:
        transaction.doubts.append(lambda: transaction.dispatcher.unregister(runner_id))
        return error

    transaction.write(statement, values, refused)


def tell_dispatcher(transaction: Transaction, runner: Runner) -> None:
    """Whether the runner takes jobs, and which."""
    if runner.takes_jobs and not runner.lost:
        transaction.dispatcher.register(runner.runner_id, runner.capabilities)
    else:
        transaction.dispatcher.unregister(runner.runner_id)


def find_runner(connection: Connection, runner_id: str) -> Runner | None:
    """The runner; None where it is unknown."""
    row = RUNNER_BY_ID.one(connection, {"id": runner_id})
    return runner_from_row(row) if row is not None else None


def forget_lost_runners(transaction: Transaction, *, before_us: int) -> int:
    """Forget runners that went silent before that time, at most FORGOTTEN_MAX; return how many."""
    runners, attempts = tables.runners, tables.attempts
    holds = exists().where(attempts.c.runner_id == runners.c.runner_id, attempts.c.active)
    query = select(runners.c.runner_id).where(runners.c.lost, runners.c.heartbeat_time_us < before_us, ~holds)
    gone = transaction.connection.execute(query.limit(FORGOTTEN_MAX)).scalars().all()
    if gone:
        transaction.connection.execute(delete(runners).where(runners.c.runner_id.in_(gone)))
    return len(gone)


def known_runner(connection: Connection, runner_id: str) -> Runner:
    """The runner, or NotFound."""
    runner = find_runner(connection, runner_id)
    if runner is None:
        name = f"runners/{runner_id}"
        raise NotFound(Reason.RUNNER_NOT_FOUND, f"{name} does not exist: list the runners", {"name": name})
    return runner
