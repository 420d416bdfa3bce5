"""Projects in the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, bindparam, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
    SihlaiError,
    Violation,
)
from services.chassis.log import get_logger
from services.scheduler.domain.fact import JobDeleted
from services.scheduler.domain.job import Job
from services.scheduler.domain.project import (
    CredentialsChange,
    DatasetSource,
    Project,
    ProjectChange,
    SourceChange,
)
from services.scheduler.domain.request import Request
from services.scheduler.domain.view import Damaged
from services.scheduler.store import tables
from services.scheduler.store.committed import Committed
from services.scheduler.store.credentials import forget_credentials
from services.scheduler.store.database import Database
from services.scheduler.store.requests import answered, first_answer
from services.scheduler.store.rows import project_from_row, project_to_row, readable
from services.scheduler.store.statement import Statement, Values
from services.scheduler.store.transaction import Transaction

log = get_logger(__name__)

Encode = Callable[[Project], bytes]

RESEALED_TOGETHER_MAX = 500
"""Credentials that one transaction seals anew: others wait for it."""

KNOWN_MAX = 2_000
"""Projects that are kept in memory: by those who answer calls, and by the writer."""
JOBS_PURGED_MAX = 500
"""Jobs of a deleted project that one transaction takes out."""
DELETED = "~"
"""What the id of a deleted project begins with while its jobs are taken out; no caller's id does."""
IS_DELETED = tables.projects.c.project_id.like(f"{DELETED}%")
PROJECT_BY_ID = Statement(select(tables.projects), key=tables.projects.c.project_id)


class DoomedJob(Struct, frozen=True, kw_only=True):
    """A job that is to be taken out, and its place in the order of all of them."""

    project_uid: str
    job_id: str
    uid: str


