"""Who is next: the queue of each project, the runners that wait, and what both cost, on both databases."""

from __future__ import annotations

import asyncio
import sqlite3

from services.scheduler.domain.placement import GIB, Capabilities, Gpu, Needs
from services.scheduler.store.placing import WaitingCall
from services.scheduler.wire.job import why_not_running
from tests.scheduler.recording import record

TASKS = frozenset({"MULTICLASS_CLASSIFICATION"})
GPU_RUNNER = Capabilities(tasks=TASKS, gpus=(Gpu(model="large", memory_bytes=80 * GIB),))
ONE_GPU = Needs(gpus=1, tasks=TASKS)


def test_priority_goes_before_age_within_a_project(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        for job_id, priority in [("old", 0), ("older-but-low", -5), ("urgent", 7), ("urgent-too", 7)]:
            await stores.submit("digits", job_id, priority=priority)
        order = []
        standing = await stores.report("one")
        while standing.job is not None:
            order.append(standing.job.job_id)
            await stores.stop(standing.job.uid)
            standing = await stores.end("one", standing, "STOPPED")
        assert order == ["urgent", "urgent-too", "old", "older-but-low"]

    with_stores(test)


def test_project_with_many_jobs_delays_a_project_with_one_by_at_most_one_round(with_stores):
    async def test(stores):
        await stores.create_project("many")
        await stores.create_project("single")
        for _ in range(30):
            await stores.submit("many")
        served = [(await stores.report("one")).job]
        await stores.submit("single")
        for _ in range(3):
            await stores.stop(served[-1].uid)
            standing = await stores.runners.standing("one")
            served.append((await stores.end("one", standing, "STOPPED")).job)
        assert [job.project_id for job in served] == ["many", "single", "many", "many"]

    with_stores(test)


def test_project_has_one_active_attempt_however_many_runners_wait(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        for _ in range(3):
            await stores.submit("digits")
        standings = [await stores.report(f"runner-{number}") for number in range(3)]
        assert [standing.attempt is not None for standing in standings] == [True, False, False]
        assert await stores.count("attempts", "active") == 1

    with_stores(test)


def test_waiting_runner_gets_a_job_in_the_transaction_of_its_submit(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        woken = []
        stores.database.after_commit.append(lambda committed: woken.extend(committed.runners))
        assert (await stores.report("one", call=WaitingCall())).attempt is None
        uid = await stores.submit("digits")
        assert woken == ["one"]
        assert (await stores.runners.standing("one")).job.uid == uid

    with_stores(test)


def test_runner_whose_call_is_over_gets_no_job(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        call = WaitingCall()
        await stores.report("one", call=call)
        call.over = True
        await stores.submit("digits")
        assert (await stores.runners.standing("one")).attempt is None

    with_stores(test)


def test_smallest_waiting_runner_that_can_serve_a_job_gets_it(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.report("large", call=WaitingCall(), capabilities=GPU_RUNNER)
        await stores.report("small", call=WaitingCall())
        await stores.submit("digits")
        assert (await stores.runners.standing("small")).attempt is not None
        assert (await stores.runners.standing("large")).attempt is None

    with_stores(test)


def test_job_that_no_free_runner_can_serve_blocks_nobody_until_it_was_overtaken_often_enough(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.report("large", capabilities=GPU_RUNNER)
        await stores.submit("digits", "needs-gpu", needs=ONE_GPU)
        for number in range(4):
            await stores.submit("digits", f"small-{number}")
        served = []
        for _ in range(3):
            standing = await stores.report("small")
            if standing.job is None:
                break
            served.append(standing.job.job_id)
            await stores.stop(standing.job.uid)
            await stores.hold("small", standing)
            closed = await stores.end("small", standing, "STOPPED", draining=True)
            assert closed.attempt is None
        assert served == ["small-0", "small-1"]  # overtakes_max is 2: now the slot is kept
        assert (await stores.report("large", capabilities=GPU_RUNNER)).job.job_id == "needs-gpu"

    with_stores(test, overtakes_max=2)


def test_slot_is_not_kept_for_a_job_that_no_registered_runner_could_serve(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits", "needs-gpu", needs=ONE_GPU)
        for number in range(4):
            await stores.submit("digits", f"small-{number}")
        standing = await stores.report("small")
        served = []
        for _ in range(4):
            served.append(standing.job.job_id)
            await stores.stop(standing.job.uid)
            standing = await stores.end("small", standing, "STOPPED")
        assert served == [f"small-{number}" for number in range(4)]

    with_stores(test, overtakes_max=1)


def test_claim_costs_the_same_statements_with_one_job_queued_and_with_hundreds(with_stores):
    async def test(stores):
        groups = record(stores.database.writing)

        async def claim_and_count(project_id: str, jobs: int) -> int:
            await stores.create_project(project_id)
            await asyncio.gather(*(stores.submit(project_id) for _ in range(jobs)))
            standing = await stores.report(f"runner-of-{project_id}")
            assert standing.job.project_id == project_id
            claim = next(group for group in reversed(groups) if group)
            assert any("INSERT INTO attempts" in each.statement for each in claim)
            return len(claim)

        assert await claim_and_count("few", 1) == await claim_and_count("many", 300)

    with_stores(test)


def test_statements_of_the_queue_use_its_indexes(sqlite_url, stores_class):
    plans = []

    def explain(executed):
        statement = executed.statement
        is_queue = "jobs.ready" in statement or "attempts.active" in statement
        if not executed.many and is_queue and statement.startswith(("SELECT", "UPDATE", "DELETE")):
            with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
                rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", executed.parameters).fetchall()
            plans.extend((row[-1], statement) for row in rows)

    async def test(stores):
        groups = record(stores.database.writing)
        await stores.create_project("digits")  # with it the dispatcher is told all that the rows say
        groups.append([])
        before = len(groups)
        for needs in (ONE_GPU, Needs(tasks=TASKS)):
            await stores.submit("digits", needs=needs)
        standing = await stores.report("one")
        await stores.stop(standing.job.uid)
        await stores.end("one", standing, "STOPPED")
        for group in groups[before:]:
            for executed in group:
                explain(executed)

    stores_class(sqlite_url).run(test)
    assert len(plans) > 3
    slow = [
        (plan, statement)
        for plan, statement in plans
        if (plan.startswith("SCAN") and plan != "SCAN CONSTANT ROW") or "TEMP B-TREE" in plan
    ]
    assert not slow


def test_queue_position_and_reason_are_told(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        for job_id in ("first", "second", "third"):
            await stores.submit("digits", job_id)
        _, standing = await stores.jobs.get("digits", "third")
        assert (standing.ahead, standing.active_job, standing.runners) == (2, "", ())
        await stores.report("one")
        _, standing = await stores.jobs.get("digits", "third")
        assert (standing.ahead, standing.active_job) == (1, "projects/digits/jobs/first")
        assert ([runner.runner_id for runner in standing.runners], standing.busy) == (["one"], frozenset({"one"}))

    with_stores(test)


def test_reason_why_a_job_waits_costs_as_much_as_there_are_kinds_of_runners(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.create_project("busy")
        await asyncio.gather(*(stores.report(f"small-{n:03}") for n in range(150)))
        await asyncio.gather(*(stores.report(f"large-{n:03}", capabilities=GPU_RUNNER) for n in range(150)))
        await stores.submit("busy", needs=ONE_GPU)
        assert (await stores.report("large-007", capabilities=GPU_RUNNER)).attempt is not None
        await stores.submit("digits", "first", needs=Needs(gpus=8, tasks=TASKS))
        _, standing = await stores.jobs.get("digits", "first")
        assert [each.runner_id for each in standing.runners] == ["large-000", "large-007", "small-000"]
        assert (standing.busy, standing.registered) == ({"large-007"}, 300)
        assert standing.runners[0].capabilities == GPU_RUNNER
        assert "(and 297 more)" in why_not_running(Needs(gpus=8, tasks=TASKS), standing)

    with_stores(test)


def test_a_start_asks_for_all_projects_that_wait_at_once(database_url, stores_class):
    """One by one it took a PostgreSQL with thousands of them longer than a leader may be silent."""

    async def fill(stores) -> None:
        for number in range(20):
            await stores.create_project(f"p{number}")
            for gpus in range(3):
                await stores.submit(f"p{number}", f"job-{gpus}", needs=Needs(gpus=gpus))

    stores_class(database_url).run(fill)
    again = stores_class(database_url)
    groups = record(again.database.writing)

    async def read(stores) -> None:
        await stores.database.write(lambda _transaction: None)
        for number in range(20):
            standing = await stores.report(f"r{number}")
            assert standing.job is not None
            assert standing.job.job_id == "job-0"

    again.run(read)
    first = next(group for group in groups if group)
    if again.database.writing.dialect.name == "postgresql":
        assert len(first) < 20, [each.statement for each in first]
