"""Projects and the credentials that are stored for their datasets, on both databases."""

from __future__ import annotations

from functools import partial

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from services.chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Reason
from services.scheduler.domain.job import ResumeSource
from services.scheduler.domain.project import CredentialsChange, ProjectChange, SourceChange
from services.scheduler.domain.request import Request
from services.scheduler.store import projects
from services.scheduler.store.credentials import sweep_credentials, unused_credentials
from services.scheduler.store.views import last_revision

NOBODY = Request(request_id="", digest=b"")


def uid_of(project) -> bytes:
    return project.uid.encode()


def test_project_id_can_be_taken_once(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        with pytest.raises(AlreadyExists) as refused:
            await stores.create_project("digits")
        assert refused.value.reason is Reason.PROJECT_ALREADY_EXISTS
        assert await stores.count("projects") == 1

    with_stores(test)


def test_projects_come_in_pages_by_id(with_stores):
    async def test(stores):
        for project_id in ("c", "a", "b"):
            await stores.create_project(project_id)
        assert [p.project_id for p in await stores.projects.page(after="", limit=2)] == ["a", "b"]
        assert [p.project_id for p in await stores.projects.page(after="b", limit=2)] == ["c"]

    with_stores(test)


async def create_with_credentials(stores):
    source = SourceChange(uri="s3://bucket/digits", endpoint_url="http://minio:9000", sealed=b"old")
    await stores.projects.create(NOBODY, uid_of, project_id="digits", display_name="", training=source, validation=None)
    return source


async def change_training(stores, source: SourceChange):
    change = ProjectChange(training_dataset=source)
    await stores.projects.update(NOBODY, uid_of, project_id="digits", change=change)
    project = await stores.projects.get("digits")
    sealed = await stores.projects.sealed_credentials([project.training_dataset])
    return sealed.get(project.training_dataset.credentials_id)


def test_new_credentials_for_the_same_place_reach_jobs_that_were_submitted_before(with_stores):
    async def test(stores):
        source = await create_with_credentials(stores)
        uid = await stores.submit("digits")
        assert await change_training(stores, replace(source, sealed=b"new")) == b"new"
        job = (await stores.job(uid)).job
        sealed = await stores.projects.sealed_credentials([job.training_dataset])
        assert sealed == {job.training_dataset.credentials_id: b"new"}

    with_stores(test)


def test_stored_credentials_stay_when_a_project_is_written_back_as_it_was_read(with_stores):
    async def test(stores):
        source = await create_with_credentials(stores)
        assert await change_training(stores, replace(source, sealed=None, region="eu")) == b"old"
        assert await change_training(stores, replace(source, sealed=None, drop=True)) is None

    with_stores(test)


def test_stored_credentials_never_move_to_another_place(with_stores):
    async def test(stores):
        source = await create_with_credentials(stores)
        elsewhere = replace(source, sealed=None, endpoint_url="http://elsewhere:9000")
        assert await change_training(stores, elsewhere) is None

    with_stores(test)


def test_credentials_of_a_replaced_source_go_when_no_living_job_needs_them(with_stores):
    async def test(stores):
        source = await create_with_credentials(stores)
        uid = await stores.submit("digits")
        await change_training(stores, SourceChange(uri="s3://bucket/elsewhere"))
        assert await stores.count("credentials") == 1  # the queued job's
        await stores.upkeep.forget()
        assert await stores.count("credentials") == 1
        await stores.stop(uid)
        await stores.upkeep.forget()
        assert await stores.count("credentials") == 0
        await change_training(stores, replace(source, sealed=b"again"))
        assert await stores.count("credentials") == 1

    with_stores(test)


@pytest.mark.parametrize("taken_up", [True, False])
def test_credentials_that_a_job_takes_up_while_they_are_swept_stay(with_stores, checkpoint, taken_up):
    """Which are unused is found out before; whoever goes on from an ended job takes its source along."""

    async def test(stores):
        await create_with_credentials(stores)
        uid = await stores.submit("digits", "first")
        standing = await stores.report("one")
        await change_training(stores, SourceChange(uri="s3://bucket/elsewhere"))
        made = checkpoint(uid, 1, 50)
        await stores.end("one", standing, "COMPLETED", checkpoints=(made,))
        as_of, unused = await stores.database.list(lambda c: (last_revision(c), unused_credentials(c)))
        assert len(unused) == 1
        if taken_up:
            source = ResumeSource(job_name="projects/digits/jobs/first", checkpoint_name="1-50", key=made.key)
            await stores.submit("digits", "resumed", source=source)
        await stores.database.write(partial(sweep_credentials, unused=unused, as_of=as_of))
        assert await stores.count("credentials") == (1 if taken_up else 0)

    with_stores(test)


def test_credentials_of_a_project_that_cannot_be_read_stay_and_all_else_is_forgotten(with_stores):
    async def test(stores):
        await create_with_credentials(stores)
        await stores.create_project("sound")
        await stores.submit("sound", request_id="a")
        damage = text("UPDATE projects SET training_dataset = '{\"nonsense\": 1}' WHERE project_id = 'digits'")
        await stores.database.write(lambda transaction: transaction.connection.execute(damage).rowcount)
        stores.clock.pass_seconds(7_200)
        await stores.upkeep.forget()
        assert await stores.count("credentials") == 1
        assert await stores.count("request_ids") == 0

    with_stores(test)


def test_credentials_go_with_the_last_source_that_uses_them(with_stores):
    async def test(stores):
        source = SourceChange(uri="s3://bucket/digits", sealed=b"of training")
        other = SourceChange(uri="s3://bucket/more", sealed=b"of validation")
        await stores.projects.create(
            NOBODY, uid_of, project_id="digits", display_name="", training=source, validation=other
        )
        uid = await stores.submit("digits")
        change = ProjectChange(drop_validation_dataset=True)
        await stores.projects.update(NOBODY, uid_of, project_id="digits", change=change)
        assert await stores.count("credentials") == 2  # the queued job validates on it
        await stores.stop(uid)
        await stores.upkeep.forget()
        assert await stores.count("credentials") == 1
        await stores.delete_project("digits")
        assert await stores.count("credentials") == 0

    with_stores(test)


def test_credentials_alone_are_replaced_and_deleted(with_stores):
    async def test(stores):
        await create_with_credentials(stores)
        assert await change_training(stores, CredentialsChange(sealed=b"new")) == b"new"
        assert await change_training(stores, CredentialsChange(sealed=None)) is None
        assert await stores.count("credentials") == 0
        assert await change_training(stores, CredentialsChange(sealed=b"newer")) == b"newer"
        change = ProjectChange(validation_dataset=CredentialsChange(sealed=b"of nothing"))
        with pytest.raises(InvalidArgument):
            await stores.projects.update(NOBODY, uid_of, project_id="digits", change=change)

    with_stores(test)


def test_update_of_a_state_that_is_gone_is_refused(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        seen = (await stores.projects.get("digits")).revision
        change = ProjectChange(display_name="Digits", revision=seen)
        await stores.projects.update(NOBODY, uid_of, project_id="digits", change=change)
        with pytest.raises(FailedPrecondition) as refused:
            await stores.projects.update(NOBODY, uid_of, project_id="digits", change=change)
        assert refused.value.reason is Reason.ETAG_MISMATCH

    with_stores(test)


def test_project_is_deleted_with_its_ended_jobs_alone(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits", "first", labels={"team": "a"})
        with pytest.raises(FailedPrecondition) as refused:
            await stores.projects.delete(NOBODY, uid_of, project_id="digits")
        assert refused.value.reason is Reason.PROJECT_HAS_ACTIVE_JOB
        await stores.stop(uid)
        before = await stores.jobs.revision()
        await stores.delete_project("digits")
        for table in ("projects", "jobs", "job_labels"):
            assert await stores.count(table) == 0, table
        assert (await stores.facts())[-1] == "deleted"
        changes = await stores.jobs.changes(project_uid=None, after=before, limit=10)
        assert [item.uid for item in changes.items] == [uid]
        await stores.create_project("digits")
        assert await stores.submit("digits", "first") != uid

    with_stores(test)


def test_deleted_project_is_gone_at_once_and_its_many_jobs_go_in_pieces(with_stores, monkeypatch):
    monkeypatch.setattr(projects, "JOBS_PURGED_MAX", 3)

    async def test(stores):
        await stores.create_project("digits")
        uids = [await stores.submit("digits") for _ in range(7)]
        for uid in uids:
            await stores.stop(uid)
        left = []

        def look(_committed) -> None:
            with stores.database._listing.connect() as connection:
                left.append(connection.execute(text("SELECT count(*) FROM jobs")).scalar_one())

        stores.database.after_commit.append(look)
        before = await stores.jobs.revision()
        await stores.delete_project("digits")
        assert left == [7, 4, 1, 0, 0]
        assert await stores.projects.page(after="", limit=10) == []
        gone = await stores.jobs.changes(project_uid=None, after=before, limit=2_000)
        assert {item.uid for item in gone.items} == set(uids)

    with_stores(test)


def test_what_a_deletion_left_behind_is_taken_out_later(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.stop(await stores.submit("digits", "first"))
        await stores.projects.delete(NOBODY, uid_of, project_id="digits")  # the process ends here
        await stores.create_project("digits")
        await stores.submit("digits", "first")
        await stores.projects.purge([job.uid for job in await stores.projects.doomed()])
        assert (await stores.count("jobs"), await stores.count("projects")) == (1, 1)
        assert len(await stores.jobs.batch([("digits", "first")], [])) == 1

    with_stores(test)