class ProjectStore:
    """Projects. What mutates answers with what `encode` made of the first answer to the request."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, Project] = {}
        """Those that callers ask for all the time: nobody but this process changes one."""
        self._changes = 0
        database.after_commit.append(self._forget_changed)

    def _forget_changed(self, committed: Committed) -> None:
        for project_id in committed.projects:
            self._changes += 1
            self._known.pop(project_id, None)

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
            made.append(project)
            return project

        made, changes = list[Project](), self._changes
        answer = await self._database.write(lambda tx: answered(tx, request, lambda: create(tx), encode))
        self._know(made, changes)
        return answer

    async def get(self, project_id: str) -> Project:
        """The project, or NotFound."""
        known, changes = self._known.get(project_id), self._changes
        if known is not None:
            return known
        project = await self._database.read(lambda connection: find_project(connection, project_id))
        self._know([project], changes)
        return project

    def _know(self, projects: Sequence[Project], changes: int) -> None:
        """They were on disk after so many changes of any."""
        if changes == self._changes:
            if len(self._known) + len(projects) > KNOWN_MAX:
                self._known.clear()
            self._known |= {project.project_id: project for project in projects}

    async def page(self, *, after: str, limit: int, among: Set[str] | None = None) -> list[Project | Damaged]:
        """Projects by id, those after `after`; of these ids alone where some are given."""
        query = select(tables.projects).where(tables.projects.c.project_id > after, ~IS_DELETED)
        if among is not None:
            query = query.where(tables.projects.c.project_id.in_(among))
        query = query.order_by(tables.projects.c.project_id).limit(limit)
        return await self._database.list(
            lambda c: readable(c.execute(query), project_from_row, place=lambda row: str(row.project_id))
        )

    async def update(self, request: Request, encode: Encode, *, project_id: str, change: ProjectChange) -> bytes:
        """Change a project."""

        def update_project(transaction: Transaction) -> Project:
            project = find_project(transaction.connection, project_id)
            transaction.change_project(project_id)
            if change.revision is not None and change.revision != project.revision:
                raise FailedPrecondition(
                    Reason.ETAG_MISMATCH,
                    f"{project.name} has changed since it was read: read it again",
                    {"etag": f"{change.revision:x}", "current": f"{project.revision:x}"},
                )
            changed = _changed(transaction, project, change)
            changed = replace(changed, update_time_us=transaction.now_us, revision=transaction.next_revision())
            query = update(tables.projects).where(tables.projects.c.uid == project.uid)
            transaction.connection.execute(query.values(project_to_row(changed)))
            made.append(changed)
            return changed

        made = list[Project]()
        answer = await self._database.write(lambda tx: answered(tx, request, lambda: update_project(tx), encode))
        for changed in made:
            try:
                await forget_credentials(self._database, changed.uid)
            except SihlaiError as error:  # the project is changed; Upkeep.forget will come by
                log.warning("credentials_not_forgotten", project=changed.name, problem=str(error))
        return answer

    async def delete(self, request: Request, encode: Encode, *, project_id: str) -> bytes:
        """Delete a project with its ended jobs; FailedPrecondition while one has not ended.

        It is gone at once, and its id is free; its jobs are taken out later, in pieces (`doomed`, `purge`).
        """

        def delete_project(transaction: Transaction) -> Project:
            project = find_project(transaction.connection, project_id)
            transaction.change_project(project_id)
            _refuse_living_jobs(transaction.connection, project)
            credentials = delete(tables.credentials).where(tables.credentials.c.project_uid == project.uid)
            transaction.connection.execute(credentials)
            transaction.dispatcher.drop(project.uid)
            renamed = update(tables.projects).where(tables.projects.c.uid == project.uid)
            transaction.connection.execute(renamed.values(project_id=f"{DELETED}{project.uid}"))
            return project

        return await self._database.write(lambda tx: answered(tx, request, lambda: delete_project(tx), encode))

    async def doomed(self, *, after: DoomedJob | None = None) -> list[DoomedJob]:
        """Jobs of deleted projects that are still there, in a fixed order from `after` on, at most JOBS_PURGED_MAX."""
        jobs, projects = tables.jobs, tables.projects
        query = select(projects.c.uid.label("project_uid"), jobs.c.job_id, jobs.c.uid)
        query = query.join(jobs, jobs.c.project_uid == projects.c.uid).where(IS_DELETED)
        if after is not None:
            is_later = (projects.c.uid > after.project_uid) | (jobs.c.job_id > after.job_id)
            query = query.where(projects.c.uid >= after.project_uid, is_later)
        query = query.order_by(projects.c.uid, jobs.c.job_id).limit(JOBS_PURGED_MAX)
        return await self._database.list(lambda c: [DoomedJob(**row._mapping) for row in c.execute(query)])

    async def deleted(self, job_uids: Sequence[str]) -> set[str]:
        """Those of the jobs that were deleted, whether or not they are taken out. Who is not known was not."""
        jobs, projects, removed = tables.jobs, tables.projects, tables.removed_jobs
        doomed = select(jobs.c.uid).join(projects, projects.c.uid == jobs.c.project_uid)
        doomed = doomed.where(jobs.c.uid.in_(job_uids), IS_DELETED)
        gone = select(removed.c.uid).where(removed.c.uid.in_(job_uids), ~exists().where(jobs.c.uid == removed.c.uid))
        return await self._database.list(lambda c: {*c.execute(doomed).scalars(), *c.execute(gone).scalars()})

    async def purge(self, job_uids: Sequence[str]) -> None:
        """Take out these jobs of deleted projects, and the projects that have none left; who watches is told."""
        await self._database.write(lambda tx: _purge(tx, job_uids))

    async def is_gone(self, project_uid: str) -> bool:
        """Whether nothing is left of the project."""
        query = select(tables.projects.c.uid).where(tables.projects.c.uid == project_uid)
        return await self._database.read(lambda c: c.execute(query).first() is None)

    async def sealed_credentials(self, sources: Sequence[DatasetSource | None]) -> dict[str, bytes]:
        """The sealed credentials of the sources, by id."""
        ids = {source.credentials_id for source in sources if source is not None and source.credentials_id}
        if not ids:
            return {}
        query = select(tables.credentials.c.id, tables.credentials.c.sealed).where(tables.credentials.c.id.in_(ids))
        return await self._database.read(lambda c: {row.id: row.sealed for row in c.execute(query)})

    async def reseal(self, sealed_anew: Callable[[Sequence[bytes]], Mapping[bytes, bytes]]) -> int:
        """Replace credentials that an older key sealed, some in each transaction; return how many. `sealed_anew` says
        by what.
        """
        count, after = 0, ""
        while True:
            resealed, last = await self._database.write(partial(_reseal, sealed_anew=sealed_anew, after=after))
            count += resealed
            if not last:
                return count
            after = last

    async def first_answer(self, request: Request) -> bytes | None:
        """What the request was answered before, if it was."""
        return await self._database.read(lambda connection: first_answer(connection, request))

    async def answer(self, request: Request, answer: bytes) -> bytes:
        """Remember the answer, for a repeat."""
        return await self._database.write(lambda tx: answered(tx, request, lambda: answer, lambda made: made))


def _reseal(
    transaction: Transaction, *, sealed_anew: Callable[[Sequence[bytes]], Mapping[bytes, bytes]], after: str
) -> tuple[int, str]:
    """How many of the next rows were sealed anew, and the last one's id; empty at the end."""
    credentials = tables.credentials
    query = select(credentials.c.id, credentials.c.sealed).where(credentials.c.id > after)
    rows = transaction.connection.execute(query.order_by(credentials.c.id).limit(RESEALED_TOGETHER_MAX)).all()
    replaced = sealed_anew([row.sealed for row in rows])
    anew = [{"key": row.id, "by": replaced[row.sealed]} for row in rows if row.sealed in replaced]
    if anew:
        changed = update(credentials).where(credentials.c.id == bindparam("key"))
        transaction.connection.execute(changed.values(sealed=bindparam("by")), anew)
    return len(anew), rows[-1].id if len(rows) == RESEALED_TOGETHER_MAX else ""


