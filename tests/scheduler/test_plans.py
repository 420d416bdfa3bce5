"""What the writer asks is a step into an index, however many rows there are and however little is known of them."""

from __future__ import annotations

import re
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Engine, Index

from services.scheduler.domain.job import JobReason, ResumeSource
from services.scheduler.domain.project import ProjectChange, SourceChange
from services.scheduler.domain.request import Request
from services.scheduler.domain.retention import Retention
from services.scheduler.store.retention import RetentionRows
from services.scheduler.store.tables import metadata
from services.scheduler.wire.checkpoint import pinned_checkpoint
from tests.scheduler.recording import Executed, record

REQUEST = Request(request_id="", digest=b"")


def is_partial(index: Index) -> bool:
    return index.dialect_kwargs.get("sqlite_where") is not None


ASKED_MIN = 60
"""Different statements. So many at least are looked at."""
WORDS = ("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")
SMALL = {"counters", "runners", "projects"}
"""Tables that may be gone through: there are thousands of them, not millions."""
PARTIAL = {index.name for table in metadata.tables.values() for index in table.indexes if is_partial(index)}
"""Indexes that have what is under way, and not what has been: they may be gone through."""
SQLITE_SCAN = re.compile(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?")
SQLITE_PROJECT = re.compile(r"SEARCH (jobs) USING (?:COVERING )?INDEX (\w+) \(project_uid=\?\)")
"""All jobs of a project, of which there may be a million."""
POSTGRESQL_SCAN = re.compile(r"Seq Scan on (\w+)|Index (?:Only )?Scan (?:Backward )?using (\w+) on (\w+)")


def test_the_writer_goes_through_no_table(with_stores, checkpoint):
    async def test(stores):
        groups = record(stores.database.writing)
        await live(stores, checkpoint)
        engine = stores.database.writing
        asked = {each.statement: each for group in groups for each in group}
        plans = {statement: plan for statement, each in asked.items() if (plan := plan_of(engine, each))}
        assert len(plans) >= ASKED_MIN
        slow = [statement for statement, plan in plans.items() if gone_through(plan) - SMALL]
        assert not slow, "\n".join("\n".join([each, *plans[each]]) for each in slow)

    with_stores(test)


async def live(stores: Any, checkpoint: Any) -> None:
    """What happens to jobs, runners and projects, and what time does to them."""
    source = SourceChange(uri="s3://bucket/digits", endpoint_url="http://minio:9000", sealed=b"old")
    projects = stores.projects
    await projects.create(
        REQUEST, lambda _: b"", project_id="digits", display_name="", training=source, validation=source
    )
    first = await stores.submit("digits", "first", request_id="a")
    standing = await stores.report("one")
    made = [checkpoint(first, 1, number) for number in range(10, 100, 10)]
    await stores.hold("one", standing, checkpoints=(made[0],))
    await stores.upkeep.renew_and_expire([])
    await stores.end("one", standing, "COMPLETED", checkpoints=tuple(made[1:]))
    resumes = ResumeSource(job_name="projects/digits/jobs/first", checkpoint_name="1-90", key=made[-1].key)
    resumed = await stores.submit("digits", "resumed", source=resumes)
    await stores.stop(resumed)
    for number in range(3):
        await stores.submit("digits", f"failing-{number}")
        standing = await stores.report("two")
        await stores.end("two", standing, "FAILED", reason=JobReason.RUNNER_FAULT)
    await stores.adopt_all()
    stores.clock.pass_seconds(20)
    await stores.upkeep.renew_and_expire([])
    lost = await stores.report("three")
    assert lost.attempt is not None
    stores.clock.pass_seconds(20)
    await stores.upkeep.renew_and_expire([])
    stores.clock.pass_seconds(20)
    await stores.upkeep.renew_and_expire([])
    [waited_for] = await stores.orphans.waited_for()
    await stores.orphans.look_later(waited_for, seconds=5.0)
    assert await stores.orphans.let_go([waited_for]) == [waited_for]
    await stores.orphans.give_up(waited_for)
    await stores.upkeep.restart_clocks()
    await projects.update(
        REQUEST,
        lambda _: b"",
        project_id="digits",
        change=ProjectChange(training_dataset=replace(source, sealed=b"new")),
    )
    stores.clock.pass_seconds(7_200)
    rows = RetentionRows(stores.database, Retention(kept=2, settle_minutes=1.0), pinned_by=pinned_checkpoint)
    assert [part async for part in rows.prune()]
    await stores.delete_job(resumed)
    await stores.upkeep.forget()
    await projects.create(
        REQUEST,
        lambda _: b"",
        project_id="gone",
        display_name="",
        training=SourceChange(uri="file:///"),
        validation=None,
    )
    await projects.delete(REQUEST, lambda _: b"", project_id="gone")
    await projects.purge([job.uid for job in await projects.doomed()])


def plan_of(engine: Engine, executed: Executed) -> list[str]:
    """How the database goes about it, step by step."""
    if executed.many or not executed.statement.startswith(WORDS):
        return []
    word = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        rows = driver.execute(f"{word} {executed.statement}", executed.parameters or ()).fetchall()
    return [row[-1].strip() for row in rows]


def gone_through(plan: list[str]) -> set[str]:
    """The tables that the steps go through from their beginnings to their ends, also where they do so by an index."""
    found = set()
    for before, step, after in zip(["", *plan[:-1]], plan, [*plan[1:], ""], strict=True):
        is_existence = before.startswith("CORRELATED SCALAR SUBQUERY")
        if scan := SQLITE_SCAN.match(step) or (not is_existence and SQLITE_PROJECT.match(step)):
            table, index = scan.groups()
            found |= {table} if index not in PARTIAL else set()
        elif scan := POSTGRESQL_SCAN.search(step):
            whole, index, table = scan.groups()
            found |= {whole or table} if index not in PARTIAL and not after.startswith("Index Cond") else set()
    return found & {table.name for table in metadata.sorted_tables}
