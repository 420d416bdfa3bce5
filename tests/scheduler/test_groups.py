"""What waits together is written together, and still each bears what is its own; on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from sqlalchemy import text

from services.chassis.errors import AlreadyExists, NotFound
from services.scheduler.domain.job import AttemptPhase, JobState, Progress, StopMode
from services.scheduler.domain.lease import key_of
from services.scheduler.domain.request import Request
from services.scheduler.store.placing import WaitingCall
from services.scheduler.store.runners import Renewal
from tests.scheduler.recording import record

MANY = 40
DEADLINE_SECONDS = 60.0


@contextlib.asynccontextmanager
async def one_transaction(stores):
    """What is asked inside waits for the writer, which then takes it all at once."""
    goes_on = threading.Event()
    first = asyncio.ensure_future(stores.database.write(lambda _: goes_on.wait(DEADLINE_SECONDS), control=True))
    await asyncio.sleep(0.05)  # the writer has it alone
    try:
        yield
        await asyncio.sleep(0)
    finally:
        goes_on.set()
        assert await first


async def together(stores, *calls):
    """The results or errors of calls that one transaction served, and how many it was."""
    before = stores.database._transactions
    async with one_transaction(stores):
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.01)  # each has put itself into the queue
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert stores.database._transactions <= before + 2
    return results


def test_jobs_that_are_submitted_at_once_are_written_by_one_statement(with_stores):
    async def test(stores):
        groups = record(stores.database.writing)
        await stores.create_project("digits")
        uids = await together(stores, *(stores.submit("digits", request_id=f"r{n}") for n in range(MANY)))
        assert len(set(uids)) == MANY
        group = next(group for group in reversed(groups) if group)
        inserts = [each for each in group if each.statement.startswith("INSERT")]
        assert [len(each.parameters) for each in inserts] == [MANY] * 3, "jobs, answers and events"
        assert [each.statement for each in group if "SAVEPOINT unit" in each.statement] == []

    with_stores(test)


def test_name_that_is_taken_is_refused_to_its_own_caller_alone(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits", "taken")
        names = ["a", "taken", "b", "twice", "twice", "c"]
        calls = [stores.submit("digits", name, labels={"of": name}, request_id=f"r{n}") for n, name in enumerate(names)]
        results = await together(stores, *calls)
        assert [type(each) for each in results] == [str, AlreadyExists, str, str, AlreadyExists, str]
        assert await stores.count("jobs") == 5
        assert await stores.count("job_labels") == 4
        assert await stores.count("request_ids") == 4, "who was refused may come again with the same id"
        assert (await stores.facts()).count("submitted") == 5
        standings = [await stores.report("one")]
        for _ in range(4):
            standings.append(await stores.end("one", standings[-1], "COMPLETED"))
        given = [each.job.job_id for each in standings]
        assert given == ["taken", "a", "b", "twice", "c"], "the dispatcher knows of no job that is not there"

    with_stores(test)


def test_request_that_comes_twice_at_once_and_is_refused_has_no_effect(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits", "taken")
        calls = [stores.submit("digits", "taken", request_id="same") for _ in range(2)]
        results = await together(stores, *calls, stores.submit("digits", "other"))
        assert [type(each) for each in results] == [AlreadyExists, AlreadyExists, str]
        assert await stores.count("request_ids") == 0

    with_stores(test)


def test_what_fails_after_writing_takes_nothing_with_it(with_stores):
    async def test(stores):
        await stores.create_project("digits")

        def fail(transaction):
            transaction.connection.execute(text("UPDATE jobs SET priority = 7"))
            raise NotFound("gone", "gone")

        calls = [stores.submit("digits", "a"), stores.database.write(fail), stores.submit("digits", "b")]
        results = await together(stores, *calls)
        assert [type(each) for each in results] == [str, NotFound, str]
        assert await stores.count("jobs", "priority = 0") == 2

    with_stores(test)


def test_runners_that_come_at_once_get_their_jobs_by_a_few_statements(with_stores):
    async def test(stores):
        groups = record(stores.database.writing)
        for number in range(MANY):
            await stores.create_project(f"p{number}")
            await stores.submit(f"p{number}")
        standings = await together(stores, *(stores.report(f"r{number}") for number in range(MANY)))
        assert len({each.job.project_id for each in standings}) == MANY
        group = next(group for group in reversed(groups) if group)
        waited = [each for each in group if each.waits and not each.statement.startswith("SELECT")]
        assert len(waited) < MANY, "attempts, jobs, projects and runners go together"

    with_stores(test)


def test_one_job_that_cannot_be_given_out_holds_up_none_of_those_that_are_given_out_with_it(with_stores):
    async def test(stores):
        for number in range(4):
            await stores.create_project(f"p{number}")
            await stores.submit(f"p{number}", f"job-{number}")
        damage = text("UPDATE jobs SET reason = 'NONSENSE' WHERE job_id = 'job-1'")
        await stores.database.write(lambda transaction: transaction.connection.execute(damage).rowcount)
        standings = await together(stores, *(stores.report(f"r{n}", call=WaitingCall()) for n in range(4)))
        given = {each.job.job_id for each in standings if each.job is not None}
        assert given == {"job-0", "job-2", "job-3"}
        await stores.submit("p1", "sound", priority=1)
        assert await stores.count("attempts", "active = true") == 4

    with_stores(test)


def test_calls_of_one_runner_in_one_transaction_see_each_other(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits")
        calls = [stores.report("one"), stores.report("one"), stores.report("one", session="second", sequence=1)]
        results = await together(stores, *calls)
        assert results[0].attempt is None or results[0].job.uid == uid
        assert await stores.count("runners") == 1
        assert await stores.count("runners", "session = 'second'") == 1

    with_stores(test)


def test_stop_in_the_transaction_of_a_runners_call_is_not_taken_for_known(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits")
        standing = await stores.report("one")
        stop = stores.jobs.stop(
            Request(request_id="", digest=b""),
            lambda _: b"",
            project_id="digits",
            job_id=standing.job.job_id,
            mode=StopMode.CHECKPOINT,
            grace_seconds=60.0,
            margin_seconds=10.0,
            reason="",
        )
        held, _ = await together(stores, stores.hold("one", standing, AttemptPhase.DOWNLOADING), stop)
        assert held.as_of < stores.database._transactions, "the desk has to look again"
        assert (await stores.runners.standing("one")).job.state is JobState.STOPPING

    with_stores(test)


def test_progress_of_many_runners_is_written_down_in_one_look(with_stores):
    async def test(stores):
        renewals = []
        for number in range(3):
            await stores.create_project(f"p{number}")
            await stores.submit(f"p{number}")
            standing = await stores.report(f"r{number}")
            await stores.hold(f"r{number}", standing)
            key, progress = key_of(standing.attempt), Progress(iteration=7 + number, iterations_max=100)
            renewals.append(Renewal(runner_id=f"r{number}", age_us=0, key=key, progress=progress))
        await stores.upkeep.renew_and_expire(renewals)
        views = [await stores.job(renewal.key.job_uid) for renewal in renewals]
        assert [view.job.progress.iteration for view in views] == [7, 8, 9]

    with_stores(test)
