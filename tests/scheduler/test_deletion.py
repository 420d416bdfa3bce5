"""A deleted project leaves nothing behind, and its deletion says when that is so."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

import pytest
from sihlai.scheduler.v1 import job_service_pb2, project_service_pb2
from sqlalchemy import text

from services.chassis.errors import FailedPrecondition, NotFound
from services.scheduler.deletion import Deletion, DeletionLimits
from services.scheduler.domain.job import ResumeSource
from services.scheduler.domain.request import Request
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store import projects

NOBODY = Request(request_id="", digest=b"")
STOP = "ATTEMPT_OUTCOME_STOPPED"


async def with_a_checkpoint(client, runner, project_id: str):
    """An ended job of the project, with files under its prefix."""
    job = await client.submit(project_id)
    await runner.idle()
    folder = client.folder / "checkpoints" / job.uid / str(runner.assignment.epoch)
    for path in (
        folder / "10" / "manifest.json",
        folder / "10" / "model.safetensors",
        folder / "conversion" / "a.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
    await runner.close(STOP)
    return job


def files(client) -> list[str]:
    root = client.folder / "checkpoints"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_deleted_project_leaves_no_file_and_says_when_it_is_gone(serve, simulated_runner):
    async def test():
        async with serve(deletion_seconds=60.0) as client:
            runner = simulated_runner(client)
            for project_id in ("digits", "kept"):
                await client.create_project(project_id)
                job = await with_a_checkpoint(client, runner, project_id)
            assert len(files(client)) == 6
            request = project_service_pb2.DeleteProjectRequest(name="projects/digits", request_id=str(uuid.uuid4()))
            for _ in range(2):
                assert (await client.projects.DeleteProject(request)).done
            assert {path.partition("/")[0] for path in files(client)} == {job.uid}, "another project's stay"
            assert len(files(client)) == 3

    asyncio.run(test())


def test_deleted_job_leaves_no_file_its_name_is_free_and_all_who_watch_are_told(serve, simulated_runner):
    async def test():
        async with serve(deletion_seconds=60.0) as client:
            runner = simulated_runner(client)
            await client.create_project("digits")
            kept = await with_a_checkpoint(client, runner, "digits")
            job = await with_a_checkpoint(client, runner, "digits")

            async def removed(parent: str, caught_up: asyncio.Event) -> str:
                async for answer in client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent=parent)):
                    if answer.HasField("caught_up"):
                        caught_up.set()
                    if answer.HasField("removed"):
                        return answer.removed.uid
                return ""

            events = {parent: asyncio.Event() for parent in ("projects/digits", "projects/-")}
            watches = [asyncio.create_task(removed(parent, event)) for parent, event in events.items()]
            await asyncio.gather(*(event.wait() for event in events.values()))
            request = job_service_pb2.DeleteJobRequest(name=job.name, request_id=str(uuid.uuid4()))
            for _ in range(2):
                answer = await client.jobs.DeleteJob(request)
                assert (answer.uid, answer.done) == (job.uid, True)
            assert {path.partition("/")[0] for path in files(client)} == {kept.uid}
            listed = await client.jobs.ListJobs(job_service_pb2.ListJobsRequest(parent="projects/digits"))
            assert [each.uid for each in listed.jobs] == [kept.uid]
            found = await client.jobs.BatchGetJobs(job_service_pb2.BatchGetJobsRequest(uids=[job.uid]))
            assert (list(found.jobs), list(found.missing)) == ([], [job.uid])
            again = await client.submit("digits", job_id=job.name.rpartition("/")[2])
            assert again.uid != job.uid
            async with asyncio.timeout(60):
                assert await asyncio.gather(*watches) == [job.uid, job.uid]

    asyncio.run(test())


async def watched(client, parent: str, wanted: str, cursor: str = "") -> list[job_service_pb2.WatchJobsResponse]:
    """What a watch of the jobs tells, up to the first message of a kind."""
    request = job_service_pb2.WatchJobsRequest(parent=parent, cursor=cursor)
    answers = []
    async with asyncio.timeout(60):
        async for answer in client.jobs.WatchJobs(request):
            answers.append(answer)
            if answer.WhichOneof("message") == wanted:
                break
    return answers


def test_deleted_job_is_in_no_list_while_its_files_are_still_there_and_its_removal_is_told_once(serve):
    # Nobody listens there.
    away = {"checkpoint_root": "s3://bucket/checkpoints", "checkpoint_endpoint_url": "http://127.0.0.1:9"}

    async def test():
        async with serve(deletion_seconds=0.0, **away) as client:
            await client.create_project("digits")
            job = await client.submit("digits", job_id="first")
            kept = await client.submit("digits", job_id="kept")
            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
            before = await watched(client, "projects/-", "caught_up")
            assert {each.job.uid for each in before[:-1]} == {job.uid, kept.uid}
            answer = await client.jobs.DeleteJob(job_service_pb2.DeleteJobRequest(name=job.name))
            assert (answer.uid, answer.done) == (job.uid, False)
            again = await client.submit("digits", job_id="first")
            for parent in ("projects/digits", "projects/-"):
                for page_size in (1_000, 1):
                    assert await listed(client, parent, page_size) == [again.uid, kept.uid]
                assert [each.job.uid for each in (await watched(client, parent, "caught_up"))[:-1]] == [
                    kept.uid,
                    again.uid,
                ]
            found = await client.jobs.BatchGetJobs(job_service_pb2.BatchGetJobsRequest(uids=[job.uid, kept.uid]))
            assert ([each.uid for each in found.jobs], list(found.missing)) == ([kept.uid], [job.uid])
        async with serve(deletion_seconds=60.0) as client:  # the store answers again

            async def is_gone() -> bool:
                return await client.scheduler.database.read(
                    lambda c: c.execute(text("SELECT count(*) FROM projects")).scalar_one() == 1
                )

            await client.when(is_gone)
            told = await watched(client, "projects/-", "caught_up", before[-1].cursor)
            assert [each.removed.uid or each.job.uid for each in told[:-1]] == [job.uid, again.uid]

    asyncio.run(test())


async def listed(client, parent: str, page_size: int) -> list[str]:
    """The uids of all jobs, through all pages."""
    request = job_service_pb2.ListJobsRequest(parent=parent, page_size=page_size)
    uids = []
    while True:
        page = await client.jobs.ListJobs(request)
        uids += [job.uid for job in page.jobs]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return uids


def test_job_is_not_deleted_while_it_or_one_that_goes_on_from_it_has_not_ended(with_stores, checkpoint):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits")

        async def delete(uid: str) -> bytes:
            job = (await stores.job(uid)).job
            return await stores.jobs.delete(NOBODY, lambda _: b"", project_id="digits", job_id=job.job_id)

        with pytest.raises(FailedPrecondition, match="is QUEUED"):
            await delete(uid)
        made = checkpoint(uid, 1, 1)
        await stores.end("one", await stores.report("one"), "COMPLETED", checkpoints=(made,))
        job = (await stores.job(uid)).job
        source = ResumeSource(job_name=job.name, checkpoint_name=f"{job.name}/checkpoints/1-1", key=made.key)
        later = await stores.submit("digits", source=source)
        with pytest.raises(FailedPrecondition, match="goes on from"):
            await delete(uid)
        await stores.stop(later)
        await delete(uid)
        with pytest.raises(NotFound):
            await stores.jobs.delete(NOBODY, lambda _: b"", project_id="digits", job_id=job.job_id)
        assert [job.uid for job in await stores.projects.doomed()] == [uid]
        listed = await stores.projects.page(after="", limit=10)
        assert [project.project_id for project in listed] == ["digits"]
        await stores.projects.purge([uid])
        assert (await stores.count("jobs"), await stores.count("projects")) == (1, 1)
        assert (await stores.facts()).count("deleted") == 1

    with_stores(test)


def test_deletion_that_the_store_holds_up_is_done_later(with_stores, tmp_path):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits")
        await stores.stop(uid)
        (tmp_path / uid / "1").mkdir(parents=True)
        (tmp_path / uid / "1" / "model.safetensors").write_bytes(b"model")
        project_uid = (await stores.projects.get("digits")).uid
        await stores.projects.delete(NOBODY, lambda _: b"", project_id="digits")
        # Nobody listens there; a look ends after half a second.
        away = CheckpointStore("s3://bucket/checkpoints", endpoint_url="http://127.0.0.1:9")
        deletion = Deletion(stores.projects, away, limits=DeletionLimits(job_seconds=0.5, left_alone_seconds=0.0))
        await deletion.turn()
        assert not await deletion.is_done(project_uid, seconds=0.0)
        assert (await stores.count("jobs"), "deleted" in await stores.facts()) == (1, False)

        deletion = Deletion(stores.projects, CheckpointStore(tmp_path.as_uri()), limits=DeletionLimits())
        turning = asyncio.create_task(deletion.turn())
        assert await deletion.is_done(project_uid, seconds=60.0)
        turning.cancel()
        assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".safetensors"] == []
        assert (await stores.count("jobs"), (await stores.facts())[-1]) == (0, "deleted")

    with_stores(test)


def test_jobs_whose_files_cannot_be_deleted_stand_before_no_other(with_stores, tmp_path, monkeypatch):
    monkeypatch.setattr(projects, "JOBS_PURGED_MAX", 3)

    async def test(stores):
        limits = DeletionLimits(jobs_at_once=2, left_alone_seconds=100.0)
        store = CheckpointStore(tmp_path.as_uri())
        deletion = Deletion(stores.projects, store, limits=limits, monotonic=stores.clock.monotonic)
        uids = await doomed_jobs(stores, "digits", 7)
        stuck = uids[:5]
        for uid in stuck:
            no_object(tmp_path / uid).touch()
        turning = asyncio.create_task(deletion.turn())
        await until_left(stores, stuck)
        turning.cancel()

        # The first could be deleted now, but is left alone for a while; what comes later is not.
        no_object(tmp_path / stuck[0]).unlink()
        stores.clock.pass_seconds(99)
        await doomed_jobs(stores, "later", 1)
        turning = asyncio.create_task(deletion.turn())
        await until_left(stores, stuck)
        turning.cancel()

        stores.clock.pass_seconds(2)
        turning = asyncio.create_task(deletion.turn())
        await until_left(stores, stuck[1:])
        turning.cancel()

    with_stores(test)


async def doomed_jobs(stores, project_id: str, count: int) -> list[str]:
    """Uids of ended jobs of a deleted project, in the order in which they are taken out."""
    await stores.create_project(project_id)
    uids = [await stores.submit(project_id, f"job-{number}") for number in range(count)]
    for uid in uids:
        await stores.stop(uid)
    await stores.projects.delete(NOBODY, lambda _: b"", project_id=project_id)
    return uids


def no_object(folder: Path) -> Path:
    """A file there whose name no object can have: the store cannot delete it."""
    folder.mkdir(exist_ok=True)
    return folder / os.fsdecode(b"\xff")


async def until_left(stores, uids: list[str]) -> None:
    async def are_left() -> bool:
        return await stores.uids() == sorted(uids)

    await stores.when(are_left)
