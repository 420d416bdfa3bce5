"""What becomes of calls whose transaction went wrong, or of which nobody knows whether it is on disk."""

from __future__ import annotations

import asyncio
import time
import uuid

import psutil
import pytest
from msgspec.structs import replace
from sihlai.scheduler.v1 import job_pb2
from sqlalchemy import create_engine, text

from services.chassis.errors import Unavailable
from services.scheduler.domain.job import AttemptPhase, JobState
from services.scheduler.store.attempts import save_job
from tests.scheduler.recording import record
from tests.scheduler.stores import one_commit_without_an_answer, one_transaction


def test_runner_that_waits_gets_its_job_at_once_though_the_answer_to_the_commit_was_lost(serve, simulated_runner):
    async def test():
        async with serve(synchronize_seconds_max=60.0, lease_seconds=120.0) as client:
            await client.create_project()
            runner = simulated_runner(client)
            waiting = asyncio.ensure_future(runner.idle(wait=60.0))
            await client.when(lambda: is_idle(client, "one"), seconds=60.0)
            began = time.monotonic()
            with one_commit_without_an_answer(client.scheduler.database):
                await client.submit(job_id="first", request_id=str(uuid.uuid4()))  # the channel sends it again
            assert (await waiting).run.assignment.job == "projects/digits/jobs/first"
            assert time.monotonic() - began < 45.0  # its wait would have ended after 60
            assert (await client.get("projects/digits/jobs/first")).state == job_pb2.JOB_STATE_STARTING

    asyncio.run(test())


async def is_idle(client, runner_id: str) -> bool:
    return client.scheduler.database._dispatcher.is_idle(runner_id)


def test_call_whose_row_was_changed_by_another_is_sent_again_and_takes_no_other_with_it(with_stores):
    async def test(stores):
        jobs = []
        for project_id in ("digits", "streets"):
            await stores.create_project(project_id)
            jobs.append((await stores.job(await stores.submit(project_id))).job)
        late, right = jobs
        late = replace(late, revision=late.revision - 1)  # as if it had been read before another changed it

        def saves(job):
            return lambda transaction: save_job(transaction, job, replace(job, priority=job.priority + 1)).priority

        writes = [stores.database.write(saves(job)) for job in (late, right)]
        refused, priority = await asyncio.gather(*writes, return_exceptions=True)
        assert isinstance(refused, Unavailable)
        assert "changed by another" in refused.message
        assert (await stores.job(late.uid)).job.priority == late.priority
        assert (await stores.job(right.uid)).job.priority == priority == right.priority + 1

    with_stores(test)


def test_writer_whose_connection_the_server_has_ended_goes_on_by_another(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        if stores.database.writing.dialect.name == "sqlite":
            return  # it has no server
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ends = text(f"SELECT pid, pg_terminate_backend(pid) {others}")
        engine = create_engine(stores.database.writing.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            ended = {row.pid for row in connection.execute(ends)}
            assert ended
            deadline = time.monotonic() + 60.0
            while any(psutil.pid_exists(pid) for pid in ended):  # it is out of pg_stat_activity before it hangs up
                assert time.monotonic() < deadline, "the server ends them"
                await asyncio.sleep(0.01)
        engine.dispose()
        assert await stores.job(await stores.submit("digits"))

    with_stores(test)


def test_reports_of_working_runners_cost_the_database_a_few_statements_in_all(with_stores):
    async def test(stores):
        groups, runners = record(stores.database.writing), [f"r{number}" for number in range(12)]
        held = {}
        for runner_id in runners:
            await stores.create_project(runner_id)
            await stores.submit(runner_id)
            held[runner_id] = await stores.report(runner_id)
        async with one_transaction(stores):
            holding = [asyncio.ensure_future(stores.hold(runner_id, held[runner_id])) for runner_id in runners]
            await asyncio.sleep(0.01)  # each has put itself into the queue
        after = await asyncio.gather(*holding)
        assert [each.job.state for each in after] == [JobState.RUNNING] * len(runners)
        last = next(group for group in reversed(groups) if group)
        assert len([each for each in last if not each.statement.startswith("SELECT")]) < len(runners)

    with_stores(test)


def test_failed_commit_leaves_the_pool_of_idle_runners_as_it_was(with_stores, waiting_call):
    async def test(stores):
        await stores.create_project("digits")
        await stores.report("one", call=waiting_call())

        def fail_the_batch(_transaction) -> None:
            raise RuntimeError("the disk is full")

        flush = stores.database.before_commit
        flush.append(fail_the_batch)

        def run_hook(hook, transaction) -> None:
            with transaction.part():
                hook(transaction)

        stores.database._run_hook = run_hook
        with pytest.raises(RuntimeError):
            await stores.submit("digits")
        flush.remove(fail_the_batch)
        assert stores.dispatcher.is_idle("one")
        uid = await stores.submit("digits")
        assert (await stores.runners.standing("one")).job.uid == uid

    with_stores(test)


def test_dispatcher_that_lost_sight_of_the_rows_is_told_anew(with_stores, waiting_call):
    async def test(stores):
        await stores.create_project("digits")
        await stores.report("one", call=waiting_call())
        stores.database._is_told = False  # as after a commit of which nobody knows whether it is on disk
        uid = await stores.submit("digits")
        standing = await stores.runners.standing("one")
        assert (standing.job.uid, standing.attempt.phase) == (uid, AttemptPhase.ASSIGNED)

    with_stores(test)
