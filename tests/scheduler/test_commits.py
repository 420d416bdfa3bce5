"""What becomes of calls whose transaction went wrong, or of which nobody knows whether it is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
import uuid

from sihlai.scheduler.v1 import job_pb2


@contextlib.contextmanager
def one_commit_without_an_answer(database):
    """The next transaction is on disk, and its writer is told that it is not."""
    dialect = database.writing.dialect
    commit = dialect.do_commit

    def commit_and_fail(connection) -> None:
        dialect.do_commit = commit
        commit(connection)
        raise sqlite3.OperationalError("disk I/O error")

    dialect.do_commit = commit_and_fail
    try:
        yield
    finally:
        dialect.do_commit = commit


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
