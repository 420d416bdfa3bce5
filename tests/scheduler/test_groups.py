"""What waits together is written together, and still each bears what is its own; on both databases."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from services.chassis.errors import AlreadyExists, NotFound, Unavailable
from services.scheduler.domain.job import AttemptPhase, JobState, Progress, StopMode
from services.scheduler.domain.lease import key_of
from services.scheduler.domain.placement import Capabilities, Needs
from services.scheduler.domain.project import ProjectChange, SourceChange
from services.scheduler.domain.request import Request
from services.scheduler.store import transaction
from services.scheduler.store.gathering import DatabaseLimits
from services.scheduler.store.placing import WaitingCall
from services.scheduler.store.runners import Renewal
from services.scheduler.store.together import together as say_together
from tests.scheduler.recording import record
from tests.scheduler.stores import one_transaction

MANY = 40
ALONE = frozenset({"DEPTH_ESTIMATION"})
CALLERS, CALLS_EACH = 8, 10
DEADLINE_SECONDS = 60.0


async def together(stores, *calls):
    """The results or errors of calls that one transaction served, and how many it was."""
    before = stores.database._transactions
    async with one_transaction(stores):
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.01)  # each has put itself into the queue
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert stores.database._transactions <= before + 2
    return results


def table_of(insert) -> str:
    return insert.statement.split()[2]


def test_jobs_that_are_submitted_at_once_are_written_by_one_statement(with_stores):
    async def test(stores):
        groups = record(stores.database.writing)
        await stores.create_project("digits")
        uids = await together(stores, *(stores.submit("digits", request_id=f"r{n}") for n in range(MANY)))
        assert len(set(uids)) == MANY
        group = next(group for group in reversed(groups) if group)
        inserts = [each for each in group if each.statement.startswith("INSERT")]
        assert [table_of(each) for each in inserts] == ["jobs", "request_ids", "outbox"]
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


def test_row_that_holds_no_json_fails_the_call_that_is_about_it_alone(with_stores):
    """All rows of runners that call at once are asked for by one statement."""

    async def test(stores):
        damage = "{" if stores.database.writing.dialect.name == "sqlite" else "[]"
        for runner_id in ("damaged", "sound"):
            await stores.report(runner_id)
        spoil = text(f"UPDATE runners SET capabilities = '{damage}' WHERE runner_id = 'damaged'")
        await stores.database.write(lambda transaction: transaction.connection.execute(spoil).rowcount)
        await stores.create_project("digits")
        calls = [stores.report("damaged"), stores.report("sound"), stores.submit("digits", request_id="r")]
        damaged, sound, submitted = await together(stores, *calls)
        assert isinstance(damaged, Exception)
        assert sound.attempt.job_uid == submitted

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


def test_job_gets_the_dataset_that_its_project_has_though_a_change_that_another_job_saw_was_lost(with_stores):
    async def test(stores):
        await stores.create_project("digits")

        async def uri() -> str:
            return (await stores.job(await stores.submit("digits"))).job.training_dataset.uri

        def updated(uri: str):
            change, nobody = ProjectChange(training_dataset=SourceChange(uri=uri)), Request(request_id="", digest=b"")
            return stores.projects.update(nobody, lambda _: b"", project_id="digits", change=change)

        first = await uri()
        await updated("file:///second")
        assert await uri() == "file:///second" != first
        dialect = stores.database.writing.dialect
        commit = dialect.do_commit

        def fail_once_there_is_a_job(connection) -> None:
            if stores.database._transactions < failing:
                return commit(connection)
            dialect.do_commit = commit
            raise dialect.loaded_dbapi.OperationalError("disk I/O error")

        failing = stores.database._transactions + 2
        dialect.do_commit = fail_once_there_is_a_job
        results = await together(stores, updated("file:///third"), stores.submit("digits"))
        assert [type(each) for each in results] == [Unavailable, Unavailable]
        assert await uri() == "file:///second"

    with_stores(test)


def test_what_waits_is_said_to_the_database_in_few_exchanges(with_stores, monkeypatch, waiting_call):
    """A server may be a millisecond away, and each exchange takes two of its ways."""
    said = []

    def counted(connection, steps, **options):
        said.append(len(steps))
        return say_together(connection, steps, **options)

    monkeypatch.setattr(transaction, "together", counted)

    async def test(stores):
        await stores.create_project("digits")
        for _ in range(2):
            said.clear()
            await together(stores, *(stores.submit("digits", request_id=stores.new_id()) for _ in range(MANY)))
        assert len(said) == 2 + 2, "begin and ask, write and commit; so do those who are waited for"
        await stores.create_project("alone")
        await stores.report("one", capabilities=Capabilities(tasks=ALONE), call=waiting_call())
        said.clear()
        await stores.submit("alone", needs=Needs(tasks=ALONE), request_id="r")
        assert (await stores.runners.standing("one")).job.project_id == "alone"
        assert len(said) == 4, "the job is read behind its own row, and given out by one more"

    with_stores(test)


def test_what_was_to_be_prepared_behind_an_error_is_not_taken_for_prepared(with_stores):
    """Each statement is prepared once it was said a few times, and any of them may be behind what fails."""

    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits", "taken")
        for number in range(12):
            fresh = [stores.submit("digits", request_id=f"{number}-{each}") for each in range(number % 3)]
            labelled = stores.submit("digits", f"job-{number}", labels={"number": str(number)})
            refused, *submitted = await together(stores, stores.submit("digits", "taken"), labelled, *fresh)
            assert isinstance(refused, AlreadyExists)
            assert [type(each) for each in submitted] == [str] * len(submitted)

    with_stores(test)


@pytest.mark.parametrize("beside", [True, False])
def test_dispatcher_knows_of_no_job_that_could_not_be_written(with_stores, beside):
    async def test(stores):
        await stores.create_project("digits")
        await stores.stop(await stores.submit("digits", "taken"))
        project = await stores.projects.get("digits")
        assert stores.dispatcher.served(project.uid) is None, "nothing waits"
        calls = [stores.submit("digits", "taken")]
        if beside:  # what is told to the runner is made when all else is done
            calls.append(stores.report("one", capabilities=Capabilities(tasks=ALONE)))
        refused, *_ = await together(stores, *calls)
        assert isinstance(refused, AlreadyExists)
        assert stores.dispatcher.served(project.uid) is None, "nothing waits"

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
        revision = await stores.jobs.revision()
        await stores.upkeep.renew_and_expire(renewals)
        views = [await stores.job(renewal.key.job_uid) for renewal in renewals]
        assert [view.progress.iteration for view in views] == [7, 8, 9]
        assert await stores.jobs.revision() == revision, "how far a job is is no change of it"

    with_stores(test)


def test_progress_that_a_report_brings_has_no_revision_and_the_end_of_the_attempt_keeps_it(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits")
        standing = await stores.report("one")
        uid = standing.job.uid
        standing = await stores.hold("one", standing, progress=Progress(iteration=5, iterations_max=100))
        revision = await stores.jobs.revision()
        held = await stores.hold("one", standing, progress=Progress(iteration=6, iterations_max=100, phase="training"))
        view = await stores.job(uid)
        assert (view.progress, held.job.revision) == (
            Progress(iteration=6, iterations_max=100, phase="training"),
            revision,
        )
        assert await stores.jobs.revision() == revision == view.job.revision
        late = Renewal(runner_id="one", age_us=0, key=key_of(held.attempt), progress=Progress(iteration=4))
        await stores.end("one", held, "COMPLETED")
        await stores.upkeep.renew_and_expire([late])
        assert (await stores.job(uid)).progress.iteration == 6

    with_stores(test)


def test_where_many_call_those_on_their_way_are_waited_for(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await asyncio.gather(*(stores.submit("digits") for _ in range(CALLERS)))
        before = stores.database._transactions

        async def caller(number: int) -> None:
            for _ in range(CALLS_EACH):
                await asyncio.sleep(0.002 * number)
                await stores.submit("digits")

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        assert stores.database._transactions - before <= 2 * CALLS_EACH

    with_stores(test, limits=DatabaseLimits(gather_seconds=0.2, gather_seconds_max=10.0))


def test_nobody_waits_for_those_who_do_not_come(with_stores):
    async def test(stores):
        async with asyncio.timeout(DEADLINE_SECONDS / 2):
            await stores.create_project("digits")
            for _ in range(CALLS_EACH):
                await asyncio.gather(*(stores.submit("digits") for _ in range(CALLERS // 2)))
                await stores.submit("digits")

    with_stores(test, limits=DatabaseLimits(gather_seconds=DEADLINE_SECONDS, gather_seconds_max=DEADLINE_SECONDS))


@pytest.mark.parametrize(
    ("control", "limits"),
    [
        (False, {"gather_seconds_max": 0.01}),
        (True, {"gather_seconds_max": DEADLINE_SECONDS, "control_gather_seconds_max": 0.01}),
    ],
)
def test_nobody_waits_longer_than_a_limit(with_stores, control: bool, limits: dict[str, float]):
    async def test(stores):
        async with asyncio.timeout(DEADLINE_SECONDS / 2):
            for _ in range(CALLS_EACH):
                await asyncio.gather(*(stores.database.write(lambda _: None, control=control) for _ in range(CALLERS)))
                await stores.database.write(lambda _: None, control=control)

    with_stores(test, limits=DatabaseLimits(gather_seconds=DEADLINE_SECONDS, **limits))


def test_a_job_learns_from_the_dataset_that_its_project_got_in_the_same_transaction(with_stores):
    """What is asked of projects for all who wait is old once one of them changes."""

    async def test(stores):
        await stores.create_project("digits")
        moved = ProjectChange(training_dataset=SourceChange(uri="file:///moved"))
        change = stores.projects.update(
            Request(request_id="", digest=b""), lambda _: b"", project_id="digits", change=moved
        )
        _, uid = await together(stores, change, stores.submit("digits"))
        assert (await stores.job(uid)).job.training_dataset.uri == "file:///moved"

    with_stores(test)
