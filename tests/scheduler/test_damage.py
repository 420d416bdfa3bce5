"""A row that holds what cannot be read: what is about it fails, and nothing else does, whatever looks at all rows."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import JSON, text
from sqlalchemy.exc import OperationalError

from services.chassis.errors import Unavailable
from services.scheduler.domain.access_token import AccessToken
from services.scheduler.domain.job import CheckpointKey, JobState, ResumeSource
from services.scheduler.domain.lease import AttemptKey
from services.scheduler.domain.request import Request
from services.scheduler.domain.retention import Retention
from services.scheduler.domain.view import Damaged, JobFilter, JobView
from services.scheduler.store import upkeep
from services.scheduler.store.access_tokens import AccessTokenStore
from services.scheduler.store.retention import RetentionRows
from services.scheduler.store.tables import metadata
from services.scheduler.wire.checkpoint import pinned_checkpoint
from tests.scheduler.stores import one_commit_without_an_answer

DAMAGED, SOUND = "damaged", "sound"
ROWS = {
    "access_tokens": "token_id = 'damaged'",
    "projects": "project_id = 'damaged'",
    "jobs": "project_id = 'damaged'",
    "attempts": "job_uid IN (SELECT uid FROM jobs WHERE project_id = 'damaged')",
    "checkpoints": "job_uid IN (SELECT uid FROM jobs WHERE project_id = 'damaged')",
    "runners": "runner_id = 'damaged'",
}
"""What is damaged of each table."""
COLUMNS = [
    f"{name}.{column.name}"
    for name in ROWS
    for column in metadata.tables[name].columns
    if isinstance(column.type, JSON) and name != "access_tokens"
]


async def work(stores, project_id: str, checkpoint) -> AttemptKey:
    """The project's jobs: one has ended, one goes on from it, one waits. Returns the attempt of the second."""
    await stores.create_project(project_id)
    uid = await stores.submit(project_id, "ended")
    standing = await stores.report(project_id)
    made = [checkpoint(uid, 1, number) for number in (1, 2, 3, 4, 5, 30, 60, 90, 99)]
    await stores.hold(project_id, standing, checkpoints=tuple(made[:1]))
    await stores.end(project_id, standing, "COMPLETED", checkpoints=tuple(made[1:]))
    source = ResumeSource(job_name=f"projects/{project_id}/jobs/ended", checkpoint_name="1-99", key=made[-1].key)
    await stores.submit(project_id, "resumed", source=source)
    standing = await stores.report(project_id)
    assert standing.attempt is not None
    assert standing.attempt.resume == made[-1].key
    await stores.hold(project_id, standing)
    await stores.submit(project_id, "queued")
    return AttemptKey(job_uid=standing.attempt.job_uid, epoch=standing.attempt.epoch)


async def spoil(stores, *columns: str, word: str = "{") -> None:
    """What is there of the columns is no JSON any more; PostgreSQL takes nothing but JSON."""
    word = word if stores.database.writing.dialect.name == "sqlite" else "[]"
    for column in columns:
        table, _, name = column.partition(".")
        damage = text(f"UPDATE {table} SET {name} = '{word}' WHERE {ROWS[table]}")
        changed = await stores.database.write(lambda tx, query=damage: tx.connection.execute(query).rowcount)
        assert changed, "there is something to spoil"


@pytest.mark.parametrize("column", COLUMNS)
def test_what_holds_no_json_is_left_out_and_stops_nothing(sqlite_url, stores_class, checkpoint, column):
    stores_class(sqlite_url).run(lambda stores: all_else_goes_on(stores, checkpoint, [column]))


def test_what_holds_other_json_is_left_out_and_stops_nothing(postgresql_url, stores_class, checkpoint):
    stores_class(postgresql_url).run(lambda stores: all_else_goes_on(stores, checkpoint, COLUMNS))


