"""The queue in the database: which jobs are ready, of each kind the first, and why a job waits.

Every question is a step into an index, so none costs more with more queued jobs. What changes here is told to the
dispatcher in the same transaction; who gets what is decided there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Text, and_, bindparam, cast, exists, func, select

from services.scheduler.domain.dispatcher import ReadyJob, ready_job
from services.scheduler.domain.job import Job
from services.scheduler.domain.lease import Runner
from services.scheduler.domain.view import Damaged, QueueStanding
from services.scheduler.store.rows import Record, capabilities_from_json, readable, runner_from_row
from services.scheduler.store.statement import Statement, Values, from_json
from services.scheduler.store.tables import attempts, jobs, projects, runners
from services.scheduler.store.together import Step
from services.scheduler.store.transaction import Transaction

_PROJECT = bindparam("project", type_=Text)
_IS_READY = and_(jobs.c.ready, jobs.c.project_uid == _PROJECT)
_FIRST_OF_KIND = Statement(
    select(jobs.c.uid, jobs.c.needs_key, jobs.c.priority, jobs.c.sequence, jobs.c.overtaken)
    .where(_IS_READY, jobs.c.needs_key == bindparam("needs"))
    .order_by(jobs.c.priority.desc(), jobs.c.sequence)
    .limit(1)
)
_NEXT_KIND = Statement(
    select(jobs.c.needs_key)
    .where(_IS_READY, jobs.c.needs_key > bindparam("beyond"))
    .order_by(jobs.c.needs_key)
    .limit(1)
)
_SERVED_BY_UID = Statement(select(projects.c.served).where(projects.c.uid == _PROJECT))
# From one project with a ready job to the next, each a step into the queue's index.
_FIRST_WAITING = select(func.min(jobs.c.project_uid).label("uid")).where(jobs.c.ready).cte("waiting", recursive=True)
_NEXT_WAITING = select(func.min(jobs.c.project_uid)).where(jobs.c.ready, jobs.c.project_uid > _FIRST_WAITING.c.uid)
_EACH_WAITING = _FIRST_WAITING.union_all(
    select(_NEXT_WAITING.scalar_subquery()).where(_FIRST_WAITING.c.uid.is_not(None))
)
_WAITING = select(projects.c.uid, projects.c.served).join(_EACH_WAITING, _EACH_WAITING.c.uid == projects.c.uid)
SERVED = Statement(select(projects.c.served), key=projects.c.project_id)
_BUSY = select(attempts.c.project_uid, projects.c.served).join(projects, projects.c.uid == attempts.c.project_uid)
# Runners by all that matters to a job that waits: a cluster has thousands of them, and few kinds.
_EACH = (
    select(
        runners.c.runner_id,
        cast(runners.c.capabilities, Text).label("capabilities"),
        (runners.c.draining | runners.c.drain_asked).label("drained"),
        runners.c.put_aside_until_us.is_not(None).label("put_aside"),
        runners.c.put_aside_reason,
        exists().where(attempts.c.runner_id == runners.c.runner_id, attempts.c.active).label("busy"),
        runners.c.runner_id.in_(bindparam("avoided", expanding=True)).label("avoided"),
    )
    .where(~runners.c.lost)
    .subquery()
)
_KIND = [column for column in _EACH.c if column.name != "runner_id"]
_FIRST = func.min(_EACH.c.runner_id)
_ALIKE = (
    select(_FIRST.label("runner_id"), func.count().label("number"), *_KIND)
    .group_by(*_KIND)
    .order_by(_FIRST)
    .limit(bindparam("kinds_max"))
)
_IS_BUSY = Statement(select(attempts.c.job_uid).where(attempts.c.project_uid == _PROJECT, attempts.c.active))


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How the queue is shown."""

    position_max: int = 1_000
    """A queue position is counted up to this."""
    runner_kinds_max: int = 200
    """Runners that differ from one another, of which each is held against a job that waits."""


def enter_queue(transaction: Transaction, job: Job) -> None:
    """The job has become ready."""
    served = served_of(transaction, job)
    transaction.dispatcher.enter(job.project_uid, ready_job(job), served=served)


def leave_queue(transaction: Transaction, job: Job) -> None:
    """The job, whose row says so already, is not ready any more. Costs nothing unless it was the first of its kind."""
    if transaction.dispatcher.is_first(job.project_uid, job.needs.key, job.uid):
        advance(transaction, [job])


def advance(transaction: Transaction, gone: Sequence[Job], *, after: Sequence[Step[None]] = ()) -> None:
    """The jobs, which were the first of their kinds, are not ready any more `after` these steps: tell which ones are
    first now.
    """
    places = [{"project": job.project_uid, "needs": job.needs.key} for job in gone]
    *_, found = transaction.together([*after, transaction.asking(_FIRST_OF_KIND, places)])
    for place, rows in zip(places, found, strict=True):
        first = _ready_job_from_row(rows[0]) if rows else None
        transaction.dispatcher.advance(place["project"], place["needs"], first)


