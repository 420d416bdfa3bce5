"""Projects in the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Reason, Violation
from services.scheduler.fact import JobDeleted
from services.scheduler.job import FINAL
from services.scheduler.project import DatasetSource, Project
from services.scheduler.store import tables
from services.scheduler.store.database import Database
from services.scheduler.store.requests import Request, answered
from services.scheduler.store.rows import project_from_row, project_to_row
from services.scheduler.store.transaction import Transaction

Encode = Callable[[Project], bytes]

_BY_ID = select(tables.projects).where(tables.projects.c.project_id == bindparam("id"))  # built once: see `queue`


@dataclass(frozen=True, kw_only=True)
class SourceChange:
    """A dataset source as a caller gives it. `sealed`: new credentials. `keep`: those that are stored stay."""

    uri: str
    endpoint_url: str = ""
    region: str = ""
    sealed: bytes | None = None
    keep: bool = False


@dataclass(frozen=True, kw_only=True)
class ProjectChange:
    """What an update changes; None leaves a field as it is."""

    display_name: str | None = None
    training_dataset: SourceChange | None = None
    validation_dataset: SourceChange | None = None
    drop_validation_dataset: bool = False
    revision: int | None = None
    """The state that the caller has seen; None changes whatever is there."""


class ProjectStore:
    """Projects. What mutates answers with what `encode` made of the first answer to the request."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        request: Request,
        encode: Encode,
        *,
        project_id: str,
        display_name: str,
        training: SourceChange,
        validation: SourceChange | None,
    ) -> bytes:
        """Make a project, or AlreadyExists."""

        def create(transaction: Transaction) -> Project:
            uid = transaction.new_id()
            project = Project(
                uid=uid,
                project_id=project_id,
                display_name=display_name,
                training_dataset=_stored(transaction, uid, training, None, "training_dataset"),
                validation_dataset=_stored(transaction, uid, validation, None, "validation_dataset")
                if validation
                else None,
                create_time_us=transaction.now_us,
                update_time_us=transaction.now_us,
                revision=transaction.next_revision(),
            )
            try:
                transaction.connection.execute(insert(tables.projects), project_to_row(project))
            except IntegrityError as error:
                raise AlreadyExists(
                    Reason.PROJECT_ALREADY_EXISTS,
                    f"{project.name} exists already: take another id",
                    {"name": project.name},
                ) from error
            return project

        return await self._database.write(lambda tx: answered(tx, request, lambda: create(tx), encode))

    async def get(self, project_id: str) -> Project:
        """The project, or NotFound."""
        return await self._database.read(lambda connection: find_project(connection, project_id))

    async def page(self, *, after: str, limit: int) -> list[Project]:
        """Projects by id, those after `after`."""
        query = select(tables.projects).where(tables.projects.c.project_id > after)
        query = query.order_by(tables.projects.c.project_id).limit(limit)
        return await self._database.read(lambda c: [project_from_row(row) for row in c.execute(query)])

    async def update(self, request: Request, encode: Encode, *, project_id: str, change: ProjectChange) -> bytes:
        """Change a project."""

        def update_project(transaction: Transaction) -> Project:
            project = find_project(transaction.connection, project_id)
            if change.revision is not None and change.revision != project.revision:
                raise FailedPrecondition(
                    Reason.ETAG_MISMATCH,
                    f"{project.name} has changed since it was read: read it again",
                    {"etag": str(change.revision), "current": str(project.revision)},
                )
            changed = _changed(transaction, project, change)
            changed = replace(changed, update_time_us=transaction.now_us, revision=transaction.next_revision())
            query = update(tables.projects).where(tables.projects.c.uid == project.uid)
            transaction.connection.execute(query.values(project_to_row(changed)))
            return changed

        return await self._database.write(lambda tx: answered(tx, request, lambda: update_project(tx), encode))

    async def delete(self, request: Request, encode: Encode, *, project_id: str) -> bytes:
        """Delete a project with its ended jobs; FailedPrecondition while one has not ended."""

        def delete_project(transaction: Transaction) -> Project:
            project = find_project(transaction.connection, project_id)
            _refuse_living_jobs(transaction.connection, project)
            _delete_jobs(transaction, project)
            for table in (tables.credentials, tables.waiting):
                transaction.connection.execute(delete(table).where(table.c.project_uid == project.uid))
            transaction.connection.execute(delete(tables.projects).where(tables.projects.c.uid == project.uid))
            return project

        return await self._database.write(lambda tx: answered(tx, request, lambda: delete_project(tx), encode))

    async def sealed_credentials(self, sources: Sequence[DatasetSource | None]) -> dict[str, bytes]:
        """The sealed credentials of the sources, by id."""
        ids = {source.credentials_id for source in sources if source is not None and source.credentials_id}
        if not ids:
            return {}
        query = select(tables.credentials.c.id, tables.credentials.c.sealed).where(tables.credentials.c.id.in_(ids))
        return await self._database.read(lambda c: {row.id: row.sealed for row in c.execute(query)})


