"""A job begins with the weights that it was submitted for, or not at all."""

from __future__ import annotations

import asyncio

import pytest
from sihlai.scheduler.v1 import job_pb2, job_service_pb2
from sqlalchemy import text

from services.chassis.errors import NotFound
from services.scheduler.domain.job import ResumeSource
from services.scheduler.domain.request import Request
from tests.scheduler.completed_job import completed_job

MODEL = {"backbone": {"name": "tiny"}, "heads": [{"task": "TASK_MULTICLASS_CLASSIFICATION"}]}
NOBODY = Request(request_id="", digest=b"")


def begins_at(name: str) -> dict:
    return {"model": {**MODEL, "initialization": {"checkpoint": {"checkpoint": name}}}}


async def delete(client, name: str) -> None:
    await client.jobs.DeleteJob(job_service_pb2.DeleteJobRequest(name=name))


async def waiting_for_another(client, runner, name: str):
    """A job that begins at the checkpoint, and waits behind one that the runner works on."""
    await client.submit()
    await runner.idle()
    return await client.submit(spec=begins_at(name))


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_job_never_begins_with_the_weights_of_another_that_has_the_name_since(serve, simulated_runner, is_replaced):
    async def test():
        async with serve() as client:
            await client.create_project()
            await client.create_project("other")
            busy, free = simulated_runner(client), simulated_runner(client, "two")
            source = await completed_job(client, free, project_id="other", job_id="source")
            wanted = f"{source.name}/checkpoints/1-60"
            job = await waiting_for_another(client, busy, f"{source.name}/checkpoints/final")
            assert job.spec.model.initialization.checkpoint.checkpoint == wanted
            await delete(client, source.name)
            if is_replaced:
                other = await completed_job(client, free, project_id="other", job_id="source", content=b"another")
                assert other.last_checkpoint.name == wanted
            await busy.close("ATTEMPT_OUTCOME_COMPLETED")
            answer = await busy.idle(wait=0.0)
            assert not answer.run.HasField("assignment"), answer.run.assignment.initialization.uri
            failed = await client.get(job.name)
            assert failed.state == job_pb2.JOB_STATE_FAILED, "tried again it would end the same"
            assert wanted in failed.reason_message
            assert "was deleted" in failed.reason_message

    asyncio.run(test())


def test_a_job_whose_source_was_replaced_before_it_still_begins_with_the_new_one(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            runner = simulated_runner(client)
            old = await completed_job(client, runner, job_id="source")
            await delete(client, old.name)
            new = await completed_job(client, runner, job_id="source")
            await client.submit(spec=begins_at(f"{new.name}/checkpoints/final"))
            await runner.idle()
            assert runner.assignment.initialization == new.last_checkpoint
            assert new.uid in runner.assignment.initialization.uri

    asyncio.run(test())


@pytest.mark.parametrize("field", ["source", "initialization"])
def test_what_was_deleted_since_it_was_looked_up_begins_no_job(with_stores, checkpoint, field):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits", "first")
        standing = await stores.report("one")
        made = checkpoint(uid, 1, 60)
        await stores.end("one", standing, "COMPLETED", checkpoints=(made,))
        name = "projects/digits/jobs/first"
        found = ResumeSource(job_name=name, checkpoint_name=f"{name}/checkpoints/1-60", key=made.key)
        await stores.database.write(lambda tx: tx.connection.execute(text("DELETE FROM checkpoints")))
        with pytest.raises(NotFound, match="first/checkpoints/1-60 does not exist"):
            await stores.submit("digits", **{field: found})
        # Its row is there until its files are gone.
        await stores.jobs.delete(NOBODY, lambda _: b"", project_id="digits", job_id="first")
        assert await stores.uids() == [uid]
        with pytest.raises(NotFound, match="first does not exist"):
            await stores.submit("digits", **{field: found})

    with_stores(test)


def test_a_job_whose_checkpoint_is_gone_does_not_begin_anew_in_silence(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            runner = simulated_runner(client)
            old = await completed_job(client, runner, spec={"trainer": {"iterations_max": 80}})
            request = job_service_pb2.ResumeJobRequest(name=old.name, trainer={"iterations_max": 100})
            job = (await client.jobs.ResumeJob(request)).job
            database = client.scheduler.database
            await database.write(lambda tx: tx.connection.execute(text("DELETE FROM checkpoints")))
            await runner.idle(wait=0.0)
            assert runner.assignment is None
            failed = await client.get(job.name)
            assert failed.state == job_pb2.JOB_STATE_FAILED
            assert f"{old.name}/checkpoints/1-60, which it goes on from, was deleted" in failed.reason_message

    asyncio.run(test())