def test_json_that_is_nested_without_end_is_left_out_and_stops_nothing(sqlite_url, stores_class, checkpoint):
    word = "[" * 100_000
    stores_class(sqlite_url).run(lambda stores: all_else_goes_on(stores, checkpoint, ["jobs.labels"], word=word))


async def all_else_goes_on(stores, checkpoint, columns, **how: str) -> None:
    await work(stores, DAMAGED, checkpoint)
    key = await work(stores, SOUND, checkpoint)
    await put_aside(stores, (DAMAGED, SOUND))
    await spoil(stores, *columns, **how)
    await is_shown(stores)
    gone = await is_looked_after(stores, key)
    if {"jobs.source", "attempts.resume"} & set(columns):
        assert {each.job_uid for each in gone} == {gone[0].job_uid}, "what it begins at may be any of its project's"


async def is_shown(stores) -> None:
    """What is sound, wherever all is shown."""
    of_sound = {f"projects/{SOUND}/jobs/{job_id}" for job_id in ("ended", "resumed", "queued")}
    page = await stores.jobs.page(JobFilter(), before=None, limit=100)
    assert of_sound <= {each.job.name for each in page if not isinstance(each, Damaged)}
    changes = await stores.jobs.changes(project_uid=None, after=1, limit=100)
    assert of_sound <= {each.job.name for each in changes.items if isinstance(each, JobView)}
    projects = await stores.projects.page(after="", limit=100)
    assert SOUND in {each.project_id for each in projects if not isinstance(each, Damaged)}
    runners = await stores.runners.page(after="", limit=100)
    assert SOUND in {each.runner.runner_id for each in runners if not isinstance(each, Damaged)}
    _, why = await stores.jobs.get(SOUND, "queued")
    assert why.active_job == f"projects/{SOUND}/jobs/resumed"


async def is_looked_after(stores, key: AttemptKey) -> list[CheckpointKey]:
    """What is sound, wherever all is looked at; `key` is of the attempt of the sound project. Returns the checkpoints
    that were taken out.
    """
    with one_commit_without_an_answer(stores.database), pytest.raises(Unavailable):
        await stores.create_project("unsure")  # all that the dispatcher knows is read anew
    await stores.create_project("another")

    stores.clock.pass_seconds(600)
    rows = RetentionRows(stores.database, Retention(kept=4, settle_minutes=1.0), pinned_by=pinned_checkpoint)
    gone = [each.key async for part in rows.prune() for each in part]
    ended = (await stores.jobs.get(SOUND, "ended"))[0].job
    assert [each.iteration for each in gone if each.job_uid == ended.uid] == [1, 2, 3, 4, 90]
    await stores.upkeep.forget()

    closed = [each for _ in range(3) for each in await stores.upkeep.renew_and_expire([])]
    assert SOUND in {each.runner_id for each in closed}
    assert await stores.count("runners", f"runner_id = '{SOUND}' AND put_aside_until_us IS NULL") == 1
    assert key in {orphan.key for orphan in await stores.orphans.due(100)}
    await stores.orphans.adopt(key, [])
    job = (await stores.jobs.get(SOUND, "resumed"))[0].job
    assert job.ready

    given = await stores.report("third")
    while given.job.project_id != SOUND:
        given = await stores.end("third", given, "COMPLETED")
    assert given.job.uid == job.uid
    await stores.stop(job.uid)
    assert (await stores.job(job.uid)).job.state is JobState.STOPPING
    await stores.end("third", given, "STOPPED", draining=True)
    await stores.delete_job(job.uid)
    await stores.delete_job(ended.uid)
    await stores.stop((await stores.jobs.get(SOUND, "queued"))[0].job.uid)
    await stores.delete_project(SOUND)
    return gone


async def put_aside(stores, runner_ids) -> None:
    """As after a row of failures, until now."""
    query = text(f"UPDATE runners SET put_aside_until_us = {stores.clock.now_us} WHERE runner_id = :id")
    for runner_id in runner_ids:
        await stores.database.write(lambda tx, each=runner_id: tx.connection.execute(query, {"id": each}).rowcount)