def bury_job(transaction: Transaction, job: Job) -> None:
    """Move an ended job into a deleted project of its own, which has the job's uid: it is gone, and its name is free.

    So it is taken out as the jobs of deleted projects are.
    """
    grave = Project(
        uid=job.uid,
        project_id=f"{DELETED}{job.uid}",
        display_name="",
        training_dataset=job.training_dataset,
        validation_dataset=None,
        create_time_us=transaction.now_us,
        update_time_us=transaction.now_us,
        revision=transaction.next_revision(),
    )
    connection, jobs = transaction.connection, tables.jobs
    connection.execute(insert(tables.projects), project_to_row(grave))
    connection.execute(update(jobs).where(jobs.c.uid == job.uid).values(project_uid=grave.uid))
    connection.execute(
        insert(tables.removed_jobs), _removal(transaction, uid=job.uid, project_uid=job.project_uid, name=job.name)
    )


def find_project(connection: Connection, project_id: str) -> Project:
    """The project, or NotFound."""
    return _found(PROJECT_BY_ID.one(connection, {"id": project_id}), project_id)


def known_project(transaction: Transaction, project_id: str) -> Project:
    """The same, read once for as long as nobody changes it; when it was `served` last may not be true any more."""
    project = transaction.projects.get(project_id)
    if project is None:
        project = _found(transaction.look_up(PROJECT_BY_ID, id=project_id), project_id)
        if len(transaction.projects) >= KNOWN_MAX:
            transaction.projects.clear()
        transaction.projects[project_id] = project
    return project


def _found(row: Values | None, project_id: str) -> Project:
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
    transaction: Transaction,
    project_uid: str,
    change: SourceChange | CredentialsChange,
    before: DatasetSource | None,
    field: str,
) -> DatasetSource:
    """The source with its credentials stored.

    New credentials for the same place replace the old ones, so that jobs that were submitted before can be run after a
    change of keys; where none are given those of the same place stay. Credentials never move to another place: who may
    edit a project could send them anywhere.
    """
    if isinstance(change, CredentialsChange):
        if before is None:
            description = "belong to a dataset that the project does not have: give the dataset"
            raise InvalidArgument([Violation(field=f"project.{field}.credentials", description=description)])
        source, keeps = before, False
    else:
        source = DatasetSource(uri=change.uri, endpoint_url=change.endpoint_url, region=change.region)
        keeps = not change.drop
    known_id = before.credentials_id if before is not None and source.same_place(before) else ""
    if change.sealed is None:
        return replace(source, credentials_id=known_id if keeps else "")
    if known_id:
        query = update(tables.credentials).where(tables.credentials.c.id == known_id)
        transaction.connection.execute(query.values(sealed=transaction.renew_sealed(change.sealed)))
        return replace(source, credentials_id=known_id)
    return _with_new_credentials(transaction, project_uid, source, change.sealed)


