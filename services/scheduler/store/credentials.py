"""Stored credentials that nothing uses any more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, select, true
from sqlalchemy.sql.elements import ColumnElement

from services.scheduler.domain.project import Project
from services.scheduler.domain.view import Damaged
from services.scheduler.store import tables
from services.scheduler.store.database import Database
from services.scheduler.store.rows import Record, project_from_row, readable
from services.scheduler.store.transaction import Transaction
from services.scheduler.store.views import few_at_a_time, last_revision

PROJECTS_TOGETHER_MAX = 500
"""Projects whose jobs one statement looks at."""
CREDENTIALS_TOGETHER_MAX = 1_000
"""Credentials that one transaction deletes."""


async def forget_credentials(database: Database, project_uid: str | None = None) -> None:
    """Delete those, of one project or of all, that neither a project's sources nor a living job can use any more.

    Which they are is found by a reader, however many jobs there are: the writer has other things to do.
    """
    as_of, unused = await database.list(lambda c: (last_revision(c), unused_credentials(c, project_uid)))
    for start in range(0, len(unused), CREDENTIALS_TOGETHER_MAX):
        some = unused[start : start + CREDENTIALS_TOGETHER_MAX]
        await database.write(partial(sweep_credentials, unused=some, as_of=as_of))


def unused_credentials(connection: Connection, project_uid: str | None = None) -> list[str]:
    """Ids of the credentials that `forget_credentials` is to delete. Looks at every living job of their projects."""
    projects, credentials = tables.projects, tables.credentials
    which = credentials.c.project_uid == project_uid if project_uid is not None else true()
    query = select(projects).where(projects.c.uid.in_(select(credentials.c.project_uid).where(which)))
    used = _of_projects(connection, query)
    all_stored = select(credentials.c.id, credentials.c.project_uid).where(which)
    stored = {row.id: row.project_uid for row in connection.execute(all_stored)}
    unused = stored.keys() - used
    project_uids = sorted({stored[each] for each in unused})
    for start in range(0, len(project_uids), PROJECTS_TOGETHER_MAX):
        unused -= _of_living_jobs(connection, project_uids[start : start + PROJECTS_TOGETHER_MAX])
    return sorted(unused)


def sweep_credentials(transaction: Transaction, unused: Sequence[str], *, as_of: int) -> None:
    """Delete credentials that were unused as of a revision, but for those that are used again since."""
    connection, credentials, projects, jobs = transaction.connection, tables.credentials, tables.projects, tables.jobs
    its_project = select(credentials.c.project_uid).where(credentials.c.id.in_(unused))
    query = select(projects).where(projects.c.uid.in_(its_project))
    used = _of_projects(connection, query)
    used |= _of_jobs(connection, jobs.c.revision > as_of)
    if gone := sorted(set(unused) - used):
        connection.execute(delete(credentials).where(credentials.c.id.in_(gone)))


def _of_projects(connection: Connection, query: Select[Any]) -> set[str]:
    """What the projects' sources name; of a project that cannot be read all that is stored for it."""
    found = readable(connection.execute(query).all(), project_from_row, place=lambda row: str(row.uid))
    used = _of_damaged(connection, [each.place for each in found if isinstance(each, Damaged)])
    return used | _of_sources([each for each in found if not isinstance(each, Damaged)])


def _of_sources(projects: Sequence[Project]) -> set[str]:
    sources = (source for project in projects for source in (project.training_dataset, project.validation_dataset))
    return {source.credentials_id for source in sources if source is not None}


def _of_living_jobs(connection: Connection, project_uids: Sequence[str]) -> set[str]:
    jobs = tables.jobs
    return _of_jobs(connection, and_(jobs.c.project_uid.in_(project_uids), jobs.c.end_time_us.is_(None)))


def _of_jobs(connection: Connection, which: ColumnElement[bool]) -> set[str]:
    """What the jobs' datasets name; of a job that cannot be read all that is stored for its project."""
    jobs = tables.jobs
    query = select(jobs.c.project_uid, jobs.c.training_dataset, jobs.c.validation_dataset).where(which)
    rows = few_at_a_time(connection.execute(query))
    found = readable(rows, _of_datasets, place=lambda row: str(row.project_uid))
    named = itertools.chain.from_iterable(each for each in found if not isinstance(each, Damaged))
    return set(named) | _of_damaged(connection, [each.place for each in found if isinstance(each, Damaged)])


def _of_datasets(job: Record) -> list[str]:
    datasets = (job["training_dataset"], job["validation_dataset"])
    return [dataset.get("credentials_id", "") for dataset in datasets if dataset is not None]


def _of_damaged(connection: Connection, project_uids: Sequence[str]) -> set[str]:
    """All that is stored for projects of which it cannot be said what is used."""
    kept = select(tables.credentials.c.id).where(tables.credentials.c.project_uid.in_(project_uids))
    return set(connection.execute(kept).scalars()) if project_uids else set()
