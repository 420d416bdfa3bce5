"""Jobs read with what is shown beside them: one, or very many, which must not hold up what is urgent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeAlias

from sqlalchemy import Connection, CursorResult, Row, Select, select, tuple_

from services.chassis.aside import ITEMS_A_TURN, in_turns
from services.scheduler.domain.job import Attempt, Checkpoint, CheckpointKey, Job
from services.scheduler.domain.view import Damaged, JobView
from services.scheduler.store import tables
from services.scheduler.store.rows import attempt_from_row, checkpoint_from_row, job_from_row, readable
from services.scheduler.store.tables import counters
from services.scheduler.store.transaction import REVISION

ATTEMPTS_SHOWN_MAX = 20
"""The newest attempts that a job shows."""

VIEWS_AT_ONCE = 50
"""Jobs that are read before it is known how large they are."""
VIEW_BYTES = 1_000
"""What a job takes beside its specification and the messages of its attempts, and each of these attempts, at least."""

Convert: TypeAlias = Callable[[Mapping[Any, Any]], Any]
Place: TypeAlias = Callable[[Row[Any]], str]
Read: TypeAlias = Callable[[Iterable[Row[Any]], Convert, Place], list[Any]]
"""What rows say; see `readable`."""


def few_at_a_time(result: CursorResult[Any]) -> Iterator[Row[Any]]:
    """The rows, of which the driver makes some at a time: it lets no other thread run meanwhile."""
    return itertools.chain.from_iterable(result.partitions(ITEMS_A_TURN))


def _at_once(rows: Iterable[Row[Any]], convert: Convert, place: Place) -> list[Any]:
    return readable(rows, convert, place=place)


def _in_turns(rows: Iterable[Row[Any]], convert: Convert, place: Place) -> list[Any]:
    """The same, where there may be very many, and somebody else waits for something urgent."""
    found = in_turns(rows, lambda some: readable(some, convert, place=place))
    return list(itertools.chain.from_iterable(found))


def readable_views(connection: Connection, rows: Iterable[Row[Any]], *, place: Place) -> list[JobView | Damaged]:
    """The jobs of the rows in their order, with what is shown beside them."""
    jobs = _in_turns(rows, job_from_row, place)
    shown = iter(views(connection, [job for job in jobs if not isinstance(job, Damaged)], read=_in_turns))
    return [job if isinstance(job, Damaged) else next(shown) for job in jobs]


def views_within(
    connection: Connection, query: Select[Any], *, place: Place, bytes_max: int
) -> tuple[list[tuple[Row[Any], JobView | Damaged]], bool]:
    """The first jobs that the query finds that have so many bytes, at least one, each with its row; and whether it
    finds more. What comes after them is not read.
    """
    found: list[tuple[Row[Any], JobView | Damaged]] = []
    left = bytes_max
    # PostgreSQL's driver would fetch all of them at once.
    with closing(connection.execute(query.execution_options(yield_per=VIEWS_AT_ONCE))) as result:
        for rows in result.partitions():
            for row, view in zip(rows, readable_views(connection, rows, place=place), strict=True):
                left -= _view_bytes(view)
                if left < 0 and found:
                    return found, True
                found.append((row, view))
    return found, False


def _view_bytes(view: JobView | Damaged) -> int:
    if isinstance(view, Damaged):
        return VIEW_BYTES
    attempts = sum(VIEW_BYTES + len(attempt.message) for attempt in view.attempts)
    return VIEW_BYTES + len(view.job.spec) + len(view.job.reason_message) + attempts


def views(connection: Connection, jobs: Sequence[Job], *, read: Read = _at_once) -> list[JobView]:
    """The jobs with their newest attempts and last checkpoints, in the same order: two queries, however many."""
    tried = [job.uid for job in jobs if job.attempts]
    attempts: dict[str, list[Attempt]] = {uid: [] for uid in tried}
    if tried:
        table = tables.attempts
        query = select(table).join(tables.jobs, tables.jobs.c.uid == table.c.job_uid)
        query = query.where(table.c.job_uid.in_(tried), table.c.number > tables.jobs.c.attempts - ATTEMPTS_SHOWN_MAX)
        rows = few_at_a_time(connection.execute(query.order_by(table.c.number)))
        for attempt in read(rows, attempt_from_row, lambda row: f"{row.job_uid}/{row.number}"):
            if not isinstance(attempt, Damaged):
                attempts[attempt.job_uid].append(attempt)
    keys = [job.last_checkpoint for job in jobs if job.last_checkpoint is not None]
    checkpoints = _checkpoints(connection, keys, read)
    return [
        JobView(
            job=job,
            attempts=tuple(attempts.get(job.uid, ())),
            last_checkpoint=checkpoints.get(job.last_checkpoint) if job.last_checkpoint is not None else None,
        )
        for job in jobs
    ]


def _checkpoints(connection: Connection, keys: Sequence[CheckpointKey], read: Read) -> dict[CheckpointKey, Checkpoint]:
    if not keys:
        return {}
    table = tables.checkpoints
    columns = tuple_(table.c.job_uid, table.c.epoch, table.c.iteration)
    query = select(table).where(columns.in_([(key.job_uid, key.epoch, key.iteration) for key in keys]))
    rows = few_at_a_time(connection.execute(query))
    found = read(rows, checkpoint_from_row, lambda row: f"{row.job_uid}/{row.epoch}")
    return {checkpoint.key: checkpoint for checkpoint in found if not isinstance(checkpoint, Damaged)}


def last_revision(connection: Connection) -> int:
    """The last revision that is visible."""
    return int(connection.execute(select(counters.c.value).where(counters.c.name == REVISION)).scalar() or 0)
