"""Stored credentials that nothing uses any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, select
from sqlalchemy.sql.elements import ColumnElement

from services.scheduler.domain.job import FINAL
from services.scheduler.domain.project import Project
from services.scheduler.domain.view import Damaged
from services.scheduler.store import tables
from services.scheduler.store.rows import project_from_row, readable
from services.scheduler.store.transaction import Transaction

PROJECTS_TOGETHER_MAX = 500
"""Projects whose jobs one statement looks at."""


def forget_credentials(transaction: Transaction, projects: Sequence[Project]) -> None:
    """Delete the projects' credentials that neither their sources nor a job that has not ended can use any more."""
    connection, credentials = transaction.connection, tables.credentials
    query = select(credentials.c.id).where(credentials.c.project_uid.in_([project.uid for project in projects]))
    unused = set(connection.execute(query).scalars()) - _of_sources(projects)
    if unused:
        unused -= _of_living_jobs(connection, [project.uid for project in projects])
    if unused:
        connection.execute(delete(credentials).where(credentials.c.id.in_(sorted(unused))))


def unused_credentials(connection: Connection) -> list[str]:
    """Ids of the credentials that neither a project's sources nor a living job can use any more, since a job has ended.

    Looks at every living job of their projects: for a reader.
    """
    projects, credentials = tables.projects, tables.credentials
    query = select(projects).where(projects.c.uid.in_(select(credentials.c.project_uid)))
    used = _of_projects(connection, query)
    stored = {
        row.id: row.project_uid for row in connection.execute(select(credentials.c.id, credentials.c.project_uid))
    }
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
    damaged = [each.place for each in found if isinstance(each, Damaged)]
    kept = select(tables.credentials.c.id).where(tables.credentials.c.project_uid.in_(damaged))
    used = set(connection.execute(kept).scalars()) if damaged else set()
    return used | _of_sources([each for each in found if not isinstance(each, Damaged)])


def _of_sources(projects: Sequence[Project]) -> set[str]:
    sources = (source for project in projects for source in (project.training_dataset, project.validation_dataset))
    return {source.credentials_id for source in sources if source is not None}


def _of_living_jobs(connection: Connection, project_uids: Sequence[str]) -> set[str]:
    jobs = tables.jobs
    living = jobs.c.state.not_in(sorted(state.value for state in FINAL))
    return _of_jobs(connection, and_(jobs.c.project_uid.in_(project_uids), living))


def _of_jobs(connection: Connection, which: ColumnElement[bool]) -> set[str]:
    jobs = tables.jobs
    columns = [
        dataset["credentials_id"].as_string() for dataset in (jobs.c.training_dataset, jobs.c.validation_dataset)
    ]
    query = select(*columns).where(which).distinct()
    return {credentials_id for row in connection.execute(query) for credentials_id in row if credentials_id}
