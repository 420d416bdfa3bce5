"""Checkpoints that need not be kept, taken out of the rows; their files are deleted by who asks."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, and_, delete, func, select

from services.scheduler.domain.job import ACTIVE, Checkpoint, CheckpointKey, JobState
from services.scheduler.domain.retention import Retention
from services.scheduler.store import tables
from services.scheduler.store.attempts import load_job
from services.scheduler.store.database import Database
from services.scheduler.store.rows import checkpoint_from_row, checkpoint_key_from_json
from services.scheduler.store.transaction import Transaction

PRUNED_MAX = 500
"""Checkpoints that one transaction takes out; the next call takes the rest."""


class RetentionRows:
    """`pinned_by` names the checkpoint that a specification begins with, None where it begins with none."""

    def __init__(self, database: Database, retention: Retention, *, pinned_by: Callable[[bytes], str | None]) -> None:
        self._database = database
        self._retention = retention
        self._pinned_by = pinned_by

    async def prune(self) -> list[Checkpoint]:
        """Take out what need not be kept, at most PRUNED_MAX. What a live or a resumed job begins with stays."""
        return await self._database.write(self._prune)

    def _prune(self, transaction: Transaction) -> list[Checkpoint]:
        connection, table = transaction.connection, tables.checkpoints
        crowded = select(table.c.job_uid).group_by(table.c.job_uid).having(func.count() > self._retention.kept)
        uids = [row.job_uid for row in connection.execute(crowded)]
        if not uids:
            return []
        needed = _needed(connection)
        pinned = self._pinned(connection)
        pruned: list[Checkpoint] = []
        for uid in uids:
            job = load_job(connection, uid)
            if job is None:
                continue
            query = select(table).where(table.c.job_uid == uid).order_by(table.c.epoch, table.c.iteration)
            found = [checkpoint_from_row(row) for row in connection.execute(query).mappings()]
            own = {each.key for each in found if f"{job.name}/checkpoints/{_id(each.key)}" in pinned}
            own |= {job.last_checkpoint} if job.last_checkpoint is not None else set()
            pruned += self._retention.superfluous(
                found,
                iterations_max=job.iterations_max,
                needed=frozenset(needed | own),
                now_us=transaction.now_us,
            )
            if len(pruned) >= PRUNED_MAX:
                break
        for checkpoint in pruned[:PRUNED_MAX]:
            key = checkpoint.key
            is_it = and_(table.c.job_uid == key.job_uid, table.c.epoch == key.epoch, table.c.iteration == key.iteration)
            connection.execute(delete(table).where(is_it))
        return pruned[:PRUNED_MAX]

    def _pinned(self, connection: Connection) -> set[str]:
        """Names of the checkpoints that jobs which have not ended begin with."""
        live = [JobState.QUEUED.value, *(state.value for state in ACTIVE)]
        query = select(tables.jobs.c.spec).where(tables.jobs.c.state.in_(live))
        return {name for row in connection.execute(query) if (name := self._pinned_by(row.spec)) is not None}


def _needed(connection: Connection) -> set[CheckpointKey]:
    """What resumed jobs, and attempts under way, begin at."""
    jobs, attempts = tables.jobs, tables.attempts
    sources = connection.execute(select(jobs.c.source).where(jobs.c.source.is_not(None)))
    resumes = connection.execute(select(attempts.c.resume).where(attempts.c.active, attempts.c.resume.is_not(None)))
    keys = [*(row.source["key"] for row in sources), *(row.resume for row in resumes)]
    return {key for values in keys if (key := checkpoint_key_from_json(values)) is not None}


def _id(key: CheckpointKey) -> str:
    return f"{key.epoch}-{key.iteration}"
