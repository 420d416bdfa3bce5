"""Ended attempts whose checkpoints are to be looked for, and jobs that wait for them.

Every call is one transaction. The clock is the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace
from sqlalchemy import Connection, and_, select, update

from services.chassis.log import get_logger
from services.scheduler.domain.job import SECOND_US, Checkpoint, Job
from services.scheduler.domain.lease import AttemptKey, Orphan
from services.scheduler.domain.view import DAMAGE
from services.scheduler.store import tables
from services.scheduler.store.attempts import (
    JOB_BY_UID,
    changing_jobs,
    load_job,
    record_checkpoints,
    save_job,
)
from services.scheduler.store.database import Database
from services.scheduler.store.queue import enter_queue
from services.scheduler.store.rows import job_from_row
from services.scheduler.store.transaction import Transaction

log = get_logger(__name__)

LET_GO_MAX = 100
"""Jobs that one transaction lets go: others wait for it."""

_attempts, _jobs = tables.attempts, tables.jobs
_IS_ORPHAN = and_(~_attempts.c.active, ~_attempts.c.adopted)
_IS_WAITED_FOR = and_(_jobs.c.held, _jobs.c.epoch == _attempts.c.epoch)


class OrphanRows:
    """Called by the loop of adoption alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, limit: int) -> list[Orphan]:
        """Those whose checkpoints are to be looked for now, those first that were to be looked for first."""

        def read(connection: Connection) -> list[Orphan]:
            columns = _attempts.c.job_uid, _attempts.c.epoch, _attempts.c.end_time_us, _IS_WAITED_FOR.label("waits")
            query = select(*columns).join(_jobs, _jobs.c.uid == _attempts.c.job_uid)
            now_us = self._database.now_us(connection)
            query = query.where(_IS_ORPHAN, _attempts.c.adopt_time_us <= now_us)
            query = query.order_by(_attempts.c.adopt_time_us).limit(limit)
            return [
                Orphan(
                    key=AttemptKey(job_uid=row.job_uid, epoch=row.epoch),
                    ended_seconds=(self._database.old_time_us(now_us) - (row.end_time_us or 0)) / SECOND_US,
                    waits=row.waits,
                )
                for row in connection.execute(query)
            ]

        return await self._database.read(read)

    async def waited_for(self) -> list[AttemptKey]:
        """Those for whose checkpoints jobs wait."""
        query = select(_attempts.c.job_uid, _attempts.c.epoch).join(_jobs, _jobs.c.uid == _attempts.c.job_uid)
        # By the index of orphans: neither all attempts nor all jobs are gone through.
        query = query.where(_IS_ORPHAN, _IS_WAITED_FOR).order_by(_attempts.c.adopt_time_us)
        return await self._database.read(
            lambda connection: [AttemptKey(job_uid=uid, epoch=epoch) for uid, epoch in connection.execute(query)]
        )

    async def adopt(self, key: AttemptKey, checkpoints: Sequence[Checkpoint]) -> None:
        """Record what was found of an ended attempt; its job, if it is queued again, may be claimed now."""

        def adopt(transaction: Transaction) -> None:
            _set_adoption(transaction, key, adopted=True)
            job = load_job(transaction.connection, key.job_uid)
            if job is not None:
                job = record_checkpoints(transaction, job, checkpoints)
                if _waits_for(job, key):
                    save_job(transaction, job, replace(job, held=False))

        await self._database.write(adopt, control=True)

    async def look_later(self, key: AttemptKey, *, seconds: float) -> None:
        """Look for the attempt's checkpoints again later."""

        def look_later(transaction: Transaction) -> None:
            _set_adoption(transaction, key, adopt_time_us=transaction.now_us + round(seconds * SECOND_US))

        await self._database.write(look_later, control=True)

    async def let_go(self, keys: Sequence[AttemptKey]) -> list[AttemptKey]:
        """Jobs that wait for the checkpoints of these attempts may be claimed without; return whose do.

        LET_GO_MAX in a transaction. A job that cannot be read stays, and a line in the log says so.
        """
        gone: list[AttemptKey] = []
        for start in range(0, len(keys), LET_GO_MAX):
            some = partial(_let_go, keys=keys[start : start + LET_GO_MAX])
            gone += await self._database.write(some, control=True)
        return gone

    async def give_up(self, key: AttemptKey) -> None:
        """Nobody looks for the attempt's checkpoints any more."""

        def give_up(transaction: Transaction) -> None:
            _set_adoption(transaction, key, adopted=True)
            _let_go(transaction, [key])

        await self._database.write(give_up, control=True)


def _set_adoption(transaction: Transaction, key: AttemptKey, **values: object) -> None:
    is_it = (_attempts.c.job_uid == key.job_uid) & (_attempts.c.epoch == key.epoch) & ~_attempts.c.active
    transaction.connection.execute(update(_attempts).where(is_it).values(**values))


def _let_go(transaction: Transaction, keys: Sequence[AttemptKey]) -> list[AttemptKey]:
    """Two statements, however many they are."""
    gone, changed = [], []
    found = transaction.each(JOB_BY_UID, [{"id": key.job_uid} for key in keys])
    for key, rows in zip(keys, found, strict=True):
        try:
            jobs = [job_from_row(row) for row in rows]
        except DAMAGE as error:
            log.error("job_not_let_go", job_uid=key.job_uid, problem=f"{error!r}")
            continue
        for job in jobs:
            if _waits_for(job, key):
                gone.append(key)
                changed.append((job, replace(job, held=False, revision=transaction.next_revision())))
    transaction.together(list(changing_jobs(transaction, changed)))
    for _, job in changed:
        if job.ready:
            enter_queue(transaction, job)
    return gone


def _waits_for(job: Job, key: AttemptKey) -> bool:
    return job.held and job.epoch == key.epoch
