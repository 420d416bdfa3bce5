"""Checkpoints that need not be kept, taken out of the rows; their files are deleted by who asks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, delete, func, select
from sqlalchemy.sql.elements import ColumnElement

from services.chassis.log import get_logger
from services.scheduler.domain.job import ACTIVE, Checkpoint, CheckpointKey, JobState
from services.scheduler.domain.retention import Retention
from services.scheduler.domain.view import DAMAGE, Damaged
from services.scheduler.store import tables
from services.scheduler.store.database import Database
from services.scheduler.store.rows import Record, checkpoint_from_row, checkpoint_key_from_json, readable
from services.scheduler.store.transaction import Transaction
from services.scheduler.store.views import last_revision

log = get_logger(__name__)

PRUNED_MAX = 5_000
"""Checkpoints that one look takes out; the next one takes the rest."""
PRUNED_TOGETHER_MAX = 100
"""Checkpoints that one transaction takes out: others wait for it."""
ROWS_TOGETHER = 1_000
"""Rows that are read at once."""


class RetentionRows:
    """`pinned_by` names the checkpoint that a specification begins with, None where it begins with none."""

    def __init__(self, database: Database, retention: Retention, *, pinned_by: Callable[[bytes], str | None]) -> None:
        self._database = database
        self._retention = retention
        self._pinned_by = pinned_by

    async def prune(self) -> AsyncGenerator[list[Checkpoint], None]:
        """Take out what need not be kept, at most PRUNED_MAX, and give it part by part, as it goes.

        What a live or a resumed job begins with stays. Who needs what, of however many jobs, is found out by a reader;
        the writer looks at those alone that came or changed meanwhile.
        """
        as_of, superfluous = await self._database.list(self._look)
        for start in range(0, len(superfluous), PRUNED_TOGETHER_MAX):
            some = superfluous[start : start + PRUNED_TOGETHER_MAX]
            yield await self._database.write(partial(self._take_out, some=some, as_of=as_of))

    def _look(self, connection: Connection) -> tuple[int, list[tuple[str, Checkpoint]]]:
        """The revision, and each checkpoint that need not be kept as of it, with its name."""
        as_of, now_us = last_revision(connection), self._database.now_us(connection)
        found = list(self._superfluous(connection, now_us))
        if found:
            names = self._pinned(connection, _live())
            needed = _begun_at(connection, tables.jobs.c.source.is_not(None))
            found = [(name, each) for name, each in found if name not in names and not needed.has(name, each)]
        return as_of, found[:PRUNED_MAX]

    def _superfluous(self, connection: Connection, now_us: int) -> Iterator[tuple[str, Checkpoint]]:
        """Checkpoints that their own jobs do not need, by name."""
        checkpoints, jobs = tables.checkpoints, tables.jobs
        crowded = select(checkpoints.c.job_uid).group_by(checkpoints.c.job_uid)
        crowded = crowded.having(func.count() > self._retention.kept)
        its_job = jobs.c.project_id, jobs.c.job_id, jobs.c.iterations_max, jobs.c.last_checkpoint
        query = select(checkpoints, *its_job).join(jobs, jobs.c.uid == checkpoints.c.job_uid)
        query = query.where(checkpoints.c.job_uid.in_(crowded))
        query = query.order_by(checkpoints.c.job_uid, checkpoints.c.epoch, checkpoints.c.iteration)
        rows = connection.execute(query.execution_options(yield_per=ROWS_TOGETHER))
        for job_uid, group in groupby(rows, key=lambda row: row.job_uid):
            of_job = list(group)
            try:
                found = list(self._superfluous_of_job(of_job, now_us))
            except DAMAGE as error:  # the checkpoints of other jobs must not stay for ever with these
                log.error("record_damaged", record=job_uid, kind="checkpoint", problem=f"{error!r}")
                continue
            yield from found

    def _superfluous_of_job(self, rows: Sequence[Row[Any]], now_us: int) -> Iterator[tuple[str, Checkpoint]]:
        job = rows[0]
        besides = ("project_id", "job_id", "iterations_max", "last_checkpoint")
        last = checkpoint_key_from_json(job.last_checkpoint)
        for each in self._retention.superfluous(
            [checkpoint_from_row(row._mapping, besides=besides) for row in rows],
            iterations_max=job.iterations_max,
            needed=frozenset() if last is None else frozenset({last}),
            now_us=now_us,
        ):
            yield f"projects/{job.project_id}/jobs/{job.job_id}/checkpoints/{each.key.epoch}-{each.key.iteration}", each

    def _take_out(
        self, transaction: Transaction, *, some: Sequence[tuple[str, Checkpoint]], as_of: int
    ) -> list[Checkpoint]:
        """Those of the checkpoints that are there and that nothing has needed since."""
        connection, table, jobs = transaction.connection, tables.checkpoints, tables.jobs
        since = jobs.c.revision > as_of
        names, needed = self._pinned(connection, since), _begun_at(connection, since)
        needed.add(connection, select(jobs.c.project_id, jobs.c.last_checkpoint).where(since))
        gone = []
        for name, each in some:
            key = each.key
            if name in names or needed.has(name, each):
                continue
            is_it = and_(table.c.job_uid == key.job_uid, table.c.epoch == key.epoch, table.c.iteration == key.iteration)
            if connection.execute(delete(table).where(is_it, ~table.c.best)).rowcount:
                gone.append(each)
        return gone

    def _pinned(self, connection: Connection, which: ColumnElement[bool]) -> set[str]:
        """Names of the checkpoints that these jobs begin with."""
        query = select(tables.jobs.c.spec).where(which).execution_options(yield_per=ROWS_TOGETHER)
        return {name for row in connection.execute(query) if (name := self._pinned_by(row.spec)) is not None}


def _live() -> ColumnElement[bool]:
    live = [JobState.QUEUED.value, *(state.value for state in ACTIVE)]
    return tables.jobs.c.state.in_(live)


class _Needed:
    """Checkpoints that something begins at. Where it cannot be read which, it may be any of the project's."""

    def __init__(self) -> None:
        self._keys: set[CheckpointKey] = set()
        self._projects: set[str] = set()

    def has(self, name: str, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint of this name is, or may be, among them."""
        return checkpoint.key in self._keys or name.split("/")[1] in self._projects

    def add(
        self, connection: Connection, query: Select[Any], key_in: Callable[[Any], Any] = lambda value: value
    ) -> None:
        """Those of the rows: a project's id, and what the key is in."""

        def key_of(row: Record) -> CheckpointKey | None:
            _, value = row.values()
            return checkpoint_key_from_json(key_in(value)) if value is not None else None

        rows = connection.execute(query.execution_options(yield_per=ROWS_TOGETHER))
        for key in readable(rows, key_of, place=lambda row: str(row[0])):
            if isinstance(key, Damaged):
                self._projects.add(key.place)
            elif key is not None:
                self._keys.add(key)


def _begun_at(connection: Connection, which: ColumnElement[bool]) -> _Needed:
    """What these jobs, where they were resumed, and attempts under way begin at."""
    jobs, attempts = tables.jobs, tables.attempts
    needed = _Needed()
    sources = select(jobs.c.project_id, jobs.c.source).where(which, jobs.c.source.is_not(None))
    needed.add(connection, sources, lambda source: source["key"])
    resumes = select(jobs.c.project_id, attempts.c.resume).join(jobs, jobs.c.uid == attempts.c.job_uid)
    needed.add(connection, resumes.where(attempts.c.active, attempts.c.resume.is_not(None)))
    return needed