def find_project(connection: Connection, project_id: str) -> Project:
    """The project, or NotFound."""
    row = connection.execute(_BY_ID, {"id": project_id}).one_or_none()
    if row is None:
        name = f"projects/{project_id}"
        raise NotFound(Reason.PROJECT_NOT_FOUND, f"{name} does not exist: create it first", {"name": name})
    return project_from_row(row)


def _changed(transaction: Transaction, project: Project, change: ProjectChange) -> Project:
    if change.display_name is not None:
        project = replace(project, display_name=change.display_name)
    if change.training_dataset is not None:
        source = _stored(
            transaction, project.uid, change.training_dataset, project.training_dataset, "training_dataset"
        )
        project = replace(project, training_dataset=source)
    if change.validation_dataset is not None:
        source = _stored(
            transaction, project.uid, change.validation_dataset, project.validation_dataset, "validation_dataset"
        )
        project = replace(project, validation_dataset=source)
    if change.drop_validation_dataset:
        project = replace(project, validation_dataset=None)
    return project


def _stored(
    transaction: Transaction, project_uid: str, change: SourceChange, before: DatasetSource | None, field: str
) -> DatasetSource:
    """The source with its credentials stored.

    New credentials for the same place replace the old ones, so that jobs that were submitted before can be run after a
    change of keys. Credentials never move to another place: who may edit a project could send them anywhere.
    """
    source = DatasetSource(uri=change.uri, endpoint_url=change.endpoint_url, region=change.region)
    same_place = source.same_place(before)
    known_id = before.credentials_id if before is not None and same_place else ""
    if change.sealed is None:
        if change.keep and not same_place:
            description = "must be given again: those that are stored are for another uri or endpoint_url"
            raise InvalidArgument([Violation(field=f"project.{field}.credentials", description=description)])
        return replace(source, credentials_id=known_id if change.keep else "")
    if known_id:
        query = update(tables.credentials).where(tables.credentials.c.id == known_id)
        transaction.connection.execute(query.values(sealed=change.sealed))
        return replace(source, credentials_id=known_id)
    row = {"id": transaction.new_id(), "project_uid": project_uid, "sealed": change.sealed}
    transaction.connection.execute(insert(tables.credentials), row)
    return replace(source, credentials_id=str(row["id"]))


def _refuse_living_jobs(connection: Connection, project: Project) -> None:
    jobs = tables.jobs
    final = sorted(state.value for state in FINAL)
    query = select(jobs.c.job_id).where(jobs.c.project_uid == project.uid, jobs.c.state.not_in(final)).limit(1)
    job_id = connection.execute(query).scalar_one_or_none()
    if job_id is not None:
        name = f"{project.name}/jobs/{job_id}"
        raise FailedPrecondition(
            Reason.PROJECT_HAS_ACTIVE_JOB,
            f"{project.name} has {name}, which has not ended: stop it first",
            {"job": name},
        )


def _delete_jobs(transaction: Transaction, project: Project) -> None:
    jobs = tables.jobs
    rows = transaction.connection.execute(select(jobs.c.uid, jobs.c.job_id).where(jobs.c.project_uid == project.uid))
    removed = [
        {
            "revision": transaction.next_revision(),
            "uid": row.uid,
            "project_uid": project.uid,
            "name": f"{project.name}/jobs/{row.job_id}",
            "create_time_us": transaction.now_us,
        }
        for row in rows.all()
    ]
    if not removed:
        return
    transaction.connection.execute(insert(tables.removed_jobs), removed)
    for row in removed:
        transaction.emit(JobDeleted(job_name=str(row["name"]), job_uid=str(row["uid"])))
    uids = select(jobs.c.uid).where(jobs.c.project_uid == project.uid)
    for table in (tables.job_labels, tables.attempts, tables.checkpoints):
        transaction.connection.execute(delete(table).where(table.c.job_uid.in_(uids)))
    transaction.connection.execute(delete(jobs).where(jobs.c.project_uid == project.uid))
