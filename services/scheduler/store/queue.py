"""The queue in the database: which project may be served, and which of its jobs goes first.

Every question is a step into an index, so none costs more with more queued jobs. Kinds of needs are found by skipping
from one to the next in the index; `needs_max` bounds how many of a project are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Select,
    Text,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    select,
    tuple_,
    update,
)

from services.scheduler.job import Job
from services.scheduler.lease import Runner
from services.scheduler.placement import fits, needs_from_key
from services.scheduler.store.rows import runner_from_row
from services.scheduler.store.tables import attempts, jobs, projects, runners, waiting
from services.scheduler.store.transaction import Transaction

Fit = Callable[[str], bool]
"""Whether a job with these needs can be served now."""


# Statements of the busiest calls are built once: building one costs more than running it.
_PROJECT = bindparam("project", type_=Text)
_IS_READY = and_(jobs.c.ready, jobs.c.project_uid == _PROJECT)
_HAS_ACTIVE = exists().where(attempts.c.project_uid == _PROJECT, attempts.c.active)
_ENTER = insert(waiting).from_select(
    ["project_uid", "needs_key", "served"],
    select(_PROJECT, bindparam("needs", type_=Text), bindparam("served_at", type_=BigInteger))
    .where(~_HAS_ACTIVE)
    .where(~exists().where(waiting.c.project_uid == _PROJECT, waiting.c.needs_key == bindparam("needs"))),
)
_LEAVE = delete(waiting).where(waiting.c.project_uid == _PROJECT)
_STATE = select(projects.c.served, _HAS_ACTIVE.label("has_active")).where(projects.c.uid == _PROJECT)
_FIRST = (
    select(jobs.c.uid, jobs.c.needs_key, jobs.c.priority, jobs.c.sequence, jobs.c.overtaken)
    .where(_IS_READY)
    .order_by(jobs.c.priority.desc(), jobs.c.sequence)
    .limit(1)
)
_FIRST_WITH_NEEDS = _FIRST.where(jobs.c.needs_key == bindparam("needs"))
_NEXT_READY_NEEDS = (
    select(jobs.c.needs_key)
    .where(_IS_READY, jobs.c.needs_key > bindparam("beyond"))
    .order_by(jobs.c.needs_key)
    .limit(1)
)
_NEXT_WAITING_NEEDS = (
    select(waiting.c.needs_key).where(waiting.c.needs_key > bindparam("beyond")).order_by(waiting.c.needs_key).limit(1)
)
_TURN = (waiting.c.served, waiting.c.project_uid)
_WAITING_WITH_NEEDS = (
    select(*_TURN)
    .where(waiting.c.needs_key == bindparam("needs"))
    .where(tuple_(*_TURN) > tuple_(bindparam("served_at"), bindparam("beyond")))
    .order_by(*_TURN)
    .limit(bindparam("limit"))
)


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How the queue is gone through."""

    overtakes_max: int = 20
    """After so many jobs that went before it the first job of a project has the project's slot kept for it."""
    needs_max: int = 64
    """Kinds of needs that are looked at, of one project and of all that wait."""
    projects_max: int = 16
    """Projects that are read at once, where slots are kept."""
    position_max: int = 1_000
    """A queue position is counted up to this."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The job that goes next."""

    job_uid: str
    needs_key: str


@dataclass(frozen=True, kw_only=True)
class QueueStanding:
    """Why a job waits. `ahead` is counted up to a limit."""

    ahead: int
    active_job: str
    held: bool
    runners: tuple[Runner, ...]
    """Registered runners that are not lost, bounded."""
    busy: frozenset[str]
    """Ids of those that have an attempt."""


def enter_queue(transaction: Transaction, job: Job, served: int) -> None:
    """A new job is ready. Costs one statement, whatever else waits."""
    row = {"project": job.project_uid, "needs": job.needs.key, "served_at": served}
    result = transaction.connection.execute(_ENTER, row)
    if result.rowcount:
        transaction.touch_project(job.project_uid)


def leave_queue(transaction: Transaction, project_uid: str) -> None:
    """The project has an active attempt: it waits no more."""
    transaction.connection.execute(_LEAVE, {"project": project_uid})


def refresh_queue(transaction: Transaction, project_uid: str, *, needs_max: int = QueueLimits.needs_max) -> None:
    """Make the project's rows in `waiting` what they must be, after a job or an attempt of it changed."""
    connection = transaction.connection
    leave_queue(transaction, project_uid)
    state = connection.execute(_STATE, {"project": project_uid}).one()
    keys = [] if state.has_active else ready_needs(connection, project_uid, needs_max)
    if keys:
        rows = [{"project_uid": project_uid, "needs_key": key, "served": state.served} for key in keys]
        connection.execute(insert(waiting), rows)
        transaction.touch_project(project_uid)


