"""Leases, deadlines and pauses begin again, where nobody could be heard or the clock was set."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Column, case, true, update
from sqlalchemy.sql.elements import ColumnElement

from services.scheduler.domain.job import SECOND_US
from services.scheduler.store.tables import attempts, jobs, runners
from services.scheduler.store.transaction import Transaction


@dataclass(frozen=True, kw_only=True)
class WaitLimits:
    """For how long something waits at most: after a fault, away from a runner, put aside, between looks at a store."""

    retry_seconds_max: float
    avoid_seconds: float
    put_aside_seconds_max: float
    adopt_seconds_max: float


def restart_clocks(transaction: Transaction, *, lease_us: int, waits: WaitLimits, back_us: int = 0) -> None:
    """Nobody could renew: what was given out is given anew. `back_us`: the clock was set back by so much, if known."""
    now_us, connection = transaction.now_us, transaction.connection
    leases = {"lease_expire_time_us": now_us + lease_us, "progress_time_us": now_us}
    connection.execute(update(attempts).where(attempts.c.active).values(**leases))
    # A runner that could not be reached must still have its grace period: it is counted from now on again.
    stops_us = now_us + lease_us + jobs.c.stop_grace_seconds * SECOND_US
    connection.execute(update(jobs).where(jobs.c.stop_deadline_us.is_not(None)).values(stop_deadline_us=stops_us))
    connection.execute(update(runners).where(~runners.c.lost).values(heartbeat_time_us=now_us))
    _shorten_waits(transaction, waits, back_us)


def _shorten_waits(transaction: Transaction, waits: WaitLimits, back_us: int) -> None:
    """What waits for a time does not wait for a clock that was set back as well."""
    to_adopt = ~attempts.c.active & ~attempts.c.adopted
    each: list[tuple[Column[int], float, ColumnElement[bool]]] = [
        (jobs.c.retry_time_us, waits.retry_seconds_max, true()),
        (jobs.c.avoid_until_us, waits.retry_seconds_max + waits.avoid_seconds, true()),
        (runners.c.put_aside_until_us, waits.put_aside_seconds_max, true()),
        (attempts.c.adopt_time_us, waits.adopt_seconds_max, to_adopt),
    ]
    for until_us, seconds_max, is_one in each:
        ends_us, latest_us = until_us - back_us, transaction.now_us + round(seconds_max * SECOND_US)
        values = {until_us.name: case((ends_us > latest_us, latest_us), else_=ends_us)}
        transaction.connection.execute(
            update(until_us.table).where(is_one, until_us > transaction.now_us).values(values)
        )