def with_known_credentials(project: Project, source: DatasetSource) -> DatasetSource:
    """A source with those of the project's same source: its own, if it had any, may be deleted since."""
    for known in (project.training_dataset, project.validation_dataset):
        if source.same_place(known):
            assert known is not None, "nothing lies nowhere"
            return replace(source, credentials_id=known.credentials_id)
    return source


def job_dataset(
    transaction: Transaction, project: Project, source: DatasetSource, sealed: bytes | None
) -> DatasetSource:
    """The source of one job alone, with its credentials stored for as long as the job lives."""
    if sealed is None:
        return with_known_credentials(project, source)
    return _with_new_credentials(transaction, project.uid, source, sealed)


def _with_new_credentials(
    transaction: Transaction, project_uid: str, source: DatasetSource, sealed: bytes
) -> DatasetSource:
    row = {"id": transaction.new_id(), "project_uid": project_uid, "sealed": transaction.renew_sealed(sealed)}
    transaction.connection.execute(insert(tables.credentials), row)
    return replace(source, credentials_id=str(row["id"]))


def _refuse_living_jobs(connection: Connection, project: Project) -> None:
    jobs = tables.jobs
    query = select(jobs.c.job_id).where(jobs.c.project_uid == project.uid, jobs.c.end_time_us.is_(None)).limit(1)
    job_id = connection.execute(query).scalar_one_or_none()
    if job_id is not None:
        name = f"{project.name}/jobs/{job_id}"
        raise FailedPrecondition(
            Reason.PROJECT_HAS_ACTIVE_JOB,
            f"{project.name} has {name}, which has not ended: stop it first",
            {"job": name},
        )


def _purge(transaction: Transaction, job_uids: Sequence[str]) -> None:
    connection, projects, jobs = transaction.connection, tables.projects, tables.jobs
    doomed = select(projects.c.uid).where(IS_DELETED)
    columns = (jobs.c.uid, jobs.c.project_uid, jobs.c.project_id, jobs.c.job_id)
    query = select(*columns).where(jobs.c.uid.in_(job_uids), jobs.c.project_uid.in_(doomed))
    names: dict[str, dict[str, str]] = {}
    for row in connection.execute(query).all():
        names.setdefault(row.project_uid, {})[row.uid] = f"projects/{row.project_id}/jobs/{row.job_id}"
    for project_uid, of_project in names.items():
        _remove_jobs(transaction, project_uid, of_project)
    is_empty = ~exists().where(jobs.c.project_uid == projects.c.uid)
    connection.execute(delete(projects).where(IS_DELETED, is_empty))


def _remove_jobs(transaction: Transaction, project_uid: str, names: Mapping[str, str]) -> None:
    """Delete jobs, given by uid and name, with all that is theirs; who watches is told."""
    connection, jobs = transaction.connection, tables.jobs
    removed = [_removal(transaction, uid=uid, project_uid=project_uid, name=name) for uid, name in names.items()]
    connection.execute(insert(tables.removed_jobs), removed)
    for uid, name in names.items():
        transaction.emit(JobDeleted(job_name=name, job_uid=uid))
    for table in (tables.job_labels, tables.attempts, tables.checkpoints):
        connection.execute(delete(table).where(table.c.job_uid.in_(names)))
    connection.execute(delete(jobs).where(jobs.c.uid.in_(names)))


def _removal(transaction: Transaction, *, uid: str, project_uid: str, name: str) -> dict[str, str | int]:
    """A row for those who watch."""
    return {
        "revision": transaction.next_revision(),
        "uid": uid,
        "project_uid": project_uid,
        "name": name,
        "create_time_us": transaction.now_us,
    }
