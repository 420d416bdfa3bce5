"""What has been kept long enough is dropped, so many rows of each kind in a transaction."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Table, delete, select, update

from services.scheduler.domain.job import SECOND_US
from services.scheduler.store import tables
from services.scheduler.store.jobs import OLDEST_CURSOR
from services.scheduler.store.registration import forget_lost_runners
from services.scheduler.store.transaction import Transaction

ROWS_MAX = 5_000
"""Rows of a kind that one transaction forgets."""
HOUR_US = 3_600 * SECOND_US


@dataclass(frozen=True, kw_only=True)
class KeepingLimits:
    """How long things are kept."""

    request_id_hours: float
    removed_job_hours: float
    outbox_days_max: float
    lost_runner_days: float


def forget_old(transaction: Transaction, limits: KeepingLimits, now_us: int) -> int:
    """Drop what is old; return how many of one kind went at most: where it is ROWS_MAX, there is more."""
    requests = _forget_before(transaction, tables.request_ids, now_us - round(limits.request_id_hours * HOUR_US))
    removed = _forget_removed(transaction, before_us=now_us - round(limits.removed_job_hours * HOUR_US))
    events = _forget_before(transaction, tables.outbox, now_us - round(limits.outbox_days_max * 24 * HOUR_US))
    forget_lost_runners(transaction, before_us=now_us - round(limits.lost_runner_days * 24 * HOUR_US))
    return max(requests, removed, events)


def _forget_before(transaction: Transaction, table: Table, before_us: int) -> int:
    """Forget what is older, the oldest ROWS_MAX rows and what is as old as the last of them; return how many."""
    connection, created_us = transaction.connection, table.c.create_time_us
    last = select(created_us).where(created_us < before_us).order_by(created_us).offset(ROWS_MAX - 1).limit(1)
    last_us = connection.execute(last).scalar()
    old = created_us < before_us if last_us is None else created_us <= last_us
    return connection.execute(delete(table).where(old)).rowcount


def _forget_removed(transaction: Transaction, *, before_us: int) -> int:
    """Forget old deletions, and return how many; watches can go on from the newest of them only."""
    removed, counters, connection = tables.removed_jobs, tables.counters, transaction.connection
    old = select(removed.c.revision).where(removed.c.create_time_us < before_us)
    revisions = list(connection.execute(old.order_by(removed.c.create_time_us).limit(ROWS_MAX)).scalars())
    if revisions:
        newest = max(revisions)
        connection.execute(delete(removed).where(removed.c.revision <= newest))
        connection.execute(update(counters).where(counters.c.name == OLDEST_CURSOR).values(value=newest))
    return len(revisions)