def served_of(transaction: Transaction, job: Job) -> int:
    """When the job's project was served last."""
    served = transaction.dispatcher.served(job.project_uid)
    if served is None:
        row = transaction.look_up(SERVED, id=job.project_id)
        assert row is not None, "a job's project is never gone"
        served = int(row["served"])
    return served


def reload_project(transaction: Transaction, project_uid: str) -> None:
    """Tell the dispatcher anew what stands in the rows of a project."""
    connection, dispatcher = transaction.connection, transaction.dispatcher
    dispatcher.drop(project_uid)
    row = _SERVED_BY_UID.one(connection, {"project": project_uid})
    if row is None:
        return
    served = int(row["served"])
    _enter_first_jobs(transaction, {project_uid: served})
    if _IS_BUSY.all(connection, {"project": project_uid}):
        dispatcher.occupy(project_uid, served=served)


def reload_all(transaction: Transaction) -> None:
    """Tell the dispatcher, which knows nothing, all that the rows say: runners, projects that wait, those at work."""
    connection, dispatcher = transaction.connection, transaction.dispatcher
    rows = connection.execute(select(runners).where(~runners.c.lost))
    for runner in readable(rows, runner_from_row, place=lambda row: str(row.runner_id)):
        if not isinstance(runner, Damaged) and runner.takes_jobs:
            dispatcher.register(runner.runner_id, runner.capabilities)
    _enter_first_jobs(transaction, {row.uid: int(row.served) for row in connection.execute(_WAITING)})
    for busy in connection.execute(_BUSY.where(attempts.c.active)).all():
        dispatcher.occupy(busy.project_uid, served=busy.served)


def queue_standing(connection: Connection, job: Job, limits: QueueLimits) -> QueueStanding:
    """Why the queued job waits."""
    query = select(jobs.c.uid).where(jobs.c.ready, jobs.c.project_uid == job.project_uid)
    query = query.order_by(jobs.c.priority.desc(), jobs.c.sequence)
    uids = list(connection.execute(query.limit(limits.position_max)).scalars())
    active = select(jobs.c.project_id, jobs.c.job_id).join(
        attempts, and_(attempts.c.job_uid == jobs.c.uid, attempts.c.active)
    )
    row = connection.execute(active.where(attempts.c.project_uid == job.project_uid)).one_or_none()
    alike = connection.execute(_ALIKE, {"kinds_max": limits.runner_kinds_max, "avoided": job.needs.avoided}).all()
    kinds = readable(alike, _runner_of_kind, place=lambda row: str(row.runner_id))
    return QueueStanding(
        ahead=uids.index(job.uid) if job.uid in uids else len(uids),
        active_job=f"projects/{row.project_id}/jobs/{row.job_id}" if row is not None else "",
        held=job.held,
        retry_time_us=job.retry_time_us,
        runners=tuple(runner for runner in kinds if not isinstance(runner, Damaged)),
        busy=frozenset(row.runner_id for row in alike if row.busy),
        avoided=frozenset(row.runner_id for row in alike if row.avoided),
        avoid_until_us=job.avoid_until_us,
        registered=sum(row.number for row in alike),
    )


def _runner_of_kind(row: Record) -> Runner:
    """A runner with what matters of it to a job that waits."""
    return Runner(
        runner_id=row["runner_id"],
        session="",
        sequence=0,
        capabilities=capabilities_from_json(from_json(row["capabilities"])),
        draining=row["drained"],
        put_aside_until_us=0 if row["put_aside"] else None,
        put_aside_reason=row["put_aside_reason"],
    )


def _enter_first_jobs(transaction: Transaction, served: Mapping[str, int]) -> None:
    """Tell of each project, with when it was served last, the first job of each kind. A few statements for all."""
    connection = transaction.connection
    places: list[Values] = []
    beyond = [{"project": uid, "beyond": ""} for uid in served]
    while beyond:  # each turn finds one more kind of every project that has one
        found = _NEXT_KIND.each(connection, beyond)
        kinds = [(place["project"], rows[0]["needs_key"]) for place, rows in zip(beyond, found, strict=True) if rows]
        places += [{"project": uid, "needs": kind} for uid, kind in kinds]
        beyond = [{"project": uid, "beyond": kind} for uid, kind in kinds]
    for place, rows in zip(places, _FIRST_OF_KIND.each(connection, places), strict=True):
        uid = place["project"]
        for row in rows:
            transaction.dispatcher.enter(uid, _ready_job_from_row(row), served=served[uid])


def _ready_job_from_row(row: Values) -> ReadyJob:
    return ReadyJob(kind=row["needs_key"], **{name: value for name, value in row.items() if name != "needs_key"})