def choose_job(
    transaction: Transaction, project_uid: str, fit: Fit, registered_fit: Fit, limits: QueueLimits
) -> Choice | None:
    """The project's job that goes next to a runner that can serve what `fit` says.

    A job that cannot be served is overtaken, `overtakes_max` times; then the slot is kept for it, if some registered
    runner could serve it at all.
    """
    connection = transaction.connection
    head = connection.execute(_FIRST, {"project": project_uid}).one_or_none()
    if head is None:
        return None
    if fit(head.needs_key):
        return Choice(job_uid=head.uid, needs_key=head.needs_key)
    if head.overtaken >= limits.overtakes_max and registered_fit(head.needs_key):
        return None
    keys = [key for key in ready_needs(connection, project_uid, limits.needs_max) if fit(key)]
    if not keys:
        return None
    firsts = [connection.execute(_FIRST_WITH_NEEDS, {"project": project_uid, "needs": key}).one() for key in keys]
    best = min(firsts, key=lambda row: (-row.priority, row.sequence))
    connection.execute(update(jobs).where(jobs.c.uid == head.uid).values(overtaken=jobs.c.overtaken + 1))
    return Choice(job_uid=best.uid, needs_key=best.needs_key)


def projects_in_turn(connection: Connection, fit: Fit, limits: QueueLimits) -> Iterator[str]:
    """Waiting projects with a job that can be served, the one served longest ago first."""
    keys = [key for key in waiting_needs(connection, limits.needs_max) if fit(key)]
    last = (-1, "")
    while True:
        found: set[tuple[int, str]] = set()
        for key in keys:
            row = {"needs": key, "served_at": last[0], "beyond": last[1], "limit": limits.projects_max}
            found.update((each.served, each.project_uid) for each in connection.execute(_WAITING_WITH_NEEDS, row))
        page = sorted(found)[: limits.projects_max]
        if not page:
            return
        yield from (project_uid for _, project_uid in page)
        last = page[-1]


def waiting_in_turn(connection: Connection, project_uids: Iterable[str]) -> list[str]:
    """Those of the projects that wait, the one served longest ago first."""
    query = select(waiting.c.served, waiting.c.project_uid).where(waiting.c.project_uid.in_(set(project_uids)))
    found = {(row.served, row.project_uid) for row in connection.execute(query)}
    return [project_uid for _, project_uid in sorted(found)]


def ready_needs(connection: Connection, project_uid: str, needs_max: int) -> list[str]:
    """The kinds of needs among the project's ready jobs."""
    return _distinct(connection, _NEXT_READY_NEEDS, {"project": project_uid}, needs_max)


def waiting_needs(connection: Connection, needs_max: int) -> list[str]:
    """The kinds of needs among the waiting projects."""
    return _distinct(connection, _NEXT_WAITING_NEEDS, {}, needs_max)


def registered_runners(connection: Connection, limit: int = 10_000) -> list[Runner]:
    """Runners that are not lost."""
    rows = connection.execute(select(runners).where(~runners.c.lost).limit(limit))
    return [runner_from_row(row) for row in rows]


def any_registered_fit(connection: Connection, needs_key: str) -> bool:
    """Whether some runner that is not lost could serve these needs."""
    needs = needs_from_key(needs_key)
    return any(fits(needs, runner.capabilities) for runner in registered_runners(connection))


def queue_standing(connection: Connection, job: Job, limits: QueueLimits) -> QueueStanding:
    """Why the queued job waits."""
    query = select(jobs.c.uid).where(jobs.c.ready, jobs.c.project_uid == job.project_uid)
    query = query.order_by(jobs.c.priority.desc(), jobs.c.sequence)
    uids = list(connection.execute(query.limit(limits.position_max)).scalars())
    active = select(jobs.c.project_id, jobs.c.job_id).join(
        attempts, and_(attempts.c.job_uid == jobs.c.uid, attempts.c.active)
    )
    row = connection.execute(active.where(attempts.c.project_uid == job.project_uid)).one_or_none()
    busy = connection.execute(select(attempts.c.runner_id).where(attempts.c.active)).scalars()
    return QueueStanding(
        ahead=uids.index(job.uid) if job.uid in uids else len(uids),
        active_job=f"projects/{row.project_id}/jobs/{row.job_id}" if row is not None else "",
        held=job.held,
        runners=tuple(registered_runners(connection, limits.position_max)),
        busy=frozenset(busy),
    )


def _distinct(connection: Connection, query: Select[Any], row: dict[str, str], values_max: int) -> list[str]:
    """The different values of an indexed column, in order: `query` finds the next beyond one, in one step."""
    found: list[str] = []
    while len(found) < values_max:
        value = connection.execute(query, {**row, "beyond": found[-1] if found else ""}).scalar_one_or_none()
        if value is None:
            break
        found.append(str(value))
    return found