def test_job_can_be_deleted_beside_one_that_cannot_be_read(with_stores, checkpoint):
    """Whether something goes on from it is asked of all jobs of the project that go on."""

    async def test(stores):
        await work(stores, DAMAGED, checkpoint)
        await spoil(stores, "jobs.source")
        uid = await stores.submit(DAMAGED, "stopped")
        await stores.stop(uid)
        await stores.delete_job(uid)

    with_stores(test)


def test_what_cannot_be_dealt_with_is_said_once_in_a_while(sqlite_url, stores_class, checkpoint, capsys):
    async def test(stores):
        await work(stores, DAMAGED, checkpoint)
        await spoil(stores, "attempts.progress")
        stores.clock.pass_seconds(60)
        for _ in range(2):
            capsys.readouterr()
            for _ in range(60):  # as long as it is left alone
                stores.clock.pass_seconds(10)
                assert await stores.upkeep.renew_and_expire([]) == []
            assert capsys.readouterr().out.count("attempt_not_closed") == 1

    stores_class(sqlite_url).run(test)


def test_trouble_of_the_database_is_no_fault_of_the_record(sqlite_url, stores_class, checkpoint, monkeypatch):
    """A disk that is full for a moment must not leave a lost job where it is for ten minutes."""

    async def test(stores):
        key = await work(stores, SOUND, checkpoint)
        stores.clock.pass_seconds(60)

        def fail(*_arguments: object, **_options: object) -> None:
            raise OperationalError("UPDATE", {}, sqlite3.OperationalError("database or disk is full"))

        with monkeypatch.context() as patched:
            patched.setattr(upkeep, "close_attempt", fail)
            with pytest.raises(Unavailable):
                await stores.upkeep.renew_and_expire([])
        assert [each.job_uid for each in await stores.upkeep.renew_and_expire([])] == [key.job_uid]

    stores_class(sqlite_url).run(test)


def test_token_that_cannot_be_read_is_left_out_and_can_be_taken_back(with_stores):
    async def test(stores):
        tokens = AccessTokenStore(stores.database)
        nobody = Request(request_id="", digest=b"")
        for token_id in (DAMAGED, SOUND):
            token = AccessToken(
                token_id=token_id,
                subject=token_id,
                is_admin=False,
                roles={"digits": "editor"},
                description="",
                creator="somebody",
                create_time_us=0,
                expire_time_us=stores.clock.now_us + 1,
            )
            await tokens.add(nobody, lambda _: b"", token)
        await spoil(stores, "access_tokens.roles")
        shown = await tokens.page(before=None, limit=10)
        assert [each.token_id for each in shown if not isinstance(each, Damaged)] == [SOUND]
        assert [each.place for each in shown if isinstance(each, Damaged)] == [f"{stores.clock.now_us} {DAMAGED}"]
        await tokens.revoke(DAMAGED, revoker="somebody", may=lambda found: found is None, unknown_seconds=10.0)
        assert await tokens.revoked() == [DAMAGED]

    with_stores(test)


def test_spool_of_an_attempt_that_cannot_be_read_is_neither_dropped_nor_in_the_way(with_stores, checkpoint):
    async def test(stores):
        keys = [await work(stores, project_id, checkpoint) for project_id in (DAMAGED, SOUND)]
        await spoil(stores, "attempts.progress")
        found = await stores.runners.attempts(keys, ended_hours_max=1.0)
        assert [isinstance(found[key][0], Damaged) for key in keys] == [True, False]

    with_stores(test)


def test_job_that_cannot_be_read_is_parked_and_the_ones_behind_it_go_on(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        for job_id in ("damaged", "sound"):
            await stores.submit("digits", job_id)
        damage = text("UPDATE jobs SET reason = 'NONSENSE' WHERE job_id = 'damaged'")
        await stores.database.write(lambda transaction: transaction.connection.execute(damage).rowcount)
        assert (await stores.report("one")).job.job_id == "sound"

    with_stores(test)
