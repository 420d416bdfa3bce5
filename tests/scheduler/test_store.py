"""Projects, requests, queue and lists, on both databases."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, inspect, text

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
)
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.domain.job import JobState
from services.scheduler.domain.placement import GIB, Capabilities, Gpu, Needs
from services.scheduler.domain.project import CredentialsChange, ProjectChange, SourceChange
from services.scheduler.domain.request import Request
from services.scheduler.domain.view import JobFilter
from services.scheduler.migrations import migrate
from services.scheduler.store import projects
from services.scheduler.store.database import Database, DatabaseLimits
from services.scheduler.store.placing import WaitingCall
from services.scheduler.store.tables import metadata
from services.scheduler.wire.event import fact_to_event
from services.scheduler.wire.job import why_not_running
from tests.scheduler.recording import record

NOBODY = Request(request_id="", digest=b"")
TASKS = frozenset({"MULTICLASS_CLASSIFICATION"})
GPU_RUNNER = Capabilities(tasks=TASKS, gpus=(Gpu(model="large", memory_bytes=80 * GIB),))
ONE_GPU = Needs(gpus=1, tasks=TASKS)


def uid_of(project) -> bytes:
    return project.uid.encode()


def test_migrations_give_exactly_the_tables_of_the_code(tmp_path):
    migrated = create_engine(f"sqlite:///{tmp_path}/migrated.sqlite")
    for _ in range(2):
        with migrated.begin() as connection:
            migrate(connection)
    created = create_engine(f"sqlite:///{tmp_path}/created.sqlite")
    metadata.create_all(created)

    def schema(engine):
        tables = inspect(engine)
        indexes = text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        with engine.connect() as connection:
            found = {row.name: re.sub(r"\s+", " ", row.sql) for row in connection.execute(indexes)}
        for name in tables.get_table_names():
            columns = {c["name"]: (str(c["type"]), c["nullable"], c["default"]) for c in tables.get_columns(name)}
            found[name] = (columns, tables.get_pk_constraint(name)["constrained_columns"])
            found[f"{name}/unique"] = tables.get_unique_constraints(name)
        return {name: value for name, value in found.items() if not name.startswith("alembic")}

    assert schema(migrated) == schema(created)


def test_same_request_gets_its_first_answer_and_has_one_effect(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        first = await stores.submit("digits", request_id="r1", digest=b"body")
        assert await stores.submit("digits", request_id="r1", digest=b"body") == first
        assert await stores.count("jobs") == 1

    with_stores(test)


def test_same_request_at_once_has_one_effect(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uids = await asyncio.gather(
            *(stores.submit("digits", request_id=f"r{i % 5}", digest=b"body") for i in range(40))
        )
        assert len(set(uids)) == 5
        assert await stores.count("jobs") == 5

    with_stores(test)


def test_request_id_for_another_body_is_refused(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits", request_id="r1", digest=b"body")
        with pytest.raises(AlreadyExists) as refused:
            await stores.submit("digits", request_id="r1", digest=b"other")
        assert refused.value.reason is Reason.REQUEST_ID_REUSED

    with_stores(test)


def test_refused_request_leaves_nothing_and_takes_nothing_with_it(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        results = await asyncio.gather(
            stores.submit("digits", "same"),
            stores.submit("digits", "same"),
            stores.submit("nowhere", "lost", request_id="r1", digest=b"body"),
            stores.submit("digits", "other"),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [str, AlreadyExists, NotFound, str]
        assert (await stores.count("jobs"), await stores.count("request_ids")) == (2, 0)
        assert await stores.facts() == ["submitted", "submitted"]

    with_stores(test)


def test_request_id_is_forgotten_after_its_hours(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        first = await stores.submit("digits", request_id="r1", digest=b"body")
        stores.clock.pass_seconds(3_500)
        await stores.upkeep.forget()
        assert await stores.submit("digits", request_id="r1", digest=b"body") == first
        stores.clock.pass_seconds(200)
        await stores.upkeep.forget()
        assert await stores.submit("digits", request_id="r1", digest=b"body") != first

    with_stores(test)


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
        await stores.projects.purge(await stores.projects.doomed())
        assert (await stores.count("jobs"), await stores.count("projects")) == (1, 1)
        assert len(await stores.jobs.batch([("digits", "first")], [])) == 1

    with_stores(test)


def test_many_old_request_ids_are_forgotten_in_pieces(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        row = "INSERT INTO request_ids (request_id, digest, answer, create_time_us) VALUES (:id, :bytes, :bytes, 0)"
        rows = [{"id": f"r{number}", "bytes": b""} for number in range(12_000)]
        await stores.database.write(lambda tx: tx.connection.execute(text(row), rows).rowcount)
        await stores.upkeep.forget()
        assert await stores.count("request_ids") == 0

    with_stores(test)


def test_slow_lists_delay_nothing_that_runners_ask(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits")
        await stores.report("one")
        goes_on = threading.Event()
        lists = [asyncio.ensure_future(stores.database.list(lambda _connection: goes_on.wait(60))) for _ in range(10)]
        assert (await stores.runners.standing("one")).attempt is not None
        assert not any(each.done() for each in lists)
        goes_on.set()
        await asyncio.gather(*lists)

    with_stores(test)


def test_jobs_are_listed_newest_first_by_state_label_and_time(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.create_project("letters")
        for number in range(5):
            labels = {"parity": "odd" if number % 2 else "even"}
            await stores.submit("digits", f"job-{number}", labels=labels)
            stores.clock.pass_seconds(1)
        await stores.submit("letters", "other")
        await stores.stop((await stores.jobs.batch([("digits", "job-3")], []))[0].job.uid)

        async def ids(before=None, **conditions):
            page = await stores.jobs.page(JobFilter(**conditions), before=before, limit=2)
            return [view.job.job_id for view in page], page[-1].job.sequence if page else None

        assert (await ids())[0] == ["other", "job-4"]
        first, last = await ids(project_id="digits")
        assert first == ["job-4", "job-3"]
        assert (await ids(last, project_id="digits"))[0] == ["job-2", "job-1"]
        assert (await ids(states=frozenset({JobState.STOPPED})))[0] == ["job-3"]
        assert (await ids(labels={"parity": "odd"}))[0] == ["job-3", "job-1"]
        start_us = stores.clock.now_us - 5_000_000
        assert (await ids(created_after_us=start_us + 1_000_000, created_before_us=start_us + 3_000_000))[0] == [
            "job-2",
            "job-1",
        ]

    with_stores(test)


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


def test_revisions_follow_the_order_of_the_changes(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uids = await asyncio.gather(*(stores.submit("digits") for _ in range(20)))
        await stores.stop(uids[3])
        seen, after = [], 0
        while True:
            changes = await stores.jobs.changes(project_uid=None, after=after, limit=7)
            seen += [item.job for item in changes.items]
            after = changes.revision
            if changes.complete:
                break
        revisions = [job.revision for job in seen]
        assert revisions == sorted(set(revisions))
        assert seen[-1].uid == uids[3]
        assert len(seen) == 20
        assert after == await stores.jobs.revision()

    with_stores(test)


def test_cursor_is_too_old_once_deletions_after_it_are_forgotten(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        uid = await stores.submit("digits")
        seen = await stores.jobs.revision()
        await stores.stop(uid)
        await stores.delete_project("digits")
        stores.clock.pass_seconds(7_200)
        await stores.upkeep.forget()
        assert (await stores.jobs.changes(project_uid=None, after=seen, limit=10)).oldest > seen

    with_stores(test)


def test_full_queue_of_the_writer_is_refused_with_a_time_to_come_back(sqlite_url):
    limits, dispatcher = DatabaseLimits(queue_max=2), Dispatcher(overtakes_max=0)
    database = Database(
        sqlite_url, encode_fact=fact_to_event, new_id=lambda: "id", dispatcher=dispatcher, limits=limits
    )

    async def test():
        waiting = [asyncio.ensure_future(database.write(lambda tx: tx.now_us)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted):
            await database.write(lambda tx: tx.now_us)
        database.start()
        assert all(await asyncio.gather(*waiting))

    try:
        asyncio.run(test())
    finally:
        database.close()
