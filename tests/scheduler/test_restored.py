"""A backup that was put back: what others remember of the time after it is neither given again nor lost."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import uuid
from pathlib import Path

import grpc
import pytest
import structlog
from sihlai.scheduler.v1 import job_pb2, job_service_pb2
from sqlalchemy import text
from sqlalchemy.engine import make_url

from services.chassis.errors import ConfigurationError, Unavailable
from services.scheduler.__main__ import restore
from services.scheduler.config import SchedulerConfig
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.restoring import Restoring, RestoringLimits
from services.scheduler.store.restored import EPOCHS_SKIPPED, RestoredRows
from tests.scheduler.completed_job import write_checkpoint
from tests.scheduler.postgresql import run_on_postgresql


class Backup:
    """A copy of a database, which can be put in its place."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self._copy = f"backup_{uuid.uuid4().hex}"

    def make(self) -> None:
        self._copied(str(self.url.database), self._copy)

    def put_back(self) -> None:
        self._copied(self._copy, str(self.url.database))

    def _copied(self, source: str, target: str) -> None:
        if self.url.get_backend_name() == "sqlite":
            folder = str(self.url.database).rpartition("/")[0]
            source, target = (f"{folder}/{name.rpartition('/')[2]}" for name in (source, target))
            for ending in ("-wal", "-shm"):
                Path(f"{target}{ending}").unlink(missing_ok=True)
            shutil.copyfile(source, target)
            return
        server = self.url.set(database="postgres").render_as_string(hide_password=False)
        run_on_postgresql(server, f"DROP DATABASE IF EXISTS {target} WITH (FORCE)")
        run_on_postgresql(server, f"CREATE DATABASE {target} TEMPLATE {source}")


@pytest.fixture
def backup(database_url) -> Backup:
    return Backup(database_url)


async def cursor_of(client) -> str:
    """Where a watch of all jobs is."""
    async for answer in client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-")):
        if answer.WhichOneof("message") == "caught_up":
            return answer.cursor
    raise AssertionError("it ended before it had caught up")


