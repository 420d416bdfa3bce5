"""The recorded checkpoints of a job, for those who list and download them."""

from __future__ import annotations

from sqlalchemy import Connection, select, tuple_

from services.chassis.errors import NotFound, Reason
from services.scheduler.domain.job import Checkpoint, Job
from services.scheduler.domain.view import Damaged
from services.scheduler.store import tables
from services.scheduler.store.attempts import find_job
from services.scheduler.store.database import Database
from services.scheduler.store.jobs import resolve_checkpoint
from services.scheduler.store.rows import checkpoint_from_row, readable


class CheckpointRows:
    """What is recorded; their files are in the object store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, project_id: str, job_id: str, checkpoint_id: str) -> Checkpoint:
        """The checkpoint; `last`, `best` and `final` stand for the one that is. NotFound without it."""

        def read(connection: Connection) -> Checkpoint:
            return resolve_checkpoint(connection, find_job(connection, project_id, job_id), checkpoint_id)

        return await self._database.read(read)

    async def pinned(self, project_id: str, job_id: str, checkpoint_id: str, *, by: Job) -> Checkpoint:
        """The checkpoint of this name as it was when the job `by` was submitted. NotFound where it is gone: a job that
        has the name now and was submitted later is another.
        """

        def read(connection: Connection) -> Checkpoint:
            job = find_job(connection, project_id, job_id)
            if job.sequence > by.sequence:
                raise NotFound(Reason.JOB_NOT_FOUND, f"{job.name} is another since", {"name": job.name})
            return resolve_checkpoint(connection, job, checkpoint_id)

        return await self._database.read(read)

    async def page(
        self, project_id: str, job_id: str, *, before: tuple[int, int] | None, limit: int
    ) -> list[Checkpoint | Damaged]:
        """Checkpoints of a job, newest first, those before (epoch, iteration)."""

        def read(connection: Connection) -> list[Checkpoint | Damaged]:
            table = tables.checkpoints
            job = find_job(connection, project_id, job_id)
            query = select(table).where(table.c.job_uid == job.uid)
            if before is not None:
                query = query.where(tuple_(table.c.epoch, table.c.iteration) < tuple_(*before))
            query = query.order_by(table.c.epoch.desc(), table.c.iteration.desc()).limit(limit)
            return readable(
                connection.execute(query), checkpoint_from_row, place=lambda row: f"{row.epoch}-{row.iteration}"
            )

        return await self._database.list(read)
