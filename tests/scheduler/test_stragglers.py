"""Files that come after their job was deleted go too, and no others."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from sihlai.scheduler.v1 import job_service_pb2

from services.scheduler.domain.request import Request
from services.scheduler.loop.stragglers import StragglerLimits, Stragglers
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.committed import Committed
from tests.scheduler.completed_job import write_checkpoint

NOBODY = Request(request_id="", digest=b"")
STOPPED = "ATTEMPT_OUTCOME_STOPPED"


async def ended(client, runner, project_id: str):
    """A job that was stopped, and what its runner was told to do."""
    job = await client.submit(project_id)
    await runner.idle()
    assignment = runner.assignment
    await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
    await runner.close(STOPPED)
    return job, assignment


async def bring_late(runner, assignment, iteration: int) -> None:
    """The runner uploads what it kept of an attempt that is over, and says so."""
    runner.assignment = assignment
    write_checkpoint(assignment.checkpoint_uri, iteration)
    checkpoint = runner.checkpoint(iteration)
    answer = await runner.close(STOPPED, checkpoints=[checkpoint])
    assert list(answer.acknowledged_checkpoints) == [checkpoint["uri"]], "the runner would bring it for ever"


async def turned(stragglers: Stragglers) -> None:
    async with asyncio.timeout(20):
        await stragglers.turn()


def files_of(root: Path, job_uid: str) -> None:
    (root / job_uid / "1").mkdir(parents=True)
    (root / job_uid / "1" / "model.safetensors").write_bytes(b"model")


def jobs_with_files(client) -> set[str]:
    root = client.folder / "checkpoints"
    return {path.relative_to(root).parts[0] for path in root.rglob("*") if path.is_file()}


async def until_jobs_with_files(client, wanted: set[str]) -> None:
    async def are_left() -> bool:
        return jobs_with_files(client) == wanted

    await client.when(are_left)


def test_what_is_uploaded_for_a_deleted_job_is_deleted_and_nothing_of_any_other(serve, simulated_runner):
    async def test():
        async with serve(deletion_seconds=60.0) as client:
            await client.create_project("digits")
            runner, other = simulated_runner(client), simulated_runner(client, "two")
            kept, of_kept = await ended(client, runner, "digits")
            job, of_job = await ended(client, runner, "digits")
            request = job_service_pb2.DeleteJobRequest(name=job.name)
            assert (await client.jobs.DeleteJob(request)).done
            await bring_late(runner, of_kept, 10)
            # A database that was lost, or restored, knows none of its jobs.
            unknown = type(of_job)()
            unknown.CopyFrom(of_job)
            unknown.job_uid = "f" * 32
            unknown.checkpoint_uri = of_job.checkpoint_uri.replace(job.uid, unknown.job_uid)
            await bring_late(runner, unknown, 10)
            for iteration in (10, 20):
                await bring_late(runner, of_job, iteration)
                await until_jobs_with_files(client, {kept.uid, unknown.job_uid})
            # Nobody has files deleted by naming them.
            await bring_late(other, of_kept, 20)
            await bring_late(runner, of_job, 30)
            await until_jobs_with_files(client, {kept.uid, unknown.job_uid})
            assert (await client.get(kept.name)).last_checkpoint.iteration == 10

    asyncio.run(test())


@pytest.mark.parametrize("what", ["job", "project"])
def test_what_comes_while_a_deleted_job_is_still_taken_out_is_deleted_too(with_stores, tmp_path, what):
    async def test(stores):
        stragglers = Stragglers(stores.projects, CheckpointStore(tmp_path.as_uri()), limits=StragglerLimits())
        stores.database.after_commit.append(stragglers.on_committed)
        await stores.create_project("digits")
        uid = await stores.submit("digits", "first")
        standing = await stores.report("one")
        await stores.end("one", standing, "COMPLETED")
        if what == "job":
            await stores.jobs.delete(NOBODY, lambda _: b"", project_id="digits", job_id="first")
        else:
            await stores.projects.delete(NOBODY, lambda _: b"", project_id="digits")
        files_of(tmp_path, uid)  # its files were looked for before these came, and its rows are still there
        await stores.end("one", standing, "COMPLETED")
        assert await stores.uids() == [uid]
        await turned(stragglers)
        assert list(tmp_path.rglob("*.safetensors")) == []

    with_stores(test)


def test_late_files_that_cannot_be_deleted_are_tried_again_and_stand_before_no_others(with_stores, tmp_path):
    async def test(stores):
        await stores.create_project("digits")
        uids = [await stores.submit("digits") for _ in range(2)]
        for uid in uids:
            await stores.stop(uid)
        await stores.delete_project("digits")
        for uid in uids:
            files_of(tmp_path, uid)
        stuck = tmp_path / uids[0] / os.fsdecode(b"no-text-\xff")
        stuck.touch()
        limits = StragglerLimits(jobs_max=2, jobs_at_once=1, retry_seconds=0.0)
        stragglers = Stragglers(stores.projects, CheckpointStore(tmp_path.as_uri()), limits=limits)
        stragglers.on_committed(Committed(late=[*uids, "beyond"]))
        await turned(stragglers)
        assert sorted(path.parts[-3] for path in tmp_path.rglob("*.safetensors")) == uids[:1]
        stuck.unlink()
        await turned(stragglers)
        assert list(tmp_path.rglob("*.safetensors")) == []

    with_stores(test)


@pytest.mark.parametrize("come", ["while it is tried", "afterwards"])
def test_late_files_do_not_wait_for_those_that_could_not_be_deleted(with_stores, tmp_path, come):
    async def test(stores):
        await stores.create_project("digits")
        uids = [await stores.submit("digits") for _ in range(2)]
        for uid in uids:
            await stores.stop(uid)
        await stores.delete_project("digits")
        for uid in uids:
            files_of(tmp_path, uid)
        (tmp_path / uids[0] / os.fsdecode(b"no-text-\xff")).touch()
        limits = StragglerLimits(retry_seconds=600.0)
        stragglers = Stragglers(stores.projects, CheckpointStore(tmp_path.as_uri()), limits=limits)
        stragglers.on_committed(Committed(late=uids[:1]))
        first = asyncio.create_task(stragglers.turn())
        await asyncio.sleep(0 if come == "while it is tried" else 0.2)
        assert not first.done(), "it is left alone for a while"
        stragglers.on_committed(Committed(late=uids[1:]))
        async with asyncio.timeout(20):
            await first
        second = asyncio.create_task(stragglers.turn())
        async with asyncio.timeout(20):
            while {path.parts[-3] for path in tmp_path.rglob("*.safetensors")} != set(uids[:1]):  # noqa: ASYNC110 — files
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert not second.done(), "it has deleted what can be deleted, and waits for the rest"
        second.cancel()

    with_stores(test)