async def refused_watch(client, cursor: str) -> str:
    """Why a watch cannot go on from the cursor."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-", cursor=cursor)).read()
    return refused.value.details()


def test_jobs_go_on_from_what_lies_in_the_store_and_nothing_is_given_twice(
    serve, simulated_runner, database_url, backup
):
    async def test():
        async with serve(database_url=database_url) as client:
            await client.create_project()
            job, waiting = await client.submit(), await client.submit(spec={"resources": {"gpus": 1}})
            runner = simulated_runner(client)
            await runner.idle()
            first = runner.assignment.checkpoint_uri
            write_checkpoint(first, 10)
            await runner.work(checkpoints=[runner.checkpoint(10)])
            early = await cursor_of(client)
        backup.make()
        async with serve(database_url=database_url) as client:
            runner = simulated_runner(client, session="second")
            await runner.idle(wait=0.0)
            await client.until(job.name, job_pb2.JOB_STATE_QUEUED)
            runner = simulated_runner(client, session="third")
            while runner.assignment is None:
                await runner.idle()
            assert runner.assignment.epoch == 2
            write_checkpoint(runner.assignment.checkpoint_uri, 20, epoch=2)
            await runner.work(checkpoints=[runner.checkpoint(20)])
            shutil.rmtree(f"{first.removeprefix('file://')}/10")
            forgotten = await client.submit()
            late = await cursor_of(client)
            held = runner.assignment
        backup.put_back()
        await restore(client.scheduler.config)
        async with serve(database_url=database_url) as client:
            for cursor in (early, late):
                assert "older than what is kept" in await refused_watch(client, cursor)
            view = await client.get(job.name)
            assert (view.last_checkpoint.epoch, view.last_checkpoint.iteration, view.last_checkpoint.best) == (
                2,
                20,
                True,
            )
            listed = job_service_pb2.ListJobsRequest(parent="projects/-")
            assert forgotten.uid not in {each.uid for each in (await client.jobs.ListJobs(listed)).jobs}
            runner = simulated_runner(client, session="third")
            runner.sequence, runner.assignment = 1_000, held
            answer = await runner.work()
            assert answer.WhichOneof("desired") == "idle", "nobody here knows its attempt"
            runner.assignment = None
            while runner.assignment is None:
                await runner.idle()
            again = runner.assignment
            assert (again.job_uid, again.epoch, again.attempt) == (job.uid, EPOCHS_SKIPPED + 3, EPOCHS_SKIPPED + 3)
            assert again.resume_from.iteration == 20
            await runner.close("ATTEMPT_OUTCOME_COMPLETED", reason="JOB_REASON_LIMIT_REACHED")
            other = simulated_runner(client, "two")
            other.capabilities["gpus"] = [{"model": "H200", "memory_bytes": 2**37}]
            await other.idle()
            assert other.assignment.job_uid == waiting.uid
            assert other.assignment.epoch == EPOCHS_SKIPPED + 3, "it may have run since as well"
            await other.close("ATTEMPT_OUTCOME_COMPLETED", reason="JOB_REASON_LIMIT_REACHED")
            new = await client.submit()
            await runner.idle()
            assert (runner.assignment.job_uid, runner.assignment.epoch, runner.assignment.attempt) == (new.uid, 1, 1)

    asyncio.run(test())


def test_an_attempt_that_its_runner_still_holds_goes_on(serve, simulated_runner, database_url, backup):
    async def test():
        async with serve(database_url=database_url) as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
        backup.make()
        async with serve(database_url=database_url) as client:
            await client.submit()
        backup.put_back()
        for _ in range(2):  # twice is no harm
            await restore(client.scheduler.config)
        async with serve(database_url=database_url) as client:
            held, runner.client = runner.assignment, client
            answer = await runner.work()
            assert answer.run.attempt.epoch == held.epoch == 1
            write_checkpoint(held.checkpoint_uri, 30)
            answer = await runner.work(checkpoints=[runner.checkpoint(30)])
            assert list(answer.acknowledged_checkpoints) == [f"{held.checkpoint_uri}/30"]
            view = await client.get(job.name)
            assert (view.last_checkpoint.iteration, len(view.attempts)) == (30, 1)

    asyncio.run(test())


def test_a_database_that_is_used_is_left_alone(serve, database_url):
    async def test():
        async with serve(database_url=database_url) as client:
            with pytest.raises(ConfigurationError, match=r"uses this database|another scheduler"):
                await restore(client.scheduler.config)
            await client.create_project()

    asyncio.run(test())


def test_nothing_is_numbered_anew_where_the_store_does_not_answer(serve, database_url, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    async def test():
        async with serve(database_url=database_url) as client:
            await client.create_project()
            await client.submit()
            cursor = await cursor_of(client)
        away = dataclasses.replace(
            client.scheduler.config, checkpoint_root="s3://models/away", checkpoint_endpoint_url="http://127.0.0.1:1"
        )
        with pytest.raises(Unavailable):
            await restore(away)
        async with serve(database_url=database_url) as client:
            request = job_service_pb2.WatchJobsRequest(parent="projects/-", cursor=cursor)
            assert (await client.jobs.WatchJobs(request).read()).WhichOneof("message") == "caught_up"

    asyncio.run(test())


def test_the_log_says_what_to_do_where_a_runner_knows_more_than_the_database(
    serve, simulated_runner, database_url, backup
):
    async def test():
        async with serve(database_url=database_url) as client:
            await client.create_project()
            job = await client.submit()
        backup.make()
        async with serve(database_url=database_url) as client:
            runner = simulated_runner(client)
            await runner.idle()
        backup.put_back()
        with structlog.testing.capture_logs() as said:
            async with serve(database_url=database_url) as client:
                runner.client = client
                await runner.work()
        [found] = [line for line in said if line["event"] == "database_forgot"]
        assert (found["job"], found["attempt"], found["runner"]) == (job.name, 1, "runners/one")
        assert "python -m services.scheduler restored" in found["advice"]

    asyncio.run(test())


def test_an_empty_database_is_no_backup(tmp_path):
    config = SchedulerConfig(
        database_url=f"sqlite:///{tmp_path}/mistyped.sqlite",
        checkpoint_root=f"file://{tmp_path}/checkpoints",
        token_key_file=tmp_path / "token.pem",
        credentials_key_file=tmp_path / "credentials.key",
    )
    with pytest.raises(ConfigurationError, match="put the backup back first"):
        asyncio.run(restore(config))


def test_a_damaged_row_does_not_stand_before_the_others(with_stores, tmp_path):
    async def test(stores):
        await stores.create_project("digits")
        uids = sorted([await stores.submit("digits") for _ in range(3)])
        damage = text("UPDATE jobs SET progress = '[]' WHERE uid = :uid")
        await stores.database.write(lambda tx: tx.connection.execute(damage, {"uid": uids[1]}))
        for uid in uids:
            write_checkpoint(f"file://{tmp_path}/{uid}/1", 5)
        store, found = CheckpointStore(f"file://{tmp_path}"), []
        rows = RestoredRows(stores.database)
        restored = await Restoring(rows, store, limits=RestoringLimits(), on_progress=found.append).run()
        assert (restored.jobs, restored.checkpoints_found) == (3, 2)
        assert found[-1] == restored
        assert (await stores.job(uids[2])).job.last_checkpoint.iteration == 5

    with_stores(test)
