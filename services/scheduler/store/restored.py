"""Rows that were put back from a backup are made to fit what others remember of the time after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace
from sqlalchemy import delete, func, insert, select, update

from services.scheduler.domain.job import Checkpoint, CheckpointKey
from services.scheduler.store import tables
from services.scheduler.store.attempts import load_job, save_job
from services.scheduler.store.database import Database
from services.scheduler.store.jobs import OLDEST_CURSOR
from services.scheduler.store.leader import RESTORED_EPOCH, RESTORED_SEQUENCE
from services.scheduler.store.rows import checkpoint_to_row
from services.scheduler.store.transaction import Transaction

REVISIONS_SKIPPED = 1_000_000_000
"""More than are given between a backup and its return: 500 a second for three weeks."""
EPOCHS_SKIPPED = 1_000
"""More attempts than a job has between the two."""


@dataclass(frozen=True, kw_only=True)
class CheckpointChanges:
    """How many checkpoints the rows did not know, and how many that they know are gone."""

    found: int = 0
    gone: int = 0


class RestoredRows:
    """What a backup holds; nobody else uses the database meanwhile."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def living_jobs(self, *, after: str, limit: int) -> list[str]:
        """Uids of jobs that have not ended, in their order, those behind `after`."""
        jobs = tables.jobs
        query = select(jobs.c.uid).where(jobs.c.end_time_us.is_(None), jobs.c.uid > after)
        return await self._database.read(
            lambda connection: list(connection.execute(query.order_by(jobs.c.uid).limit(limit)).scalars())
        )

    async def set_checkpoints(self, job_uid: str, checkpoints: Sequence[Checkpoint]) -> CheckpointChanges:
        """Record that the job has these checkpoints and no others; it goes on from the newest of them."""
        table = tables.checkpoints

        def change(transaction: Transaction) -> CheckpointChanges:
            connection = transaction.connection
            job = load_job(connection, job_uid)
            if job is None:
                return CheckpointChanges()
            here = {checkpoint.key: checkpoint for checkpoint in checkpoints}
            columns = (table.c.job_uid, table.c.epoch, table.c.iteration)
            rows = connection.execute(select(*columns).where(table.c.job_uid == job_uid)).all()
            known = {CheckpointKey(job_uid=row.job_uid, epoch=row.epoch, iteration=row.iteration) for row in rows}
            for key in known - here.keys():
                is_it = (table.c.epoch == key.epoch) & (table.c.iteration == key.iteration)
                connection.execute(delete(table).where(table.c.job_uid == job_uid, is_it))
            new = [checkpoint for checkpoint in checkpoints if checkpoint.key not in known]
            if any(checkpoint.best for checkpoint in new):
                connection.execute(update(table).where(table.c.job_uid == job_uid).values(best=False))
                best = [checkpoint.key for checkpoint in new if checkpoint.best][-1]
                new = [replace(checkpoint, best=checkpoint.key == best) for checkpoint in new]
            if new:
                connection.execute(insert(table), [checkpoint_to_row(checkpoint) for checkpoint in new])
            last = max(here, key=lambda key: (key.epoch, key.iteration), default=None)
            save_job(transaction, job, replace(job, last_checkpoint=last))
            return CheckpointChanges(found=len(new), gone=len(known - here.keys()))

        return await self._database.write(change)

    async def number_anew(self) -> None:
        """Let revisions, and the numbers of the attempts of the jobs that there are, go on above all that may have been
        given. No watch can go on from before.
        """

        def lift(transaction: Transaction) -> None:
            connection, jobs, counters = transaction.connection, tables.jobs, tables.counters
            for table in (jobs, tables.removed_jobs):
                connection.execute(update(table).values(revision=table.c.revision + REVISIONS_SKIPPED))
            oldest = update(counters).where(counters.c.name == OLDEST_CURSOR)
            connection.execute(oldest.values(value=counters.c.value + REVISIONS_SKIPPED))
            highest = select(func.max(jobs.c.sequence), func.max(jobs.c.epoch), func.max(jobs.c.attempts))
            sequence, *numbers = connection.execute(highest).one()
            recorded = connection.execute(select(func.max(tables.checkpoints.c.epoch))).scalar()
            floor = max(number or 0 for number in (*numbers, recorded, transaction.fence.restored_epoch))
            connection.execute(delete(counters).where(counters.c.name.in_((RESTORED_SEQUENCE, RESTORED_EPOCH))))
            values = {RESTORED_SEQUENCE: sequence or 0, RESTORED_EPOCH: floor + EPOCHS_SKIPPED}
            connection.execute(insert(counters), [{"name": name, "value": value} for name, value in values.items()])
            transaction.next_revision(skipped=REVISIONS_SKIPPED)

        await self._database.write(lift)
